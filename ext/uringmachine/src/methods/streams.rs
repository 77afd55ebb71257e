//! Operations that complete again and again: accept_each, accept_into_queue, read_each, recv_each.

use magnus::{Error, RClass};
use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::{opcode, types};

use crate::classes::queue;
use crate::lending::COPIED;
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::inflow::{self, Flow};
use crate::machine::multishot::{Running, NOT_POLLABLE};
use crate::machine::switch::Failure;
use crate::os::socket_address;
use crate::ruby::arguments::Arguments;
use crate::ruby::{self, new_string, Raise, NIL, VALUE};

/// Accepts connections and hands each to `take`, until the socket is shut down.
unsafe fn accept_all(
    caller: &Caller,
    fd: i32,
    take: impl Fn(i32) -> Result<(), Raise>,
) -> Result<(), Failure> {
    // SAFETY: see `switch`; the stream is left in every case.
    unsafe {
        // A socket that is shut down answers EINVAL too, which is the end; one that never listened is
        // told from it here.
        if socket_address::option(fd, libc::SOL_SOCKET, libc::SO_ACCEPTCONN)? == 0 {
            return Err(Raise::errno(libc::EINVAL).into());
        }
        let flow = caller.flow(fd)?;
        loop {
            let caller = &caller.again();
            caller.settle(&flow)?;
            while let Some(connection) = (*flow.get()).descriptors.pop_front() {
                take(connection)?;
            }
            let caller = &caller.again();
            let running = Running::accept(caller, fd)?;
            (*flow.get()).begin(running.op());
            let ended = accept_each_of(caller, &running, &take);
            (*flow.get()).leave(caller.core, running.op());
            match ended {
                // Ended without an error, or by a connection that was gone before it was accepted.
                Ok(Some(result)) if result >= 0 || result == -libc::ECONNABORTED => {}
                Ok(Some(result)) if result == -libc::EINVAL => return Ok(()),
                Ok(Some(result)) => return Err(Raise::errno(-result).into()),
                Ok(None) => return Ok(()),
                Err(failure) => return Err(failure),
            }
        }
    }
}

/// Hands on what a stream accepts until it ends; the result of its last completion.
unsafe fn accept_each_of(
    caller: &Caller,
    running: &Running,
    take: impl Fn(i32) -> Result<(), Raise>,
) -> Result<Option<i32>, Failure> {
    // SAFETY: see `switch`.
    unsafe {
        loop {
            let stream = running.state(caller)?;
            let next = match &mut stream.arrivals {
                Arrivals::Descriptors(descriptors) => descriptors.pop_front(),
                Arrivals::Bytes { .. } => None,
            };
            match (next, stream.ended) {
                (Some(fd), _) => take(fd)?,
                (None, Some(result)) => return Ok(Some(result)),
                (None, None) => running.wait(&caller.again())?,
            }
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
    // SAFETY: the block's exceptions are stopped.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        need_block("accept_each")?;
        accept_all(&caller, fd, |connection| {
            ruby::protect(|| rb_sys::rb_yield(crate::machine::caller::number(connection)))
                .map(drop)
                .map_err(Raise::Jump)
        })?;
        Ok(NIL)
    }
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
    // SAFETY: see `switch`.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let queue = arguments.get(1);
        queue::check(queue)?;
        accept_all(&caller, fd, |connection| {
            queue::push(queue, crate::machine::caller::number(connection));
            Ok(())
        })?;
        Ok(NIL)
    }
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
    // SAFETY: as `each`.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        need_block("read_each")?;
        each(&caller, fd, None)?;
        Ok(NIL)
    }
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
    // SAFETY: as `each`.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let flags = arguments.int_or(1, "flags", 0)?;
        need_block("recv_each")?;
        each(&caller, fd, Some(flags))?;
        Ok(NIL)
    }
}

fn need_block(method: &str) -> Result<(), Raise> {
    // SAFETY: a plain accessor.
    if unsafe { rb_sys::rb_block_given_p() } != 0 {
        return Ok(());
    }
    Err(Raise::argument(&format!("no block given ({method})")))
}

unsafe fn each(caller: &Caller, fd: i32, receive: Option<i32>) -> Result<(), Failure> {
    // SAFETY: see `switch`; the stream is left in every case.
    unsafe {
        let flow = caller.flow(fd)?;
        let is_of_messages = (*caller.core).is_of_messages(fd);
        loop {
            let caller = &caller.again();
            caller.settle(&flow)?;
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
            (*flow.get()).begin(running.op());
            let ended = each_of(caller, &running, receive.is_some());
            (*flow.get()).leave(caller.core, running.op());
            match ended? {
                // It is kept with what came last.
                Some(NOT_POLLABLE) if receive.is_none() => {
                    (*flow.get()).ended = None;
                    return each_by_single_reads(caller, fd, receive);
                }
                Some(_) | None => {}
            }
        }
    }
}

/// Yields what has come before; says whether it has ended.
unsafe fn each_kept(flow: &Flow) -> Result<bool, Failure> {
    // SAFETY: the String is made of the bytes before Ruby runs; no reference is held while it does.
    unsafe {
        let inflow = flow.get();
        while let Some(length) = (*inflow).next_piece().filter(|_| !(*inflow).busy) {
            let string = new_string(&(*inflow).bytes.as_slice()[..length]);
            (*inflow).consume_piece();
            yield_value(string)?;
        }
        match (*inflow).ended.take() {
            None => Ok(false),
            Some(0) => Ok(true),
            Some(result) => Err(Raise::errno(-result).into()),
        }
    }
}

/// Yields what a stream brings until it ends: the result of its last completion, `None` if it is to be
/// started again. Of a socket, whose bytes have no pieces, all that has come is one String.
unsafe fn each_of(
    caller: &Caller,
    running: &Running,
    is_socket: bool,
) -> Result<Option<i32>, Failure> {
    // SAFETY: the String is made of the bytes before Ruby runs.
    unsafe {
        loop {
            let stream = running.state(caller)?;
            let resumable = stream.is_resumable();
            if let Arrivals::Bytes { bytes, chunks, .. } = &mut stream.arrivals {
                if let Some(mut length) = chunks.pop_front() {
                    if is_socket {
                        chunks.clear();
                        length = bytes.len();
                    }
                    let string = new_string(&bytes.as_slice()[..length]);
                    bytes.consume(length);
                    yield_value(string)?;
                    continue;
                }
            }
            match stream.ended {
                Some(_) if resumable => return Ok(None),
                Some(result) => return Ok(Some(result)),
                None => running.wait(&caller.again())?,
            }
        }
    }
}

/// Yields each message of a socket that keeps them apart, whole.
unsafe fn each_message(caller: &Caller, fd: i32, flags: i32) -> Result<(), Failure> {
    // Longer ones are for sockets whose buffers somebody has made that large. Memory that no message reaches costs
    // nothing: nobody touches it.
    const LENGTH: usize = 1 << 20;
    let mut memory = Vec::<u8>::with_capacity(LENGTH);
    loop {
        // SAFETY: memory and message are on this frame, which `operate` does not leave before the kernel is done.
        unsafe {
            let mut piece = libc::iovec {
                iov_base: memory.as_mut_ptr().cast(),
                iov_len: LENGTH,
            };
            let mut message: libc::msghdr = std::mem::zeroed();
            message.msg_iov = &raw mut piece;
            message.msg_iovlen = 1;
            let entry = opcode::RecvMsg::new(types::Fd(fd), &raw mut message)
                .flags(flags as u32)
                .build();
            let count = caller.again().operate(entry)? as usize;
            if message.msg_flags & libc::MSG_TRUNC != 0 {
                return Err(Raise::errno(libc::EMSGSIZE).into());
            }
            if count == 0 && inflow::is_end(fd) {
                return Ok(());
            }
            // The kernel has written as many.
            memory.set_len(count.min(LENGTH));
            yield_value(new_string(&memory))?;
        }
    }
}

/// For what cannot be read by multishot: regular files, and older kernels.
unsafe fn each_by_single_reads(
    caller: &Caller,
    fd: i32,
    receive: Option<i32>,
) -> Result<(), Failure> {
    const LENGTH: usize = 16 * COPIED;
    let discards =
        receive.is_some_and(|flags| flags & libc::MSG_TRUNC != 0) && inflow::discards_truncated(fd);
    let mut memory = vec![0_u8; LENGTH];
    loop {
        // SAFETY: the vector is on this frame, which `operate` does not leave before the kernel is done.
        unsafe {
            let fd = types::Fd(fd);
            let room = memory.as_mut_ptr();
            let entry = match receive {
                Some(flags) => opcode::Recv::new(fd, room, LENGTH as u32)
                    .flags(flags)
                    .build(),
                None => opcode::Read::new(fd, room, LENGTH as u32)
                    .offset(crate::ruby::arguments::CURRENT)
                    .build(),
            };
            match caller.again().operate(entry)? as usize {
                0 => return Ok(()),
                _ if discards => yield_value(new_string(&[]))?,
                count => yield_value(new_string(&memory[..count.min(LENGTH)]))?,
            }
        }
    }
}

unsafe fn yield_value(value: VALUE) -> Result<(), Raise> {
    // SAFETY: the block's exceptions are stopped.
    unsafe {
        ruby::protect(|| rb_sys::rb_yield(value))
            .map(drop)
            .map_err(Raise::Jump)
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "accept_each", 1..=1, accept_each);
    machine_method!(class, "accept_into_queue", 2..=2, accept_into_queue);
    machine_method!(class, "read_each", 1..=1, read_each);
    machine_method!(class, "recv_each", 1..=2, recv_each);
    Ok(())
}
