//! Operations that complete again and again: accept_each, accept_into_queue, read_each, recv_each.

use magnus::{Error, RClass};
use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::memory::SingleMut;
use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::operations::{Accept, Read, Recv, RecvMsg, CURRENT};

use crate::classes::queue;
use crate::lending::COPIED;
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::inflow::{self, Flow};
use crate::machine::multishot::{Running, NOT_POLLABLE};
use crate::machine::operate::Failure;
use crate::os::socket_address;
use crate::ruby::arguments::Arguments;
use crate::ruby::{self, number, string, Raise, NIL};

/// Accepts connections and hands each to `take`, until the socket is shut down.
fn accept_all(
    caller: &Caller,
    fd: i32,
    take: impl Fn(i32) -> Result<(), Raise>,
) -> Result<(), Failure> {
    // A socket that is shut down answers EINVAL too, which is the end; one that never listened is
    // told from it here.
    if socket_address::option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? == 0 {
        return Err(Raise::errno(libc::EINVAL).into());
    }
    // The kernel tells a multishot of a UNIX socket nothing of its shutdown (net/unix/af_unix.c, unix_accept: EAGAIN).
    let is_single = socket_address::option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? == libc::AF_UNIX;
    let flow = caller.flow(fd)?;
    loop {
        caller.again().settle(&flow)?;
        loop {
            let connection = flow.get().descriptors.pop_front();
            match connection {
                Some(connection) => take(connection)?,
                None => break,
            }
        }
        let caller = &caller.again();
        let ended = if is_single {
            accept_one(caller, fd, &take)
        } else {
            let running = Running::accept(caller, fd)?;
            flow.begin(running.op());
            let ended = accept_each_of(caller, &running, &take);
            flow.leave(caller.machine, running.op());
            ended
        };
        match ended? {
            // Ended without an error, or by a connection that was gone before it was accepted.
            result if result >= 0 || result == -libc::ECONNABORTED => {}
            result if result == -libc::EINVAL => return Ok(()),
            result => return Err(Raise::errno(-result).into()),
        }
    }
}

/// Accepts a connection and hands it on; the result of the operation.
fn accept_one(
    caller: &Caller,
    fd: i32,
    take: impl Fn(i32) -> Result<(), Raise>,
) -> Result<i32, Failure> {
    let flags = libc::SOCK_CLOEXEC;
    match caller.descriptor(Accept { fd, flags }) {
        Ok(connection) => take(connection).map(|()| 0).map_err(Failure::from),
        Err(Failure::Raise(Raise::Errno(errno))) => Ok(-errno),
        Err(failure) => Err(failure),
    }
}

/// Hands on what a stream accepts until it ends; the result of its last completion.
fn accept_each_of(
    caller: &Caller,
    running: &Running,
    take: impl Fn(i32) -> Result<(), Raise>,
) -> Result<i32, Failure> {
    loop {
        let (next, ended) = {
            let mut stream = running.state(caller)?;
            let next = match &mut stream.arrivals {
                Arrivals::Descriptors(descriptors) => descriptors.pop_front(),
                Arrivals::Bytes { .. } => None,
            };
            (next, stream.ended)
        };
        match (next, ended) {
            (Some(fd), _) => take(fd)?,
            (None, Some(result)) => return Ok(result),
            (None, None) => running.wait(&caller.again())?,
        }
    }
}

/// Accepts connections, close-on-exec, and gives each to the block, until the socket is shut down or the
/// block breaks. Connections that were accepted and not given to the block are for whoever accepts next.
///
/// @method UringMachine#accept_each(fd, &block)
/// @param fd [Integer] descriptor of a listening socket
/// @yieldparam connection [Integer] descriptor of the connection
/// @return [nil] when the socket is shut down
/// @raise [SystemCallError] as accept(2)
/// @raise [ArgumentError] without a block
/// @kernel 5.19
/// @example
///   machine.accept_each(server) { |fd| machine.spin { serve(fd) } }
fn accept_each(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    need_block("accept_each")?;
    accept_all(&caller, fd, |connection| {
        ruby::yield_(number(connection)).map(drop)
    })?;
    Ok(NIL)
}

/// Accepts connections, close-on-exec, and pushes each to a queue, until the socket is shut down.
///
/// @method UringMachine#accept_into_queue(fd, queue)
/// @param fd [Integer] descriptor of a listening socket
/// @param queue [UringMachine::Queue]
/// @return [nil] when the socket is shut down
/// @raise [SystemCallError] as accept(2)
/// @raise [TypeError] if queue is no UM::Queue
/// @kernel 5.19
/// @example
///   machine.spin { machine.accept_into_queue(server, queue) }
fn accept_into_queue(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let queue = arguments.get(1);
    queue::check(queue)?;
    accept_all(&caller, fd, |connection| {
        queue::push(queue, number(connection));
        Ok(())
    })?;
    Ok(NIL)
}

/// Reads until the end of the file and gives each piece to the block as it comes. Bytes that have come when the
/// block breaks or raises are for whoever reads the descriptor next with this machine.
///
/// @method UringMachine#read_each(fd, &block)
/// @param fd [Integer] file descriptor
/// @yieldparam bytes [String] binary
/// @return [nil] at the end of the file
/// @raise [SystemCallError] as read(2)
/// @raise [ArgumentError] without a block
/// @kernel 6.7, with single reads on older ones and for regular files
/// @example
///   machine.read_each(fd) { |bytes| digest << bytes }
fn read_each(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    need_block("read_each")?;
    each(&caller, fd, None)?;
    Ok(NIL)
}

/// Receives until the peer is done and gives what has come to the block, as soon as something has; of a datagram socket,
/// each datagram, also an empty one. What has come when the block breaks or raises is for whoever reads the descriptor next
/// with this machine. An empty message of a connection (SEQPACKET) is given too, but for one that nothing but the peer's
/// close comes after: the kernel answers both alike.
///
/// @method UringMachine#recv_each(fd, flags = 0, &block)
/// @param fd [Integer] file descriptor
/// @param flags [Integer] as for `recv`
/// @yieldparam bytes [String] binary
/// @return [nil] at the end
/// @raise [SystemCallError] as recv(2); Errno::EMSGSIZE if a datagram is longer than 1 MiB
/// @raise [ArgumentError] without a block
/// @kernel 6.0
/// @example
///   machine.recv_each(fd, 0) { |bytes| parser << bytes }
fn recv_each(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let flags = arguments.int_or(1, "flags", 0)?;
    need_block("recv_each")?;
    each(&caller, fd, Some(flags))?;
    Ok(NIL)
}

fn need_block(method: &str) -> Result<(), Raise> {
    if ruby::block_given() {
        return Ok(());
    }
    Err(Raise::argument(&format!("no block given ({method})")))
}

fn each(caller: &Caller, fd: i32, receive: Option<i32>) -> Result<(), Failure> {
    let flow = caller.flow(fd)?;
    let is_of_messages = caller.machine.is_of_messages(fd);
    loop {
        caller.again().settle(&flow)?;
        if each_kept(&flow)? {
            return Ok(());
        }
        let caller = &caller.again();
        if is_of_messages {
            return each_message(caller, fd, receive.unwrap_or(0));
        }
        // What is received with it may be thrown away, or not be as much as the kernel says.
        let is_single = receive.is_some_and(|flags| flags & libc::MSG_TRUNC != 0);
        let running = match is_single {
            true => None,
            false => Running::bytes(caller, fd, receive)?,
        };
        let Some(running) = running else {
            return each_by_single_reads(caller, fd, receive);
        };
        flow.begin(running.op());
        let ended = each_of(caller, &running, receive.is_some());
        flow.leave(caller.machine, running.op());
        match ended? {
            // It is kept with what came last.
            Some(NOT_POLLABLE) if receive.is_none() => {
                flow.get().ended = None;
                return each_by_single_reads(caller, fd, receive);
            }
            Some(_) | None => {}
        }
    }
}

/// Yields what has come before; says whether it has ended.
fn each_kept(flow: &Flow) -> Result<bool, Failure> {
    let mut piece = Bytes::default();
    while take_kept(flow, &mut piece) {
        yield_piece(&mut piece)?;
    }
    let ended = flow.get().ended.take();
    match ended {
        None => Ok(false),
        Some(0) => Ok(true),
        Some(result) => Err(Raise::errno(-result).into()),
    }
}

/// Takes the next piece of what has come before, unless somebody reads it by a UM::IO; says whether there was one.
fn take_kept(flow: &Flow, piece: &mut Bytes) -> bool {
    let mut inflow = flow.get();
    let Some(length) = inflow.next_piece().filter(|_| !inflow.busy) else {
        return false;
    };
    piece.push(&inflow.bytes.as_slice()[..length]);
    inflow.consume_piece();
    true
}

/// Yields what a stream brings until it ends: the result of its last completion, `None` if it is to be
/// started again. Of a socket, whose bytes have no pieces, all that has come is one String.
fn each_of(caller: &Caller, running: &Running, is_socket: bool) -> Result<Option<i32>, Failure> {
    let mut piece = Bytes::default();
    loop {
        let (has_piece, resumable, ended) = {
            let mut stream = running.state(caller)?;
            let has_piece = take_piece(&mut stream.arrivals, is_socket, &mut piece);
            (has_piece, stream.is_resumable(), stream.ended)
        };
        match ended {
            _ if has_piece => yield_piece(&mut piece)?,
            Some(_) if resumable => return Ok(None),
            Some(result) => return Ok(Some(result)),
            None => running.wait(&caller.again())?,
        }
    }
}

/// Takes the next piece of what a stream has brought, or all of it; says whether there was one.
fn take_piece(arrivals: &mut Arrivals, is_all: bool, piece: &mut Bytes) -> bool {
    let Arrivals::Bytes { bytes, chunks, .. } = arrivals else {
        return false;
    };
    let Some(length) = chunks.pop_front() else {
        return false;
    };
    if is_all {
        chunks.clear();
    }
    if is_all || length == bytes.len() {
        std::mem::swap(bytes, piece);
    } else {
        piece.push(&bytes.as_slice()[..length]);
        bytes.consume(length);
    }
    true
}

/// Yields each message of a socket that keeps them apart, whole.
fn each_message(caller: &Caller, fd: i32, flags: i32) -> Result<(), Failure> {
    // Longer ones are for sockets whose buffers somebody has made that large. Memory that no message reaches costs
    // nothing: nobody touches it.
    const LENGTH: usize = 1 << 20;
    let mut memory = vec![0_u8; LENGTH];
    loop {
        let mut message = RecvMsg::new(fd, SingleMut::new(&mut memory[..]), flags);
        let count = caller.again().operate(&mut message)? as usize;
        if message.message_flags() & libc::MSG_TRUNC != 0 {
            return Err(Raise::errno(libc::EMSGSIZE).into());
        }
        if count == 0 && inflow::is_end(fd) {
            return Ok(());
        }
        yield_bytes(&memory[..count.min(LENGTH)])?;
    }
}

/// For what cannot be read by multishot: regular files, and older kernels.
fn each_by_single_reads(caller: &Caller, fd: i32, receive: Option<i32>) -> Result<(), Failure> {
    const LENGTH: usize = 16 * COPIED;
    let discards =
        receive.is_some_and(|flags| flags & libc::MSG_TRUNC != 0) && inflow::discards_truncated(fd);
    let mut bytes = vec![0_u8; LENGTH];
    loop {
        let (caller, memory) = (caller.again(), &mut bytes[..]);
        let count = match receive {
            Some(flags) => caller.result(Recv {
                fd,
                memory,
                flags,
                poll_first: false,
            })?,
            None => caller.result(Read {
                fd,
                memory,
                offset: CURRENT,
            })?,
        };
        match count as usize {
            0 => return Ok(()),
            _ if discards => yield_bytes(&[])?,
            count => yield_bytes(&bytes[..count.min(LENGTH)])?,
        }
    }
}

/// Gives the block a String of bytes that were taken from where they were, since Ruby runs while it is made.
fn yield_piece(piece: &mut Bytes) -> Result<(), Raise> {
    let string = string::binary(piece.as_slice())?;
    piece.consume(piece.len());
    ruby::yield_(string).map(drop)
}

/// Gives the block a String of bytes.
fn yield_bytes(bytes: &[u8]) -> Result<(), Raise> {
    ruby::yield_(string::binary(bytes)?).map(drop)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "accept_each", 1..=1, accept_each);
    machine_method!(class, "accept_into_queue", 2..=2, accept_into_queue);
    machine_method!(class, "read_each", 1..=1, read_each);
    machine_method!(class, "recv_each", 1..=2, recv_each);
    Ok(())
}
