//! io_read and io_pread. What they do is in [`super::io_transfer`].

use magnus::{method, Error, Module, RClass};

use super::io_transfer::transfer;
use crate::classes::fiber_scheduler::Scheduler;
use crate::ruby::this::This;
use crate::ruby::Outcome;

/// Reads from an IO into a buffer. `io.timeout` is honoured.
///
/// @method UringMachine::FiberScheduler#io_read(io, buffer, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_read(io, buffer, 0, 0) #=> 5
fn io_read(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    transfer(this, arguments, false, false)
}

/// Reads as `io_read`, at a position of the file.
///
/// @method UringMachine::FiberScheduler#io_pread(io, buffer, from, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file, in bytes
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_pread(file, buffer, 4096, 0, 0) #=> 4096
fn io_pread(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    transfer(this, arguments, true, false)
}

/// Defines the hooks.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_read", method!(io_read, -1))?;
    class.define_method("io_pread", method!(io_pread, -1))?;
    Ok(())
}
