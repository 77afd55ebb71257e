//! Sending: bytes and messages, once or all of them.

use magnus::{Error, RClass};
use uringmachine_runtime::memory::{Memory, Single};
use uringmachine_runtime::operations::{Send, SendMsg};

use super::address;
use super::transfer::length_or_all;
use crate::machine::caller::{machine_method, Answer, Caller, Source};
use crate::machine::operate::Failure;
use crate::machine::write_all::{send_once, write_all, Sink};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, number, Raise};

/// Sends from a buffer to a socket, once. A peer that is gone is Errno::EPIPE, never a signal. What others have begun
/// to send comes before it.
///
/// @method UringMachine#send(fd, buffer, len = nil, flags = 0)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] the bytes
/// @param len [Integer, nil] how many of them; nil and -1 are all
/// @param flags [Integer] UM::MSG_WAITALL has all of them sent, however long it takes
/// @return [Integer] bytes sent
/// @raise [SystemCallError] as send(2), also that of an earlier `write_async` or `shutdown_async`
/// @raise [UringMachine::Error] if the buffer is no buffer
/// @kernel 5.6
/// @example
///   machine.send(fd, "Hello", 5, UM::MSG_WAITALL) #=> 5
fn send(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let len = length_or_all(&arguments, 2, "len")?;
    let flags = arguments.int_or(3, "flags", 0)? | libc::MSG_NOSIGNAL;
    let zero_copy = caller.machine.parts().driver.features().send_zc;
    for zero_copy in [zero_copy, false] {
        let source = caller.source(arguments.get(1), len, "buffer")?;
        let is_large = source.size() >= ZERO_COPY_FROM;
        let without_copy = zero_copy && is_large && source.registered().is_some();
        match send_source(&caller, fd, source, flags, without_copy) {
            Err(Failure::Raise(Raise::Errno(libc::EOPNOTSUPP))) if without_copy => {}
            sent => return Ok(number(sent?)),
        }
    }
    Ok(number(0))
}

/// Sends the bytes of a source, once; without a copy, they may be left to the network when it is ended.
fn send_source(
    caller: &Caller,
    fd: i32,
    source: Source,
    flags: i32,
    without_copy: bool,
) -> Result<i32, Failure> {
    caller.count_registered(&source);
    let mut send = Send {
        fd,
        memory: source,
        flags,
        without_copy,
    };
    // All of it by one operation, whose count says how much it was when it is given up; without a copy each
    // part would wait until the network has let go of it.
    let in_parts = flags & libc::MSG_WAITALL != 0 || without_copy;
    let is_whole = in_parts && !caller.machine.is_of_messages(fd);
    let sent = caller.in_turn(fd, || match is_whole {
        true => caller.operate(&mut send),
        false => send_once(caller, fd, flags, |caller, flags| {
            send.flags = flags;
            caller.operate(&mut send)
        }),
    });
    caller.give_back(send.memory);
    sent
}

/// From this many bytes on, what lies in a registered buffer is sent without being copied: below, the
/// second completion costs more than the copy.
const ZERO_COPY_FROM: usize = 16 << 10;

/// Sends a frozen String without copying it, once; returns when the network has taken the last byte of it.
/// Worth it for large messages to other machines; on a socket or a kernel without it, it is a `send`. A time limit,
/// and whatever else is raised in the fiber, ends it at once: the String is kept until the network has let go of it.
///
/// @method UringMachine#send_zc(fd, string, flags = 0)
/// @param fd [Integer] file descriptor
/// @param string [String] frozen
/// @param flags [Integer] as for `send`
/// @return [Integer] bytes sent
/// @raise [SystemCallError] as send(2)
/// @raise [ArgumentError] if the String is not frozen
/// @kernel 6.0
/// @example
///   machine.send_zc(fd, page.freeze, UM::MSG_WAITALL)
fn send_zc(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let string = arguments::string(arguments.get(1), "string")?;
    if !ruby::is_frozen(string) {
        return Err(Raise::argument("string must be frozen").into());
    }
    let flags = arguments.int_or(2, "flags", 0)? | libc::MSG_NOSIGNAL;
    let zero_copy = caller.machine.parts().driver.features().send_zc;
    for zero_copy in [zero_copy, false] {
        let source = caller.source(string, None, "string")?;
        match send_source(&caller, fd, source, flags, zero_copy) {
            Err(Failure::Raise(Raise::Errno(libc::EOPNOTSUPP))) if zero_copy => {}
            sent => return Ok(number(sent?)),
        }
    }
    Ok(number(0))
}

/// Sends several buffers to a socket, all of them: as one message to a socket that keeps messages apart. Nothing that
/// other fibers of the machine send comes in between. What ends it when some bytes are sent (a time limit, an exception,
/// an error of the socket) ends it with their count: it is raised at the fiber's next wait, the error by the next send.
///
/// @method UringMachine#sendv(fd, *buffers)
/// @param fd [Integer] file descriptor
/// @param buffers [Array<String, IO::Buffer>] the bytes
/// @return [Integer] bytes sent: all of them, unless it was ended
/// @raise [SystemCallError] as sendmsg(2), if nothing was sent
/// @raise [UringMachine::Error] if a buffer is no buffer
/// @kernel 5.3
/// @example
///   machine.sendv(fd, headers, body) #=> 120
fn sendv(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let sink = Sink::Send(libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
    let total = write_all(&caller, fd, &arguments.all()[1..], sink)?;
    Ok(ruby::fixnum(total as i64))
}

/// Sends a message to an address.
///
/// @method UringMachine#sendto(fd, buffer, len, flags, host, port = nil)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] the bytes
/// @param len [Integer, nil] how many of them; nil and -1 are all
/// @param flags [Integer]
/// @param host [String] as for `bind`
/// @param port [Integer] 0 to 65535; not for UNIX sockets
/// @return [Integer] bytes sent
/// @raise [SystemCallError] as sendto(2)
/// @raise [UringMachine::Error] if the buffer is no buffer
/// @kernel 5.3
/// @example
///   machine.sendto(fd, "ping", nil, 0, "127.0.0.1", 5353)
fn sendto(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let len = length_or_all(&arguments, 2, "len")?;
    let flags = arguments.int_or(3, "flags", 0)? | libc::MSG_NOSIGNAL;
    let address = address::read(&caller, fd, &arguments, 4)?[0].into_memory();
    let source = caller.source(arguments.get(1), len, "buffer")?;
    let is_of_messages = caller.machine.is_of_messages(fd);
    caller.count_registered(&source);
    let mut message = SendMsg::with(fd, Single::new(source), address, (), flags);
    let send = || {
        send_once(&caller, fd, flags, |caller, flags| {
            message.flags = flags;
            caller.operate(&mut message)
        })
    };
    // Messages are whole by themselves, and one to a peer that takes none must not hold up the others.
    let count = if is_of_messages {
        caller.after_work(fd, send)
    } else {
        caller.in_turn(fd, send)
    }?;
    Ok(number(count))
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "send", 2..=4, send);
    machine_method!(class, "send_zc", 2..=3, send_zc);
    machine_method!(class, "sendv", 1..=usize::MAX, sendv);
    machine_method!(class, "sendto", 5..=6, sendto);
    Ok(())
}
