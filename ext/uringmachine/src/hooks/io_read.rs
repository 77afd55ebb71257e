//! io_read and io_pread. What they do is in [`super::io_transfer`].

use std::ffi::c_int;

use super::io_transfer::transfer;
use crate::ruby::{self, VALUE};

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
unsafe extern "C" fn io_read(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, false, false) }
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
unsafe extern "C" fn io_pread(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, true, false) }
}

/// Defines the hooks.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions take what their arity says.
    unsafe {
        ruby::define_method(class, c"io_read", io_read as *const (), -1);
        ruby::define_method(class, c"io_pread", io_pread as *const (), -1);
    }
}
