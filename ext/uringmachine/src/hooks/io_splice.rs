//! io_splice, beneath IO.copy_stream (lib/uringmachine/copy.rb).

use magnus::{method, Error, Module, Object, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::hooks::io_transfer::timed_out;
use crate::machine::caller::answer;
use crate::machine::closing;
use crate::machine::operate::Failure;
use crate::machine::splice::{self, End, Moved};
use crate::os::fd::Fd;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::this::This;
use crate::ruby::{
    boolean, buffered, duration, fixnum, io, number, string, Outcome, Raise, Value, NIL,
};

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
fn io_splice(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 2..=4)?;
    let machine = this.machine()?;
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
    let source = io::open_for_reading(arguments.get(0))?;
    let target = io::open_for_writing(arguments.get(1))?;
    let (from, to) = (end(source)?, end(target)?);
    let me = machine.current_task();
    let mut moved = None;
    let mut ended = Ok(());
    let began = closing::during(machine, me, source, from.fd, &mut || {
        ended = closing::during(machine, me, target, to.fd, &mut || {
            moved = Some(splice::run(machine, me, from, to, length, offset));
        });
    });
    let result = moved.map(|moved| finish(source, offset.is_some(), moved));
    began.and(ended)?;
    result.unwrap_or(Ok(NIL))
}

fn end(io: Value) -> Result<End, Raise> {
    let (fd, timeout) = io::descriptor_and_timeout(io)?;
    Ok(End {
        fd,
        timeout: duration::nanoseconds(timeout)?,
    })
}

/// Puts back what has not arrived, and returns the count, the errno or what is to be raised.
fn finish(source: Value, positioned: bool, moved: Moved) -> Outcome {
    let Moved { count, left, ended } = moved;
    if !left.is_empty() && !positioned {
        // An exception (the IO is closed) is dropped, since another is under way.
        let _ = put_back(source, &left);
    }
    let Err(ended) = ended else {
        return Ok(fixnum(count as i64));
    };
    match splice::failure(ended, || timed_out(Failure::Timeout)) {
        // An error after progress shows at the next operation.
        Ok(_) if count > 0 => Ok(fixnum(count as i64)),
        Ok(errno) => Ok(number(errno)),
        Err(failure) => answer(Err(failure)),
    }
}

/// UM::FiberScheduler#write_off(io, string): writes a String, and takes off it what has been written, also when it
/// raises.
fn write_off(this: This<Scheduler>, io: Value, string: Value) -> Outcome {
    let machine = this.machine()?;
    let string = arguments::string(string, "string")?;
    let target = io::open_for_writing(io)?;
    let to = end(target)?;
    let me = machine.current_task();
    // Copied, so that they stay where they are.
    let bytes = string::copy(string);
    let mut written = 0;
    let mut ended = Ok(());
    let began = closing::during(machine, me, target, to.fd, &mut || {
        ended = splice::write(machine, me, to, &bytes, &mut written);
    });
    string::drop_first(string, written)?;
    began?;
    match ended.map_err(|ended| splice::failure(ended, || timed_out(Failure::Timeout))) {
        Ok(()) => Ok(NIL),
        Err(Ok(errno)) => Err(Raise::errno_with(-errno, "write")),
        Err(Err(failure)) => answer(Err(failure)),
    }
}

/// Has bytes be the next that are read from an IO.
fn put_back(source: Value, bytes: &[u8]) -> Result<(), Raise> {
    let fd = io::descriptor(source)?;
    let goes_back = || Fd(fd).seek_by(-(bytes.len() as i64)).is_ok();
    if buffered::has_read_ahead(source) || !goes_back() {
        buffered::unread(source, bytes)?;
    }
    Ok(())
}

/// UM::FiberScheduler#put_back(io, string): has a String's bytes be the next that are read from an IO.
fn put_back_string(_this: Value, io: Value, string: Value) -> Result<(), Raise> {
    let string = arguments::string(string, "string")?;
    // As `finish`.
    let _ = put_back(io, &string::copy(string));
    Ok(())
}

/// Whether Ruby has read bytes of an IO that the program has not: those do not go through the kernel.
///
/// @method UringMachine::FiberScheduler.read_ahead?(io)
/// @param io [IO]
/// @return [Boolean]
/// @example
///   UM::FiberScheduler.read_ahead?(socket) #=> false
fn is_read_ahead(_class: Value, io: Value) -> Value {
    boolean(buffered::has_read_ahead(io))
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_splice", method!(io_splice, -1))?;
    class.define_private_method("write_off", method!(write_off, 2))?;
    class.define_private_method("put_back", method!(put_back_string, 2))?;
    class.define_singleton_method("read_ahead?", method!(is_read_ahead, 1))?;
    Ok(())
}
