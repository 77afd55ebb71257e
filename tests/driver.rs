//! A driver on real descriptors, by what it shows to whoever embeds it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::net::UnixDatagram;

use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::operations::{AcceptMultishot, RecvMultishot};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{clock, opcode, types, Driver, Entry, Features, OpKey, Wake};

fn driver() -> Driver<()> {
    let mut driver = Driver::new(8, Features::from_environment(), None).unwrap();
    driver.enable().unwrap();
    driver
}

/// A pipe: the end to read from, and the end to write to.
fn pipe() -> (File, File) {
    let mut ends = [0; 2];
    // SAFETY: a place for two descriptors, which are new and nobody else's.
    unsafe {
        assert_eq!(libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC), 0);
        (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1]))
    }
}

fn poll_entry(fd: &impl AsRawFd) -> Entry {
    opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32).build()
}

#[test]
fn a_completion_ends_the_wait_it_belongs_to() {
    let mut driver = driver();
    let (reader, mut writer) = pipe();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    // SAFETY: a poll points to nothing.
    let op = unsafe { driver.submit(poll_entry(&reader), wait) }.unwrap();
    driver.poll().unwrap();
    assert_eq!(driver.take(op), None);
    writer.write_all(b"x").unwrap();
    driver.sleep(None).unwrap();
    driver.reap();
    assert_eq!(driver.tasks.next_ready(), Some((task, Wake::Complete)));
    assert_eq!(driver.take(op).unwrap().result, i32::from(libc::POLLIN));
    assert_eq!(driver.operations(), 0);
}

#[test]
fn a_cancelled_read_is_drained_before_its_memory_is_given_back() {
    let mut driver = driver();
    let (reader, mut writer) = pipe();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    let mut memory = [7u8; 8];
    let entry = opcode::Read::new(types::Fd(reader.as_raw_fd()), memory.as_mut_ptr(), 8).build();
    // SAFETY: `memory` outlives the drain below.
    let op = unsafe { driver.submit(entry, wait) }.unwrap();
    driver.poll().unwrap();
    driver.cancel(op).unwrap();
    assert!(driver.drain(op, u64::MAX / 2).unwrap());
    assert_eq!(driver.take(op).unwrap().result, -libc::ECANCELED);
    writer.write_all(b"late").unwrap();
    driver.poll().unwrap();
    assert_eq!(memory, [7; 8]);
    let mut late = [0; 4];
    (&reader).read_exact(&mut late).unwrap();
    assert_eq!(&late, b"late");
}

#[test]
fn an_operation_that_won_the_race_keeps_its_result() {
    let mut driver = driver();
    let (reader, mut writer) = pipe();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    let mut memory = [0u8; 8];
    let entry = opcode::Read::new(types::Fd(reader.as_raw_fd()), memory.as_mut_ptr(), 8).build();
    // SAFETY: `memory` outlives the drain below.
    let op = unsafe { driver.submit(entry, wait) }.unwrap();
    driver.poll().unwrap();
    writer.write_all(b"won").unwrap();
    driver.poll().unwrap();
    driver.cancel(op).unwrap();
    assert!(driver.drain(op, u64::MAX / 2).unwrap());
    assert_eq!(driver.take(op).unwrap().result, 3);
    assert_eq!(&memory[..3], b"won");
}

#[test]
fn another_thread_ends_the_sleep_and_completes_a_wait() {
    let mut driver = driver();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    let waker = driver.waker().unwrap().clone();
    driver.prepare_sleep().unwrap();
    let thread = std::thread::spawn(move || waker.complete(wait));
    while driver.tasks.state(task) == Some(State::Waiting) {
        driver.prepare_sleep().unwrap();
        driver.sleep(None).unwrap();
        driver.reap();
    }
    thread.join().unwrap();
    assert_eq!(driver.tasks.next_ready(), Some((task, Wake::Complete)));
}

#[test]
fn a_driver_that_never_sleeps_sees_what_another_thread_completes() {
    let mut driver = driver();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    let waker = driver.waker().unwrap().clone();
    std::thread::spawn(move || waker.complete(wait))
        .join()
        .unwrap();
    driver.poll().unwrap();
    assert_eq!(driver.tasks.next_ready(), Some((task, Wake::Complete)));
}

#[test]
fn a_wake_before_the_sleep_is_not_lost() {
    let mut driver = driver();
    for _ in 0..3 {
        driver.waker().unwrap().wake();
        driver.prepare_sleep().unwrap();
        driver.sleep(None).unwrap();
        driver.reap();
    }
}

#[test]
fn a_deadline_ends_the_sleep_and_wakes_with_a_timeout() {
    let mut driver = driver();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    driver.wake_at(clock::now() + 1_000_000, wait);
    let mut woken = None;
    while woken.is_none() {
        let deadline = driver.timers.next_deadline();
        driver.sleep(deadline).unwrap();
        driver.fire();
        woken = driver.tasks.next_ready();
    }
    assert_eq!(woken, Some((task, Wake::Timeout)));
}

#[test]
fn shutting_down_gives_everything_back() {
    let mut driver = driver();
    let (reader, _writer) = pipe();
    let task = driver.tasks.add(());
    let mut memory = [0u8; 8];
    for _ in 0..20 {
        let wait = driver.tasks.begin_wait(task);
        let fd = types::Fd(reader.as_raw_fd());
        let entry = opcode::Read::new(fd, memory.as_mut_ptr(), 8).build();
        // SAFETY: `memory` outlives the shut-down below.
        unsafe { driver.submit(entry, wait) }.unwrap();
    }
    driver.poll().unwrap();
    assert!(driver.shut_down(10_000_000_000));
}

#[test]
fn an_operation_on_a_bad_descriptor_fails_alone() {
    let mut driver = driver();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    let closed = {
        let file = File::open("/dev/null").unwrap();
        file.as_raw_fd()
    };
    let entry = opcode::PollAdd::new(types::Fd(closed), libc::POLLIN as u32).build();
    // SAFETY: a poll points to nothing.
    let op = unsafe { driver.submit(entry, wait) }.unwrap();
    driver.poll().unwrap();
    assert_eq!(driver.take(op).unwrap().result, -libc::EBADF);
    driver.poll().unwrap();
}

fn receive(driver: &mut Driver<()>, fd: &impl AsRawFd, limit: usize) -> OpKey {
    let group = driver.buffer_group().unwrap();
    let recv = RecvMultishot {
        fd: fd.as_raw_fd(),
        group,
        flags: 0,
    };
    driver
        .start_multishot(recv, Arrivals::bytes(limit))
        .unwrap()
}

// The kernel answers with the message's length then, which the buffer has not room for.
#[test]
fn a_message_that_is_cut_off_ends_where_its_buffer_does() {
    let mut driver = driver();
    let (receiver, sender) = UnixDatagram::pair().unwrap();
    let recv = RecvMultishot {
        fd: receiver.as_raw_fd(),
        group: driver.buffer_group().unwrap(),
        flags: libc::MSG_TRUNC,
    };
    let op = driver
        .start_multishot(recv, Arrivals::bytes(1 << 20))
        .unwrap();
    driver.poll().unwrap();
    sender.send(&[7; 100_000]).unwrap();
    driver.poll().unwrap();
    let counts = driver.counts(false);
    let bytes = received(&mut driver, op);
    let whole = counts.buffer_space / counts.buffers;
    assert_eq!(bytes, vec![7; whole]);
}

#[test]
fn a_registered_buffer_ends_before_the_next_one() {
    let mut driver = driver();
    let (first, memory) = driver.register_buffers(2, 4096).unwrap();
    let index =
        |place: usize, length| driver.registered_index(memory.base().wrapping_add(place), length);
    let first = first as u16;
    assert_eq!(index(0, 4096), Some(first));
    assert_eq!(index(4096, 4096), Some(first + 1));
    assert_eq!(index(4000, 96), Some(first));
    for (place, length) in [(4000, 97), (0, 4097), (8192, 0), (4096 + 4000, 97)] {
        assert_eq!(index(place, length), None, "{length} bytes at {place}");
    }
    assert_eq!(index(0_usize.wrapping_sub(1), 1), None);
}

fn received(driver: &mut Driver<()>, op: OpKey) -> Vec<u8> {
    match &mut driver.multishot(op).unwrap().arrivals {
        Arrivals::Bytes { bytes, .. } => {
            let received = bytes.as_slice().to_vec();
            bytes.consume(received.len());
            received
        }
        Arrivals::Descriptors(_) => unreachable!(),
    }
}

#[test]
fn a_multishot_receive_brings_every_byte_in_order_and_the_end() {
    for mask in ["", "incremental_buffers"] {
        let features = Features::from_environment().masked(mask);
        let mut driver = Driver::<()>::new(8, features, None).unwrap();
        driver.enable().unwrap();
        let (receiver, mut sender) = std::os::unix::net::UnixStream::pair().unwrap();
        let op = receive(&mut driver, &receiver, usize::MAX);
        let mut sent = Vec::new();
        for round in 0..2_000u32 {
            let message: Vec<u8> = (0..round % 700).map(|byte| (byte + round) as u8).collect();
            sender.write_all(&message).unwrap();
            sent.extend(message);
            driver.poll().unwrap();
        }
        drop(sender);
        while driver.multishot(op).unwrap().ended.is_none() {
            driver.sleep(None).unwrap();
            driver.reap();
        }
        assert_eq!(driver.multishot(op).unwrap().ended, Some(0));
        assert!(received(&mut driver, op) == sent, "mask {mask:?}");
        driver.discard_multishot(op).unwrap();
        assert_eq!(driver.operations(), 0);
    }
}

#[test]
fn a_flooding_receive_is_stopped_and_goes_on_without_losing_a_byte() {
    let mut driver = driver();
    let (receiver, mut sender) = std::os::unix::net::UnixStream::pair().unwrap();
    let op = receive(&mut driver, &receiver, 1000);
    // More than the limit, before anything is consumed.
    for number in 0..10u8 {
        sender.write_all(&[number; 500]).unwrap();
        driver.poll().unwrap();
    }
    let writer = std::thread::spawn(move || {
        for number in 10..200u8 {
            sender.write_all(&[number; 500]).unwrap();
        }
    });
    let (mut op, mut got, mut stops) = (op, Vec::new(), 0);
    while got.len() < 100_000 {
        got.extend(received(&mut driver, op));
        if driver.multishot(op).unwrap().is_resumable() {
            driver.discard_multishot(op).unwrap();
            op = receive(&mut driver, &receiver, 1000);
            stops += 1;
        } else if got.len() < 100_000 {
            driver.sleep(Some(clock::now() + 10_000_000)).unwrap();
        }
        driver.reap();
    }
    assert!(stops > 0);
    writer.join().unwrap();
    let expected: Vec<u8> = (0..200u8).flat_map(|number| [number; 500]).collect();
    assert!(got == expected);
}

#[test]
fn a_discarded_accept_closes_what_it_accepted() {
    let mut driver = driver();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let accept = AcceptMultishot {
        fd: listener.as_raw_fd(),
        flags: 0,
    };
    let op = driver
        .start_multishot(accept, Arrivals::descriptors())
        .unwrap();
    let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    while matches!(&driver.multishot(op).unwrap().arrivals, Arrivals::Descriptors(fds) if fds.is_empty())
    {
        driver.sleep(None).unwrap();
        driver.reap();
    }
    driver.discard_multishot(op).unwrap();
    while driver.operations() > 0 {
        driver.sleep(None).unwrap();
        driver.reap();
    }
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
}

#[test]
fn a_forsaken_driver_has_no_descriptor_and_runs_nobody() {
    let mut driver = driver();
    let ready = driver.tasks.add(());
    let timed = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(ready);
    driver.tasks.wake(wait, Wake::Complete);
    let wait = driver.tasks.begin_wait(timed);
    driver.wake_at(0, wait);
    let waker = driver.waker().unwrap().clone();
    let fd = waker.fd();
    driver.forsake();
    // SAFETY: fcntl takes any number.
    assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, -1);
    waker.complete(wait);
    driver.fire();
    assert_eq!(driver.tasks.next_ready(), None);
    assert!(driver.poll().is_err());
}

#[test]
fn an_orphan_keeps_its_memory_until_it_is_written() {
    let mut driver = driver();
    let (mut reader, writer) = pipe();
    let memory: Box<[u8]> = (*b"orphan").into();
    let fd = types::Fd(writer.as_raw_fd());
    let entry = opcode::Write::new(fd, memory.as_ptr(), 6).build();
    // SAFETY: the entry points to the memory that is given along.
    unsafe { driver.submit_orphan(entry, Some(memory)) }.unwrap();
    assert_eq!(driver.counts(false).orphans, 1);
    driver.poll().unwrap();
    let mut bytes = [0; 6];
    reader.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"orphan");
    assert_eq!(driver.operations(), 0);
}

#[test]
fn a_registered_buffer_is_read_into_and_written_from() {
    let mut driver = driver();
    let (region, memory) = driver.register_buffers(4, 4096).unwrap();
    let (other, _) = driver.register_buffers(2, 8192).unwrap();
    assert_ne!(region, other);
    // SAFETY: within the region's memory.
    let third = unsafe { memory.base().add(2 * 4096) };
    assert_eq!(driver.registered_index(third, 4096), Some(2));
    // SAFETY: as above.
    let within = unsafe { third.add(10) };
    assert_eq!(driver.registered_index(within, 4090), None);
    assert_eq!(driver.registered_index(std::ptr::dangling(), 1), None);
    let (reader, mut writer) = pipe();
    let task = driver.tasks.add(());
    let wait = driver.tasks.begin_wait(task);
    writer.write_all(b"fixed").unwrap();
    let fd = types::Fd(reader.as_raw_fd());
    let entry = opcode::ReadFixed::new(fd, third, 4096, 2).build();
    // SAFETY: the memory is the region's.
    let op = unsafe { driver.submit(entry, wait) }.unwrap();
    driver.poll().unwrap();
    assert_eq!(driver.take(op).unwrap().result, 5);
    // SAFETY: the kernel has given the memory back.
    assert_eq!(unsafe { std::slice::from_raw_parts(third, 5) }, b"fixed");
    driver.unregister_buffers(region);
    assert_eq!(driver.registered_index(third, 4096), None);
    // SAFETY: the memory is there for as long as somebody has it.
    assert_eq!(unsafe { std::slice::from_raw_parts(third, 5) }, b"fixed");
    memory.discard();
    // SAFETY: as above.
    assert_eq!(unsafe { *third }, 0);
    let (again, _) = driver.register_buffers(4, 4096).unwrap();
    assert_eq!(again, region);
}
