//! io_write and io_pwrite. What they do is in [`super::io_transfer`].

use magnus::{method, Error, Module, RClass};

use super::io_transfer::transfer;
use crate::classes::fiber_scheduler::Scheduler;
use crate::ruby::this::This;
use crate::ruby::version;
use crate::ruby::Outcome;

/// Writes a buffer to an IO: all of it from `offset` on. `io.timeout` is honoured.
///
/// @method UringMachine::FiberScheduler#io_write(io, buffer, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno if nothing was written
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_write(io, buffer, 0, 0) #=> 5
fn io_write(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    transfer(this, arguments, false, true)
}

/// Writes as `io_write`, at a position of the file. Not on Ruby 3.4, which would call it without its lock.
///
/// @method UringMachine::FiberScheduler#io_pwrite(io, buffer, from, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file, in bytes
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno if nothing was written
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_pwrite(file, buffer, 4096, 0, 0) #=> 4096
fn io_pwrite(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    transfer(this, arguments, true, true)
}

/// Defines the hooks.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_write", method!(io_write, -1))?;
    if version::has_pwrite() {
        class.define_method("io_pwrite", method!(io_pwrite, -1))?;
    }
    Ok(())
}
