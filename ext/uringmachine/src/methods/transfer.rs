//! read, write and their kin: bytes between descriptors and memory.

use magnus::{Error, RClass};
use uringmachine_runtime::lines::{self, Work};
use uringmachine_runtime::memory::{Memory, MemoryMut, SingleMut};
use uringmachine_runtime::operations::{Close, Read, RecvMsg, Write, CURRENT};
use uringmachine_runtime::position::catch_up;

use crate::lending;
use crate::machine::caller::{count, machine_method, Answer, Caller, Destination};
use crate::machine::inflow;
use crate::machine::operate::{Failure, Yields};
use crate::machine::write_all::{write_all, Sink};
use crate::os::fd::Fd;
use crate::os::socket_address::Address;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, classes, number, Raise};

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
/// @method UringMachine#read(fd, buffer, maxlen = nil, buffer_offset = 0, file_offset = -1)
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
    let fd = arguments.fd(0, "fd")?;
    let maxlen = length(&arguments, 2, "maxlen")?;
    let place = match arguments.optional(3) {
        None => 0,
        Some(value) => arguments::long(value, "buffer_offset")?,
    };
    let offset = arguments.file_offset(4, "file_offset")?;
    let room = || caller.room(arguments.get(1), maxlen, place, "buffer");
    if offset == CURRENT && !caller.reads_plainly(fd) {
        caller.told(fd)?;
        if let Some(flow) = caller.kept(fd)? {
            return caller.fill_from(&flow, room()?, false, None).map(number);
        }
        if caller.machine.is_of_messages(fd) {
            match receive(&caller, fd, room()?, 0) {
                // It is another file's by now.
                Err(Failure::Raise(Raise::Errno(libc::ENOTSOCK))) => {
                    caller.machine.forget_messages(fd);
                }
                result => return result.map(number),
            }
        }
    }
    let memory = room()?;
    caller.count_registered(&memory);
    let (count, read) = caller.run(Read { fd, memory, offset })?;
    read.memory.finish(count as usize)?;
    Ok(number(count))
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
    let fd = arguments.fd(0, "fd")?;
    let len = length_or_all(&arguments, 2, "len")?;
    let offset = arguments.file_offset(3, "file_offset")?;
    let memory = caller.source(arguments.get(1), len, "buffer")?;
    if memory.size() == 0 && !caller.machine.is_of_messages(fd) {
        return Ok(number(0));
    }
    caller.count_registered(&memory);
    let write = Write { fd, memory, offset };
    if offset != CURRENT {
        return caller.after_work(fd, || caller.result(write)).map(number);
    }
    let length = write.memory.length();
    let count = caller.in_turn(fd, || {
        let count = caller.result(write)?;
        if (count as u32) < length {
            catch_up(fd, count as usize);
        }
        Ok(count)
    })?;
    Ok(number(count))
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
    let fd = arguments.fd(0, "fd")?;
    let mut buffers = &arguments.all()[1..];
    let mut position = None;
    if let Some((last, others)) = buffers.split_last() {
        if ruby::is_a(*last, classes::integer()) {
            position = Some(arguments.file_offset(buffers.len(), "file_offset")?);
            buffers = others;
        }
    }
    let position = position.filter(|at| *at != CURRENT);
    let total = write_all(&caller, fd, buffers, Sink::Write(position))?;
    Ok(ruby::fixnum(total as i64))
}

/// Receives a message, or what has come of a stream, into a buffer. A message that is longer is an error, unless the
/// flags say that the caller reckons with it (MSG_TRUNC, MSG_PEEK).
pub fn receive(caller: &Caller, fd: i32, room: Destination, flags: i32) -> Result<i32, Failure> {
    let (count, ..) = receive_message(caller, fd, room, (), flags)?;
    Ok(count)
}

/// As [`receive`], with the sender's address.
pub fn receive_from(
    caller: &Caller,
    fd: i32,
    room: Destination,
    flags: i32,
) -> Result<(i32, Address), Failure> {
    let (count, address, length) = receive_message(caller, fd, room, Address::room(), flags)?;
    Ok((count, Address::told(&address, length)))
}

fn receive_message<A: MemoryMut>(
    caller: &Caller,
    fd: i32,
    room: Destination,
    address: A,
    flags: i32,
) -> Result<(i32, A, usize), Failure> {
    let discards = flags & libc::MSG_TRUNC != 0 && inflow::discards_truncated(fd);
    caller.count_registered(&room);
    let message = RecvMsg::with(fd, SingleMut::new(room), address, (), flags);
    let (count, message) = caller.run(message)?;
    let is_cut = message.message_flags() & libc::MSG_TRUNC != 0;
    let length = message.address_length();
    let room = message.pieces.into_memory();
    room.finish(if discards { 0 } else { count as usize })?;
    if is_cut && flags & (libc::MSG_TRUNC | libc::MSG_PEEK) == 0 {
        return Err(Raise::errno(libc::EMSGSIZE).into());
    }
    Ok((count, message.address, length))
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
    let fd = arguments.fd(0, "fd")?;
    let buffer = arguments.get(1);
    let len = length_or_all(&arguments, 2, "len")?;
    let position = arguments.file_offset(3, "file_offset")?;
    let bytes = lending::copy_of(buffer, len, "buffer")?;
    let is_message = caller.machine.is_of_messages(fd);
    if !bytes.is_empty() || is_message {
        let write = Work::Write(lines::Write::new(bytes, position, is_message));
        caller.machine.parts().driver.add_work(fd, write);
    }
    Ok(buffer)
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
    let (machine, fd) = (caller.machine, arguments.fd(0, "fd")?);
    let is_to_raise = machine.parts().waiter(caller.me).is_to_raise();
    if is_to_raise {
        // At its next wait, which this is not. The ring closes it after what was submitted before.
        caller.close(fd);
        return Ok(arguments.get(0));
    }
    machine.end_operations_on(fd);
    let has_work = machine.parts().driver.has_work(fd);
    if has_work {
        machine.parts().to_be_closed.push(fd);
        let turn = caller.wait_for_turn(fd);
        machine.parts().will_not_close(fd);
        match turn {
            Ok(()) => {}
            // Another fiber has closed it.
            Err(Failure::Raise(Raise::Errno(libc::EBADF))) => {
                return Err(Raise::errno(libc::EBADF).into());
            }
            Err(failure) => {
                machine.parts().driver.add_work(fd, Work::Close);
                return Err(failure);
            }
        }
    }
    let told = caller.told(fd);
    close_now(&caller.again(), fd)?;
    told?;
    Ok(arguments.get(0))
}

fn close_now(caller: &Caller, fd: i32) -> Result<(), Failure> {
    let (machine, me) = (caller.machine, caller.me);
    machine.parts().driver.forget_line(fd);
    // The kernel has not been asked: what the fiber was to raise at its next wait came first.
    const UNASKED: i32 = i32::MIN;
    let mut seen = UNASKED;
    let closed = machine.operate_noting(me, &mut Close { fd }, None, Yields::Count, &mut seen);
    if seen == UNASKED || (closed.is_err() && seen == -libc::ECANCELED) {
        let _ = Fd(fd).close();
    }
    count(closed?).map(drop)
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
    let fd = arguments.fd(0, "fd")?;
    caller.machine.end_operations_on(fd);
    caller.machine.parts().driver.add_work(fd, Work::Close);
    Ok(arguments.get(0))
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
