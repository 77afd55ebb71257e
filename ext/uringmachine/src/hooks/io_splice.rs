//! io_splice, beneath IO.copy_stream (lib/uringmachine/copy.rb).

use std::ffi::{c_char, c_int};

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, Object, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::hooks::io_transfer::timed_out;
use crate::machine::caller::{answer, number};
use crate::machine::closing;
use crate::machine::splice::{self, End, Moved};
use crate::machine::switch::Failure;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::method::{as_value, raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, Outcome, Raise, NIL, VALUE};

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
fn io_splice(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let arguments = Arguments::of(arguments, 2..=4)?;
            let core = this.core()?;
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
            let (source, target) = (reader(source)?, writer(destination)?);
            let (from, to) = (end(source)?, end(target)?);
            let me = (*core).current_task();
            let mut moved = None;
            let mut ended = Ok(());
            let began = closing::during(core, me, source, from.fd, &mut || {
                ended = closing::during(core, me, target, to.fd, &mut || {
                    moved = Some(splice::run(core, me, from, to, length, offset));
                });
            });
            let result = moved.map(|moved| finish(source, offset.is_some(), moved));
            began.and(ended)?;
            result.unwrap_or(Ok(NIL))
        }
    })
}

/// The IO that is read from. IOError if it is not open for that; what it has to write goes out.
unsafe fn reader(io: VALUE) -> Outcome {
    // SAFETY: may raise, stopped here.
    unsafe {
        ruby::protect(|| {
            let io = rb_sys::rb_io_get_io(io);
            rb_sys::rb_io_check_byte_readable(open_file(io));
            io
        })
        .map_err(Raise::Jump)
    }
}

/// The IO that is written to, where reading and writing have a descriptor each. IOError if it is not open for
/// that.
unsafe fn writer(io: VALUE) -> Outcome {
    // SAFETY: may raise, stopped here.
    unsafe {
        ruby::protect(|| {
            let io = rb_sys::rb_io_get_write_io(rb_sys::rb_io_get_io(io));
            rb_sys::rb_io_check_writable(open_file(io));
            io
        })
        .map_err(Raise::Jump)
    }
}

/// What Ruby keeps of an IO (RB_IO_POINTER). May raise: TypeError if it is none, IOError if it is closed.
unsafe fn open_file(io: VALUE) -> *mut rb_sys::rb_io_t {
    // SAFETY: the type is checked; one that is not initialized has NULL, which Ruby refuses.
    unsafe {
        rb_sys::rb_check_type(io, rb_sys::ruby_value_type::RUBY_T_FILE as c_int);
        let pointer = (*(io as *const rb_sys::RFile)).fptr;
        rb_sys::rb_io_check_closed(pointer);
        pointer
    }
}

unsafe fn end(io: VALUE) -> Result<End, Raise> {
    let mut fd = -1;
    let slot = &raw mut fd;
    // SAFETY: may raise for what is no IO, or a closed one: stopped here.
    unsafe {
        let timeout = ruby::protect(|| {
            *slot = ruby::rb_io_descriptor(io);
            ruby::rb_io_timeout(io)
        })
        .map_err(Raise::Jump)?;
        Ok(End {
            fd,
            timeout: duration::nanoseconds(timeout)?,
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
            Ok(()) => Ok(ruby::fixnum(count as i64)),
            Err(ended) => match splice::failure(ended, || timed_out(Failure::Timeout)) {
                // An error after progress shows at the next operation.
                Ok(_) if count > 0 => Ok(ruby::fixnum(count as i64)),
                Ok(errno) => Ok(number(errno)),
                Err(failure) => answer(Err(failure)),
            },
        }
    }
}

/// UM::FiberScheduler#write_off(io, string): writes a String, and takes off it what has been written, also when it
/// raises.
fn write_off(ruby: &Ruby, this: This<Scheduler>, io: Value, string: Value) -> Result<Value, Error> {
    let (io, string) = (io.as_raw(), string.as_raw());
    settle(ruby, || {
        // SAFETY: the bytes are copied, so that they stay where they are; what may raise is protected.
        unsafe {
            let core = this.core()?;
            let string = arguments::string(string, "string")?;
            let target = writer(io)?;
            let to = end(target)?;
            let me = (*core).current_task();
            let bytes = ruby::string_bytes(&string).to_vec();
            let mut written = 0;
            let mut ended = Ok(());
            let began = closing::during(core, me, target, to.fd, &mut || {
                ended = splice::write(core, me, to, &bytes, &mut written);
            });
            ruby::protect(|| rb_sys::rb_str_drop_bytes(string, written as _))
                .map_err(Raise::Jump)?;
            began?;
            match ended.map_err(|ended| splice::failure(ended, || timed_out(Failure::Timeout))) {
                Ok(()) => Ok(NIL),
                Err(Ok(errno)) => Err(Raise::errno_with(-errno, "write")),
                Err(Err(failure)) => answer(Err(failure)),
            }
        }
    })
}

/// Has bytes be the next that are read from an IO.
unsafe fn put_back(source: VALUE, bytes: &[u8]) {
    let length = bytes.len() as i64;
    let start = bytes.as_ptr();
    // SAFETY: the bytes are copied; an exception (the IO is closed) is dropped, since another is under way.
    unsafe {
        let put = ruby::protect(|| {
            let file = open_file(source);
            let fd = ruby::rb_io_descriptor(source);
            let reads_ahead = rb_sys::rb_io_read_pending(file) != 0;
            if reads_ahead || libc::lseek(fd, -length, libc::SEEK_CUR) < 0 {
                make_room(file, length as c_int);
                let string = rb_sys::rb_str_new(start.cast(), length as _);
                ruby::funcall(source, ruby::id("ungetbyte"), &[string]);
            }
            NIL
        });
        if put.is_err() {
            ruby::take_exception();
        }
    }
}

/// rb_io_internal_buffer (ruby/io.h): the bytes that Ruby has read ahead are at `pointer + offset`.
#[repr(C, packed)]
struct ReadBuffer {
    pointer: *mut c_char,
    offset: c_int,
    length: c_int,
    capacity: c_int,
}

/// Makes an IO's buffer large enough for bytes to be put in front: IO#ungetbyte refuses more than it has room for
/// once there is one (io.c, io_ungetbytes). May raise.
unsafe fn make_room(file: *mut rb_sys::rb_io_t, more: c_int) {
    // SAFETY: the field is of that struct, which Ruby's own functions allocate and free; the old buffer's bytes are
    // copied before it is freed.
    unsafe {
        let buffer = (&raw mut (*file).rbuf).cast::<ReadBuffer>();
        let (pointer, length) = ((*buffer).pointer, (*buffer).length);
        if pointer.is_null() || (*buffer).capacity >= length + more {
            return;
        }
        let room = rb_sys::ruby_xmalloc((length + more) as _).cast::<c_char>();
        let offset = (*buffer).offset as usize;
        room.copy_from_nonoverlapping(pointer.add(offset), length as usize);
        (*buffer).pointer = room;
        (*buffer).offset = 0;
        (*buffer).capacity = length + more;
        rb_sys::ruby_xfree(pointer.cast());
    }
}

/// UM::FiberScheduler#put_back(io, string): has a String's bytes be the next that are read from an IO.
fn put_back_string(ruby: &Ruby, _this: Value, io: Value, string: Value) -> Result<Value, Error> {
    let (io, string) = (io.as_raw(), string.as_raw());
    settle(ruby, || {
        // SAFETY: the arguments are on Ruby's stack; the bytes are copied.
        unsafe {
            let string = arguments::string(string, "string")?;
            let bytes = ruby::string_bytes(&string).to_vec();
            put_back(io, &bytes);
            Ok(NIL)
        }
    })
}

/// Whether Ruby has read bytes of an IO that the program has not: those do not go through the kernel.
///
/// @method UringMachine::FiberScheduler.read_ahead?(io)
/// @param io [IO]
/// @return [Boolean]
/// @example
///   UM::FiberScheduler.read_ahead?(socket) #=> false
fn is_read_ahead(_class: Value, io: Value) -> Value {
    let io = io.as_raw();
    let body = || {
        // SAFETY: the type is checked; may raise for a closed IO.
        unsafe {
            if !ruby::is_a(io, rb_sys::rb_cIO) {
                return ruby::FALSE;
            }
            let pointer = (*(io as *const rb_sys::RFile)).fptr;
            ruby::boolean(!pointer.is_null() && rb_sys::rb_io_read_pending(pointer) != 0)
        }
    };
    as_value(body())
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_splice", method!(io_splice, -1))?;
    class.define_private_method("write_off", method!(write_off, 2))?;
    class.define_private_method("put_back", method!(put_back_string, 2))?;
    class.define_singleton_method("read_ahead?", method!(is_read_ahead, 1))?;
    Ok(())
}
