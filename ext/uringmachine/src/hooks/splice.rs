//! io_splice, beneath IO.copy_stream (lib/uringmachine/copy_stream.rb).

use std::ffi::c_int;

use crate::arguments::{self, Arguments};
use crate::durations;
use crate::hooks::io::timed_out;
use crate::machine::{answer, number};
use crate::scheduler::get;
use crate::splicing::{self, End, Moved};
use crate::switch::Failure;
use crate::sys::{self, Outcome, Raise, NIL, VALUE};

/// Moves bytes from one IO to another within the kernel. Bytes that Ruby has read ahead are not moved:
/// IO.copy_stream does that. `io.timeout` of both is honoured.
///
/// If the move is ended by an exception, no byte is lost: what was taken from the source and has not arrived
/// is put back (IO#ungetbyte, or the position of a file).
///
/// @method UringMachine::FiberScheduler#io_splice(source, destination, length = nil, offset = nil)
/// @param source [IO]
/// @param destination [IO]
/// @param length [Integer, nil] the most bytes to move; nil is all to the end
/// @param offset [Integer, nil] where in the file of source, whose position is then left alone
/// @return [Integer] bytes, or a negative errno if none was moved
/// @raise [IO::TimeoutError] after io.timeout
/// @raise [ArgumentError] if length or offset is negative
/// @kernel 5.7
/// @example
///   Fiber.scheduler.io_splice(file, socket, nil) #=> 1048576
unsafe extern "C" fn io_splice(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        sys::method(|| {
            let arguments = Arguments::new(argc, argv, 2..=4)?;
            let core = get(this).core()?;
            let (source, destination) = (arguments.get(0), arguments.get(1));
            let length = match arguments.optional(2) {
                None => None,
                Some(_) => Some(arguments.length(2, "length")?),
            };
            let offset = match arguments.optional(3) {
                None => None,
                Some(_) => match arguments.long(3, "offset")? {
                    offset if offset >= 0 => Some(offset),
                    offset => return Err(arguments::out_of_range("offset", offset)),
                },
            };
            let from = end(source)?;
            let to = end(writer(destination)?)?;
            let me = (*core).current_task();
            let moved = splicing::run(core, me, from, to, length, offset);
            finish(source, offset.is_some(), moved)
        })
    }
}

/// The IO that is written to, where reading and writing have a descriptor each.
unsafe fn writer(io: VALUE) -> Outcome {
    // SAFETY: may raise, stopped here.
    unsafe {
        sys::protect(|| {
            let io = rb_sys::rb_io_get_io(io);
            rb_sys::rb_io_get_write_io(io)
        })
        .map_err(Raise::Jump)
    }
}

unsafe fn end(io: VALUE) -> Result<End, Raise> {
    let mut fd = -1;
    let slot = &raw mut fd;
    // SAFETY: may raise for what is no IO, or a closed one: stopped here.
    unsafe {
        let timeout = sys::protect(|| {
            let io = rb_sys::rb_io_get_io(io);
            *slot = sys::rb_io_descriptor(io);
            sys::rb_io_timeout(io)
        })
        .map_err(Raise::Jump)?;
        Ok(End {
            fd,
            timeout: durations::nanoseconds(timeout)?,
        })
    }
}

/// Puts back what has not arrived, and returns the count, the errno or what is to be raised.
unsafe fn finish(source: VALUE, positioned: bool, moved: Moved) -> Outcome {
    let Moved { count, left, ended } = moved;
    // SAFETY: what may raise is protected; the bytes are copied before.
    unsafe {
        if !left.is_empty() && !positioned {
            put_back(source, &left);
        }
        drop(left);
        match ended {
            Ok(()) => Ok(sys::fixnum(count as i64)),
            Err(ended) => match splicing::failure(ended, || timed_out(Failure::Timeout)) {
                // An error after progress shows at the next operation.
                Ok(_) if count > 0 => Ok(sys::fixnum(count as i64)),
                Ok(errno) => Ok(number(errno)),
                Err(failure) => answer(Err(failure)),
            },
        }
    }
}

unsafe fn put_back(source: VALUE, bytes: &[u8]) {
    let length = bytes.len() as i64;
    let start = bytes.as_ptr();
    // SAFETY: the bytes are copied; an exception is dropped, since another is under way.
    unsafe {
        let put = sys::protect(|| {
            let io = rb_sys::rb_io_get_io(source);
            if libc::lseek(sys::rb_io_descriptor(io), -length, libc::SEEK_CUR) < 0 {
                let string = rb_sys::rb_str_new(start.cast(), length as _);
                sys::funcall(io, sys::id("ungetbyte"), &[string]);
            }
            NIL
        });
        if put.is_err() {
            sys::take_exception();
        }
    }
}

/// Whether Ruby has read bytes of an IO that the program has not: those do not go through the kernel.
///
/// @method UringMachine::FiberScheduler.read_ahead?(io)
/// @param io [IO]
/// @return [Boolean]
/// @example
///   UM::FiberScheduler.read_ahead?(socket) #=> false
unsafe extern "C" fn is_read_ahead(_class: VALUE, io: VALUE) -> VALUE {
    // SAFETY: the type is checked; may raise for a closed IO.
    unsafe {
        if !sys::is_a(io, rb_sys::rb_cIO) {
            return sys::FALSE;
        }
        let pointer = (*(io as *const rb_sys::RFile)).fptr;
        sys::boolean(!pointer.is_null() && rb_sys::rb_io_read_pending(pointer) != 0)
    }
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        sys::define_method(class, c"io_splice", io_splice as *const (), -1);
        let name = c"read_ahead?";
        sys::define_singleton_method(class, name, is_read_ahead as *const (), 1);
    }
}
