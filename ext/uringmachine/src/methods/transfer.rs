//! read, write and their kin: bytes between descriptors and memory.

use magnus::{Error, RClass};
use uringmachine_runtime::lines::{Work, Write};
use uringmachine_runtime::position::catch_up;
use uringmachine_runtime::{opcode, types};

use crate::lending::{self, Destination, Source};
use crate::machine::caller::{count, machine_method, number, Answer, Caller};
use crate::machine::inflow;
use crate::machine::switch::{self, Failure, Yields};
use crate::machine::write_all::{write_all, Sink};
use crate::os::socket_address::Address;
use crate::ruby::arguments::Arguments;
use crate::ruby::{self, Raise};

/// A length argument that may be nil: at most so many bytes.
pub fn length(arguments: &Arguments, place: usize, name: &str) -> Result<Option<usize>, Raise> {
    match arguments.optional(place) {
        None => Ok(None),
        Some(_) => Ok(Some(arguments.length(place, name)? as usize)),
    }
}

/// A length argument for which nil and -1 mean all.
pub fn length_or_all(
    arguments: &Arguments,
    place: usize,
    name: &str,
) -> Result<Option<usize>, Raise> {
    match arguments.optional(place) {
        Some(value) if ruby::as_fixnum(value) == Some(-1) => Ok(None),
        _ => length(arguments, place, name),
    }
}

/// Reads from a descriptor into a buffer, once: it returns as soon as there is something. What has come before, and
/// was not handed over when a loop was left (`read_each`, UM::IO), comes first.
///
/// @method UringMachine#read(fd, buffer, maxlen, buffer_offset = 0, file_offset = -1)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] where the bytes go. A String is cut to end with them; an IO::Buffer
///   that is too small is resized. It can't be modified while the operation runs
/// @param maxlen [Integer, nil] the most bytes to read; nil is the rest of an IO::Buffer, and 16 KiB for a
///   String
/// @param buffer_offset [Integer] where in the buffer, in bytes; negative ones count from the end, -1 being it
/// @param file_offset [Integer] where in the file, in bytes; -1 is its current position
/// @return [Integer] bytes read; 0 at the end of the file
/// @raise [SystemCallError] as read(2); Errno::EMSGSIZE for a datagram that is longer than there is room for
/// @raise [UringMachine::Error] if the buffer is no buffer, or in use by another operation
/// @kernel 5.6
/// @example
///   buffer = +""
///   machine.read(fd, buffer, 8192) #=> 5
///   machine.read(fd, buffer, 8192, -1) # appends
fn read(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: `fill` keeps the memory in place.
    unsafe {
        let fd = types::Fd(arguments.fd(0, "fd")?);
        let maxlen = length(&arguments, 2, "maxlen")?;
        let offset = match arguments.optional(3) {
            None => 0,
            Some(value) => crate::ruby::arguments::long(value, "buffer_offset")?,
        };
        let position = arguments.file_offset(4, "file_offset")?;
        let buffer = arguments.get(1);
        let room = || Destination::new(caller.core, buffer, maxlen, offset, "buffer");
        if position == crate::ruby::arguments::CURRENT && !caller.reads_plainly(fd.0) {
            caller.told(fd.0)?;
            if let Some(flow) = caller.kept(fd.0)? {
                return caller.fill_from(&flow, room()?, false, None).map(number);
            }
            if (*caller.core).is_of_messages(fd.0) {
                match receive(&caller, fd.0, room()?, 0, None) {
                    // It is another file's by now.
                    Err(Failure::Raise(Raise::Errno(libc::ENOTSOCK))) => {
                        (*caller.core).forget_messages(fd.0);
                    }
                    result => return result.map(number),
                }
            }
        }
        let destination = room()?;
        let fixed = destination.fixed;
        let count = caller.fill(destination, |pointer, length| match fixed {
            Some(index) => opcode::ReadFixed::new(fd, pointer, length, index)
                .offset(position)
                .build(),
            None => opcode::Read::new(fd, pointer, length)
                .offset(position)
                .build(),
        })?;
        Ok(number(count))
    }
}

/// Writes from a buffer to a descriptor, once: it may write less than was asked for. What others have begun to write
/// comes before it, and what was given to `write_async` before.
///
/// @method UringMachine#write(fd, buffer, len = nil, file_offset = -1)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] the bytes
/// @param len [Integer, nil] how many of them; nil and -1 are all
/// @param file_offset [Integer] where in the file, in bytes; -1 is its current position
/// @return [Integer] bytes written
/// @raise [SystemCallError] as write(2), also that of an earlier `write_async` or `shutdown_async`
/// @raise [UringMachine::Error] if the buffer is no buffer
/// @kernel 5.6
/// @example
///   machine.write(UM::STDOUT_FILENO, "Hello, world!\n") #=> 14
fn write(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: `give` keeps the memory in place.
    unsafe {
        let fd = types::Fd(arguments.fd(0, "fd")?);
        let len = length_or_all(&arguments, 2, "len")?;
        let position = arguments.file_offset(3, "file_offset")?;
        let source = Source::new(caller.core, arguments.get(1), len, "buffer")?;
        if source.length == 0 && !(*caller.core).is_of_messages(fd.0) {
            source.release(caller.core);
            return Ok(number(0));
        }
        let fixed = source.fixed;
        let count = caller.give(source, |pointer, length| {
            let entry = match fixed {
                Some(index) => opcode::WriteFixed::new(fd, pointer, length, index)
                    .offset(position)
                    .build(),
                None => opcode::Write::new(fd, pointer, length)
                    .offset(position)
                    .build(),
            };
            if position == crate::ruby::arguments::CURRENT {
                caller.in_turn(fd.0, || {
                    let count = caller.operate(entry)?;
                    if (count as u32) < length {
                        catch_up(fd.0, count as usize);
                    }
                    Ok(count)
                })
            } else {
                caller.after_work(fd.0, || caller.operate(entry))
            }
        })?;
        Ok(number(count))
    }
}

/// Writes several buffers to a descriptor, all of them, in as many writes as it takes. Nothing that other fibers of
/// the machine write comes in between. What ends it when some bytes are written (a time limit, an exception, an error
/// of the descriptor) ends it with their count: it is raised at the fiber's next wait, the error by the next write.
///
/// @method UringMachine#writev(fd, *buffers, file_offset = nil)
/// @param fd [Integer] file descriptor
/// @param buffers [Array<String, IO::Buffer>] the bytes
/// @param file_offset [Integer] where in the file, in bytes, as a last argument; left out, its current
///   position
/// @return [Integer] bytes written: all of them, unless it was ended
/// @raise [SystemCallError] as writev(2), if nothing was written
/// @raise [UringMachine::Error] if a buffer is no buffer
/// @kernel 5.1
/// @example
///   machine.writev(fd, "HTTP/1.1 200 OK\r\n", "\r\n", body) #=> 42
fn writev(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: `write_all` keeps the memory in place.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let mut buffers = &arguments.all()[1..];
        let mut position = None;
        if let Some((last, others)) = buffers.split_last() {
            if ruby::is_a(*last, rb_sys::rb_cInteger) {
                position = Some(arguments.file_offset(buffers.len(), "file_offset")?);
                buffers = others;
            }
        }
        let position = position.filter(|at| *at != crate::ruby::arguments::CURRENT);
        let total = write_all(&caller, fd, buffers, Sink::Write(position))?;
        Ok(ruby::fixnum(total as i64))
    }
}

/// Receives a message, or what has come of a stream, into a buffer. A message that is longer is an error, unless the
/// flags say that the caller reckons with it (MSG_TRUNC, MSG_PEEK).
pub unsafe fn receive(
    caller: &Caller,
    fd: i32,
    destination: Destination,
    flags: i32,
    address: Option<&mut Address>,
) -> Result<i32, Failure> {
    // SAFETY: piece and message are on this frame, which `fill_part` does not leave before the kernel is done.
    unsafe {
        let mut piece: libc::iovec = std::mem::zeroed();
        let mut message: libc::msghdr = std::mem::zeroed();
        let mut address = address;
        if let Some(address) = &mut address {
            message.msg_namelen = address.length();
            message.msg_name = address.as_mut_ptr().cast();
        }
        message.msg_iov = &raw mut piece;
        message.msg_iovlen = 1;
        let (piece, message) = (&raw mut piece, &raw mut message);
        let discards = flags & libc::MSG_TRUNC != 0 && inflow::discards_truncated(fd);
        let count = caller.fill_part(
            destination,
            |pointer, length| {
                (*piece).iov_base = pointer.cast();
                (*piece).iov_len = length as usize;
                opcode::RecvMsg::new(types::Fd(fd), message)
                    .flags(flags as u32)
                    .build()
            },
            |count| if discards { 0 } else { count },
        )?;
        if (*message).msg_flags & libc::MSG_TRUNC != 0
            && flags & (libc::MSG_TRUNC | libc::MSG_PEEK) == 0
        {
            return Err(Raise::errno(libc::EMSGSIZE).into());
        }
        if let Some(address) = address {
            *address.length_mut() = (*message).msg_namelen;
        }
        Ok(count)
    }
}

/// Writes without waiting: all of the bytes, after what was given before, and before whatever is asked for later. They
/// are copied first, so the buffer may be changed at once. If it fails, the next operation on the descriptor raises
/// the error.
///
/// @method UringMachine#write_async(fd, buffer, len = nil, file_offset = -1)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] the bytes
/// @param len [Integer, nil] how many of them; nil and -1 are all
/// @param file_offset [Integer] where in the file, in bytes; -1 is its current position
/// @return [String, IO::Buffer] the buffer
/// @raise [UringMachine::Error] if the buffer is no buffer
/// @kernel 5.6
/// @example
///   machine.write_async(log_fd, "done\n")
fn write_async(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the machine owns the copy until it is written.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let buffer = arguments.get(1);
        let len = length_or_all(&arguments, 2, "len")?;
        let position = arguments.file_offset(3, "file_offset")?;
        let bytes = lending::copy_of(buffer, len, "buffer")?;
        let is_message = (*caller.core).is_of_messages(fd);
        if !bytes.is_empty() || is_message {
            let write = Write::new(bytes, position, is_message);
            (*caller.core).driver.add_work(fd, Work::Write(write));
        }
        Ok(buffer)
    }
}

/// Closes a descriptor, and returns when it is closed: after what was given to `write_async` before is written.
/// Whatever else waits for the descriptor in this machine ends before, by Errno::ECANCELED. Whatever is raised in the
/// fiber meanwhile, or was before and waits for the fiber's next wait, it is closed: an `ensure` block may rely on it.
///
/// @method UringMachine#close(fd)
/// @param fd [Integer] file descriptor
/// @return [Integer] fd
/// @raise [SystemCallError] as close(2), also that of an earlier `write_async`: it is closed all the same
/// @kernel 5.6
/// @example
///   machine.close(fd)
fn close(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: a close points to nothing.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        if (*caller.core).waiter(caller.me).is_to_raise() {
            // At its next wait, which this is not. The ring closes it after what was submitted before.
            caller.close(fd);
            return Ok(arguments.get(0));
        }
        (*caller.core).end_operations_on(fd);
        if (*caller.core).driver.has_work(fd) {
            match caller.wait_for_turn(fd) {
                Ok(()) => {}
                // Another fiber has closed it.
                Err(Failure::Raise(Raise::Errno(libc::EBADF))) => {
                    return Err(Raise::errno(libc::EBADF).into());
                }
                Err(failure) => {
                    (*caller.core).driver.add_work(fd, Work::Close);
                    return Err(failure);
                }
            }
        }
        let told = caller.told(fd);
        close_now(&caller.again(), fd)?;
        told?;
        Ok(arguments.get(0))
    }
}

unsafe fn close_now(caller: &Caller, fd: i32) -> Result<(), Failure> {
    // SAFETY: a close points to nothing.
    unsafe {
        let (core, me) = (caller.core, caller.me);
        (*core).driver.forget_line(fd);
        let entry = opcode::Close::new(types::Fd(fd)).build();
        let mut seen = 0;
        let closed = switch::operate_noting(core, me, entry, None, Yields::Count, &mut seen);
        if closed.is_err() && seen == -libc::ECANCELED {
            libc::close(fd);
        }
        count(closed?).map(drop)
    }
}

/// Has a descriptor closed without waiting for it, after what was given to `write_async` and `shutdown_async` before.
/// It is submitted with the machine's next operations. Whatever else waits for the descriptor in this machine ends
/// before, by Errno::ECANCELED.
///
/// @method UringMachine#close_async(fd)
/// @param fd [Integer] file descriptor
/// @return [Integer] fd
/// @kernel 5.6
/// @example
///   machine.close_async(fd)
fn close_async(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: a close points to nothing.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        (*caller.core).end_operations_on(fd);
        (*caller.core).driver.add_work(fd, Work::Close);
        Ok(arguments.get(0))
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "read", 2..=5, read);
    machine_method!(class, "write", 2..=4, write);
    machine_method!(class, "writev", 1..=usize::MAX, writev);
    machine_method!(class, "write_async", 2..=4, write_async);
    machine_method!(class, "close", 1..=1, close);
    machine_method!(class, "close_async", 1..=1, close_async);
    Ok(())
}
