//! The floor: the same operations as bench/machine_workloads.rb, by a program that does nothing else.
//!
//!     floor pipe|socketpair COUNT [registered]
//!     floor http CONNECTIONS PORT
//!
//! The first two move COUNT messages and print the CPU time and the wall time they took as JSON, if asked to through
//! descriptors that are registered with the ring. The last serves HTTP until all connections are closed, and prints the
//! same.

use std::collections::VecDeque;
use std::io;
use std::time::Instant;

use io_uring::squeue::Entry;
use io_uring::{opcode, squeue, types, IoUring};

/// As many as the workloads have.
const PAIRS: usize = 48;

fn ring(entries: u32) -> io::Result<IoUring> {
    IoUring::builder()
        .setup_single_issuer()
        .setup_defer_taskrun()
        .setup_submit_all()
        .setup_cqsize(entries * 8)
        .build(entries)
}

fn cpu_seconds() -> f64 {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: a valid place for the answer.
    unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

fn push(ring: &mut IoUring, entry: &Entry) {
    // SAFETY: buffers live until the program's end.
    while unsafe { ring.submission().push(entry) }.is_err() {
        ring.submit().expect("submit");
    }
}

/// A pair of descriptors, to be read and to be written.
fn pair(sockets: bool) -> [i32; 2] {
    let mut fds = [0; 2];
    // SAFETY: two valid places.
    let result = unsafe {
        if sockets {
            libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, fds.as_mut_ptr())
        } else {
            libc::pipe(fds.as_mut_ptr())
        }
    };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
    fds
}

/// One writer and one reader a pair, each with an operation under way until it has moved its share.
fn move_messages(sockets: bool, size: usize, count: usize, registered: bool) {
    let mut ring = ring(256).expect("io_uring");
    let message = vec![b'*'; size];
    let mut buffers = vec![vec![0_u8; size]; PAIRS];
    let pairs: Vec<[i32; 2]> = (0..PAIRS).map(|_| pair(sockets)).collect();
    if registered {
        let fds = pairs.concat();
        ring.submitter()
            .register_files(&fds)
            .expect("register_files");
    }
    let share = count / PAIRS;
    let mut left = vec![share; 2 * PAIRS];
    let mut entry = |task: usize| {
        let [reader, writer] = if registered {
            let place = task as i32 / 2 * 2;
            [place, place + 1]
        } else {
            pairs[task / 2]
        };
        let buffer = buffers[task / 2].as_mut_ptr();
        let entry = match (task % 2 == 0, sockets) {
            (true, false) => {
                opcode::Write::new(types::Fd(writer), message.as_ptr(), size as u32).build()
            }
            (true, true) => opcode::Send::new(types::Fd(writer), message.as_ptr(), size as u32)
                .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
                .build(),
            (false, false) => opcode::Read::new(types::Fd(reader), buffer, size as u32).build(),
            (false, true) => opcode::Recv::new(types::Fd(reader), buffer, size as u32).build(),
        };
        let flags = if registered {
            squeue::Flags::FIXED_FILE
        } else {
            squeue::Flags::empty()
        };
        entry.user_data(task as u64).flags(flags)
    };
    let mut ready: VecDeque<usize> = (0..2 * PAIRS).collect();
    let mut running = 0;
    while !ready.is_empty() || running > 0 {
        while let Some(task) = ready.pop_front() {
            push(&mut ring, &entry(task));
            running += 1;
        }
        ring.submit_and_wait(1).expect("enter");
        for completion in ring.completion() {
            let task = completion.user_data() as usize;
            assert!(completion.result() > 0, "{}", completion.result());
            running -= 1;
            left[task] -= 1;
            if left[task] > 0 {
                ready.push_back(task);
            }
        }
    }
}

const RESPONSE: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";

/// Receives, counts blank lines, answers each: an HTTP server that knows only how a request ends.
fn serve(connections: usize, port: u16) -> usize {
    let mut ring = ring(1024).expect("io_uring");
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("bind");
    // SAFETY: a listening socket.
    unsafe { libc::listen(std::os::fd::AsRawFd::as_raw_fd(&listener), 4096) };
    println!("ready");
    let mut buffers = vec![vec![0_u8; 4096]; connections];
    let mut answers = vec![Vec::new(); connections];
    let mut fds = Vec::new();
    for _ in 0..connections {
        let (stream, _) = listener.accept().expect("accept");
        fds.push(std::os::fd::IntoRawFd::into_raw_fd(stream));
    }
    let receive = |fd: i32, buffer: &mut [u8], task: usize| {
        opcode::Recv::new(types::Fd(fd), buffer.as_mut_ptr(), buffer.len() as u32)
            .build()
            .user_data(task as u64)
    };
    for task in 0..connections {
        let entry = receive(fds[task], &mut buffers[task], task);
        push(&mut ring, &entry);
    }
    let (mut open, mut served) = (connections, 0);
    let mut done = Vec::new();
    while open > 0 {
        ring.submit_and_wait(1).expect("enter");
        done.extend(
            ring.completion()
                .map(|entry| (entry.user_data(), entry.result())),
        );
        for (data, result) in done.drain(..) {
            let task = data as usize % connections;
            if result <= 0 {
                open -= 1;
                continue;
            }
            if data as usize >= connections {
                let entry = receive(fds[task], &mut buffers[task], task);
                push(&mut ring, &entry);
                continue;
            }
            let requests = buffers[task][..result as usize]
                .windows(4)
                .filter(|bytes| bytes == b"\r\n\r\n")
                .count();
            served += requests;
            answers[task] = RESPONSE.repeat(requests);
            let entry = opcode::Send::new(
                types::Fd(fds[task]),
                answers[task].as_ptr(),
                answers[task].len() as u32,
            )
            .flags(libc::MSG_NOSIGNAL | libc::MSG_WAITALL)
            .build()
            .user_data((connections + task) as u64);
            push(&mut ring, &entry);
        }
    }
    served
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let number = |place: usize| arguments[place].parse().expect("a number");
    let registered = arguments.get(3).is_some_and(|word| word == "registered");
    let (cpu, wall) = (cpu_seconds(), Instant::now());
    let count = match arguments[1].as_str() {
        "pipe" => {
            move_messages(false, 1024, number(2), registered);
            number(2)
        }
        "socketpair" => {
            move_messages(true, 64, number(2), registered);
            number(2)
        }
        "http" => serve(number(2), number(3) as u16),
        other => panic!("no such floor: {other}"),
    };
    let scale = 1e6 / count.max(1) as f64;
    println!(
        "{{\"cpu\": {}, \"wall\": {}}}",
        (cpu_seconds() - cpu) * scale,
        wall.elapsed().as_secs_f64() * scale
    );
}
