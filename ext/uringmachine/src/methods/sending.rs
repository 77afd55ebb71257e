//! Sending: bytes, messages and descriptors, once or all of them.

use std::ffi::c_int;

use magnus::{Error, RClass};
use uringmachine_runtime::{opcode, types};

use super::address;
use super::sockets::{message_of, one_byte, Control};
use super::transfer::length_or_all;
use crate::lending::Source;
use crate::machine::caller::{machine_method, number, Answer, Caller};
use crate::machine::switch::Failure;
use crate::machine::write_all::{send_once, write_all, Sink};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, Raise};

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
    // SAFETY: `give` keeps the memory in place.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let len = length_or_all(&arguments, 2, "len")?;
        let flags = arguments.int_or(3, "flags", 0)? | libc::MSG_NOSIGNAL;
        let zero_copy = (*caller.core).driver.features().send_zc;
        for zero_copy in [zero_copy, false] {
            let source = Source::new(caller.core, arguments.get(1), len, "buffer")?;
            let fixed = source
                .fixed
                .filter(|_| zero_copy && source.length >= ZERO_COPY_FROM);
            let how = fixed.map_or(How::Copied, How::Fixed);
            match send_source(&caller, fd, source, flags, how) {
                Err(Failure::Raise(Raise::Errno(libc::EOPNOTSUPP))) if fixed.is_some() => {}
                sent => return Ok(number(sent?)),
            }
        }
        Ok(number(0))
    }
}

/// How bytes are sent.
#[derive(Clone, Copy)]
enum How {
    Copied,
    /// Not copied.
    Uncopied,
    /// Not copied, out of a registered buffer.
    Fixed(u16),
}

unsafe fn send_source(
    caller: &Caller,
    fd: i32,
    source: Source,
    flags: i32,
    how: How,
) -> Result<i32, Failure> {
    // SAFETY: `give` keeps the memory in place.
    unsafe {
        caller.give(source, |pointer, length| {
            let socket = types::Fd(fd);
            let entry = |flags| match how {
                How::Copied => opcode::Send::new(socket, pointer, length)
                    .flags(flags)
                    .build(),
                How::Uncopied => opcode::SendZc::new(socket, pointer, length)
                    .flags(flags)
                    .build(),
                How::Fixed(index) => opcode::SendZc::new(socket, pointer, length)
                    .flags(flags)
                    .buf_index(Some(index))
                    .build(),
            };
            // All of it by one operation, whose count says how much it was when it is given up; without a copy each
            // part would wait until the network has let go of it.
            let in_parts = flags & libc::MSG_WAITALL != 0 || !matches!(how, How::Copied);
            let is_whole = in_parts && !(*caller.core).is_of_messages(fd);
            caller.in_turn(fd, || match is_whole {
                true => caller.operate(entry(flags)),
                false => send_once(caller, fd, flags, entry),
            })
        })
    }
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
    // SAFETY: `give` keeps the memory in place until the operation's last
    // completion, which says that the network has let go of it.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let string = arguments::string(arguments.get(1), "string")?;
        if !ruby::is_frozen(string) {
            return Err(Raise::argument("string must be frozen").into());
        }
        let flags = arguments.int_or(2, "flags", 0)? | libc::MSG_NOSIGNAL;
        let zero_copy = (*caller.core).driver.features().send_zc;
        for zero_copy in [zero_copy, false] {
            let source = Source::new(caller.core, string, None, "string")?;
            let how = if zero_copy {
                How::Uncopied
            } else {
                How::Copied
            };
            match send_source(&caller, fd, source, flags, how) {
                Err(Failure::Raise(Raise::Errno(libc::EOPNOTSUPP))) if zero_copy => {}
                sent => return Ok(number(sent?)),
            }
        }
        Ok(number(0))
    }
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
    // SAFETY: `write_all` keeps the memory in place.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let sink = Sink::Send(libc::MSG_NOSIGNAL | libc::MSG_WAITALL);
        let total = write_all(&caller, fd, &arguments.all()[1..], sink)?;
        Ok(ruby::fixnum(total as i64))
    }
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
    // SAFETY: the message and the address are on this frame, the bytes in
    // the source.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let len = length_or_all(&arguments, 2, "len")?;
        let flags = arguments.int_or(3, "flags", 0)? | libc::MSG_NOSIGNAL;
        let mut address = address::read(&caller, fd, &arguments, 4)?[0];
        let source = Source::new(caller.core, arguments.get(1), len, "buffer")?;
        let mut piece: libc::iovec = std::mem::zeroed();
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_namelen = address.length();
        message.msg_name = address.as_mut_ptr().cast();
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        let (piece, message) = (&raw mut piece, &raw const message);
        let is_of_messages = (*caller.core).is_of_messages(fd);
        let count = caller.give(source, |pointer, length| {
            (*piece).iov_base = pointer.cast_mut().cast();
            (*piece).iov_len = length as usize;
            let send = || {
                send_once(&caller, fd, flags, |flags| {
                    opcode::SendMsg::new(types::Fd(fd), message)
                        .flags(flags as u32)
                        .build()
                })
            };
            // Messages are whole by themselves, and one to a peer that takes none must not hold up the others.
            if is_of_messages {
                caller.after_work(fd, send)
            } else {
                caller.in_turn(fd, send)
            }
        })?;
        Ok(number(count))
    }
}

/// Sends a descriptor to the process at the other end of a UNIX socket.
///
/// @method UringMachine#send_fd(sockfd, fd)
/// @param sockfd [Integer] descriptor of the UNIX socket
/// @param fd [Integer] the descriptor to send
/// @return [Integer] fd
/// @raise [SystemCallError] as sendmsg(2)
/// @kernel 5.3
/// @example
///   machine.send_fd(socket, fd)
fn send_fd(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: all the message points to is on this frame.
    unsafe {
        let socket = arguments.fd(0, "sockfd")?;
        let fd = arguments.fd(1, "fd")?;
        let (mut byte, mut control) = (0_u8, Control([0; 24]));
        let mut piece = one_byte(&mut byte);
        let mut message = message_of(&mut piece, &mut control);
        message.msg_controllen = libc::CMSG_SPACE(4) as _;
        let header = libc::CMSG_FIRSTHDR(&raw const message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(4) as _;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd);
        let message = &raw const message;
        let send = || {
            send_once(&caller, socket, libc::MSG_NOSIGNAL, |flags| {
                opcode::SendMsg::new(types::Fd(socket), message)
                    .flags(flags as u32)
                    .build()
            })
        };
        caller.in_turn(socket, send)?;
        Ok(arguments.get(1))
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "send", 2..=4, send);
    machine_method!(class, "send_zc", 2..=3, send_zc);
    machine_method!(class, "sendv", 1..=usize::MAX, sendv);
    machine_method!(class, "sendto", 5..=6, sendto);
    machine_method!(class, "send_fd", 2..=2, send_fd);
    Ok(())
}
