//! read, write and their kin: bytes between descriptors and memory.

use std::ffi::c_int;

use uringmachine_runtime::{opcode, types};

use super::{count, define_all, method, number, Caller};
use crate::arguments::Arguments;
use crate::memory::{self, Destination, Source};
use crate::switch::{self, Failure, Yields};
use crate::sys::{self, Raise, VALUE};

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
        Some(value) if sys::as_fixnum(value) == Some(-1) => Ok(None),
        _ => length(arguments, place, name),
    }
}

/// Reads from a descriptor into a buffer, once: it returns as soon as there is something.
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
/// @raise [SystemCallError] as read(2)
/// @raise [UringMachine::Error] if the buffer is no buffer, or in use by another operation
/// @kernel 5.6
/// @example
///   buffer = +""
///   machine.read(fd, buffer, 8192) #=> 5
///   machine.read(fd, buffer, 8192, -1) # appends
unsafe extern "C" fn read(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; `fill` keeps the memory in place.
    unsafe {
        method(argc, argv, this, 2..=5, |caller, arguments| {
            let fd = types::Fd(arguments.fd(0, "fd")?);
            let maxlen = length(&arguments, 2, "maxlen")?;
            let offset = match arguments.optional(3) {
                None => 0,
                Some(value) => crate::arguments::long(value, "buffer_offset")?,
            };
            let position = arguments.file_offset(4, "file_offset")?;
            let buffer = arguments.get(1);
            let destination = Destination::new(caller.core, buffer, maxlen, offset, "buffer")?;
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
        })
    }
}

/// Writes from a buffer to a descriptor, once: it may write less than was asked for.
///
/// @method UringMachine#write(fd, buffer, len = nil, file_offset = -1)
/// @param fd [Integer] file descriptor
/// @param buffer [String, IO::Buffer] the bytes
/// @param len [Integer, nil] how many of them; nil and -1 are all
/// @param file_offset [Integer] where in the file, in bytes; -1 is its current position
/// @return [Integer] bytes written
/// @raise [SystemCallError] as write(2)
/// @raise [UringMachine::Error] if the buffer is no buffer
/// @kernel 5.6
/// @example
///   machine.write(UM::STDOUT_FILENO, "Hello, world!\n") #=> 14
unsafe extern "C" fn write(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; `give` keeps the memory in place.
    unsafe {
        method(argc, argv, this, 2..=4, |caller, arguments| {
            let fd = types::Fd(arguments.fd(0, "fd")?);
            let len = length_or_all(&arguments, 2, "len")?;
            let position = arguments.file_offset(3, "file_offset")?;
            let source = Source::new(caller.core, arguments.get(1), len, "buffer")?;
            if source.length == 0 {
                source.release(caller.core);
                return Ok(number(0));
            }
            let fixed = source.fixed;
            let count = caller.give(source, |pointer, length| match fixed {
                Some(index) => opcode::WriteFixed::new(fd, pointer, length, index)
                    .offset(position)
                    .build(),
                None => opcode::Write::new(fd, pointer, length)
                    .offset(position)
                    .build(),
            })?;
            Ok(number(count))
        })
    }
}

/// Writes several buffers to a descriptor, all of them, in as many writes as it takes.
///
/// @method UringMachine#writev(fd, *buffers, file_offset = nil)
/// @param fd [Integer] file descriptor
/// @param buffers [Array<String, IO::Buffer>] the bytes
/// @param file_offset [Integer] where in the file, in bytes, as a last argument; left out, its current
///   position
/// @return [Integer] bytes written
/// @raise [SystemCallError] as writev(2); what was written before stays written
/// @raise [UringMachine::Error] if a buffer is no buffer
/// @kernel 5.1
/// @example
///   machine.writev(fd, "HTTP/1.1 200 OK\r\n", "\r\n", body) #=> 42
unsafe extern "C" fn writev(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; `write_all` keeps the memory in place.
    unsafe {
        method(argc, argv, this, 1..=usize::MAX, |caller, arguments| {
            let fd = arguments.fd(0, "fd")?;
            let mut buffers = &arguments.all()[1..];
            let mut position = None;
            if let Some((last, others)) = buffers.split_last() {
                if sys::is_a(*last, rb_sys::rb_cInteger) {
                    position = Some(arguments.file_offset(buffers.len(), "file_offset")?);
                    buffers = others;
                }
            }
            let position = position.filter(|at| *at != crate::arguments::CURRENT);
            let total = write_all(&caller, fd, buffers, Sink::Write(position))?;
            Ok(sys::fixnum(total as i64))
        })
    }
}

/// How [`write_all`] writes.
#[derive(Clone, Copy)]
pub enum Sink {
    /// By writev, at a position or the current one.
    Write(Option<u64>),
    /// By sendmsg, with these flags.
    Send(i32),
}

/// The most pieces that one call takes (UIO_MAXIOV).
const MOST_PIECES: usize = 1024;

/// Writes every byte of every buffer. An error after progress is raised, as writev(2)'s callers do.
pub unsafe fn write_all(
    caller: &Caller,
    fd: i32,
    buffers: &[VALUE],
    sink: Sink,
) -> Result<u64, Failure> {
    // SAFETY: the sources keep the memory in place until they are released, and their objects are
    // held by the core meanwhile; waits are protected, so this frame's vectors are dropped.
    unsafe {
        let core = caller.core;
        let mut sources = Vec::with_capacity(buffers.len());
        let mut failed = None;
        for buffer in buffers {
            match Source::new(core, *buffer, None, "buffer") {
                Ok(source) => sources.push(source),
                Err(raise) => {
                    failed = Some(raise);
                    break;
                }
            }
        }
        let result = match failed {
            Some(raise) => Err(Failure::Raise(raise)),
            None => {
                let held = sources.iter().map(Source::held).collect();
                let hold = (*core).holds.insert(held);
                let result = write_sources(caller, fd, &sources, sink);
                (*core).holds.remove(hold);
                result
            }
        };
        for source in sources {
            source.release(core);
        }
        result
    }
}

unsafe fn write_sources(
    caller: &Caller,
    fd: i32,
    sources: &[Source],
    sink: Sink,
) -> Result<u64, Failure> {
    let fd = types::Fd(fd);
    let mut pieces: Vec<libc::iovec> = sources
        .iter()
        .filter(|source| source.length > 0)
        .map(|source| libc::iovec {
            iov_base: source.pointer.cast_mut().cast(),
            iov_len: source.length,
        })
        .collect();
    let mut left = pieces.as_mut_slice();
    let mut total = 0_u64;
    while !left.is_empty() {
        let count = left.len().min(MOST_PIECES);
        // SAFETY: the pieces and the message are on this frame, which `operate` does not leave before
        // the kernel is done with them.
        let moved = unsafe {
            let mut message: libc::msghdr = std::mem::zeroed();
            let entry = match sink {
                Sink::Write(position) => {
                    let offset = position.map_or(crate::arguments::CURRENT, |at| at + total);
                    opcode::Writev::new(fd, left.as_ptr(), count as u32)
                        .offset(offset)
                        .build()
                }
                Sink::Send(flags) => {
                    message.msg_iov = left.as_mut_ptr();
                    message.msg_iovlen = count;
                    opcode::SendMsg::new(fd, &message)
                        .flags(flags as u32)
                        .build()
                }
            };
            caller.operate(entry)? as usize
        };
        total += moved as u64;
        left = advance(left, moved);
    }
    Ok(total)
}

/// The pieces without their first `moved` bytes.
fn advance(mut left: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = left.first_mut() {
        if moved < first.iov_len {
            // SAFETY: the piece is longer than what is taken off it.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(moved).cast() };
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        left = &mut left[1..];
    }
    left
}

/// Writes without waiting and without telling how it ended. The bytes are copied first, so the buffer may
/// be changed at once.
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
unsafe extern "C" fn write_async(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the machine owns the copy until it is written.
    unsafe {
        method(argc, argv, this, 2..=4, |caller, arguments| {
            let fd = types::Fd(arguments.fd(0, "fd")?);
            let buffer = arguments.get(1);
            let len = length_or_all(&arguments, 2, "len")?;
            let position = arguments.file_offset(3, "file_offset")?;
            let bytes = memory::copy_of(buffer, len, "buffer")?;
            if bytes.is_empty() {
                return Ok(buffer);
            }
            let length = bytes.len().min(memory::MOST) as u32;
            let entry = opcode::Write::new(fd, bytes.as_ptr(), length)
                .offset(position)
                .build();
            caller.launch(entry, Some(bytes))?;
            Ok(buffer)
        })
    }
}

/// Closes a descriptor, and returns when it is closed. Whatever is raised in the fiber meanwhile, or was before
/// and waits for the fiber's next wait, it is closed: an `ensure` block may rely on it.
///
/// @method UringMachine#close(fd)
/// @param fd [Integer] file descriptor
/// @return [Integer] fd
/// @raise [SystemCallError] as close(2)
/// @kernel 5.6
/// @example
///   machine.close(fd)
unsafe extern "C" fn close(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; a close points to nothing.
    unsafe {
        method(argc, argv, this, 1..=1, |caller, arguments| {
            let fd = arguments.fd(0, "fd")?;
            caller.forget_descriptor(fd);
            if (*caller.core).waiter(caller.me).is_to_raise() {
                // At its next wait, which this is not. The ring closes it after what was submitted before.
                caller.close(fd);
                return Ok(arguments.get(0));
            }
            let entry = opcode::Close::new(types::Fd(fd)).build();
            let mut seen = 0;
            let (core, me) = (caller.core, caller.me);
            let closed = switch::operate_noting(core, me, entry, None, Yields::Count, &mut seen);
            if closed.is_err() && seen == -libc::ECANCELED {
                libc::close(fd);
            }
            count(closed?)?;
            Ok(arguments.get(0))
        })
    }
}

/// Has a descriptor closed without waiting for it. It is submitted with the machine's next operations.
///
/// @method UringMachine#close_async(fd)
/// @param fd [Integer] file descriptor
/// @return [Integer] fd
/// @kernel 5.6
/// @example
///   machine.close_async(fd)
unsafe extern "C" fn close_async(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; a close points to nothing.
    unsafe {
        method(argc, argv, this, 1..=1, |caller, arguments| {
            let fd = arguments.fd(0, "fd")?;
            caller.forget_descriptor(fd);
            caller.launch(opcode::Close::new(types::Fd(fd)).build(), None)?;
            Ok(arguments.get(0))
        })
    }
}

/// Defines the methods.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions are methods.
    unsafe {
        define_all(
            class,
            &[
                (c"read", read),
                (c"write", write),
                (c"writev", writev),
                (c"write_async", write_async),
                (c"close", close),
                (c"close_async", close_async),
            ],
        );
    }
}
