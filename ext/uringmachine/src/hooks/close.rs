//! io_close (Ruby 4.0).

use crate::scheduler::get;
use crate::sys::{self, FALSE, TRUE, VALUE};

/// Closes a descriptor now, so that it is closed when IO#close returns. Also called from finalizers, at any
/// point: it neither switches fibers nor raises.
///
/// @method UringMachine::FiberScheduler#io_close(fd)
/// @param fd [Integer] file descriptor
/// @return [Boolean] false leaves the closing, and the report of an error, to Ruby
/// @example
///   scheduler.io_close(fd) #=> true
unsafe extern "C" fn io_close(this: VALUE, descriptor: VALUE) -> VALUE {
    // SAFETY: the type of `this` is checked; the descriptor is the caller's to close.
    unsafe {
        let fd = match sys::as_fixnum(descriptor) {
            Some(fd) => fd as i32,
            None => sys::rb_io_descriptor(descriptor),
        };
        if let Some(core) = get(this).core_from_anywhere() {
            (*core).descriptors.forget(fd);
        }
        // Only EBADF leaves it open, and that is for Ruby to say.
        if libc::close(fd) != 0 && *libc::__errno_location() == libc::EBADF {
            return FALSE;
        }
        TRUE
    }
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: the function takes what its arity says.
    unsafe { sys::define_method(class, c"io_close", io_close as *const (), 1) };
}
