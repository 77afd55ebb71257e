//! io_close (Ruby 4.0).

use std::os::fd::RawFd;

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Ruby, Value};
use nix::errno::Errno;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::switch::Failure;
use crate::machine::{registry, thread_call, Core};
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, FALSE, TRUE};
use crate::tls;

/// Closes a descriptor now, so that it is closed when IO#close returns. Also called from finalizers, at any
/// point: it neither switches fibers nor raises.
///
/// @method UringMachine::FiberScheduler#io_close(fd)
/// @param fd [Integer] file descriptor
/// @return [Boolean] false leaves the closing, and the report of an error, to Ruby
/// @example
///   scheduler.io_close(fd) #=> true
fn io_close(ruby: &Ruby, this: This<Scheduler>, descriptor: Value) -> Result<Value, Error> {
    let descriptor = descriptor.as_raw();
    settle(ruby, || {
        // SAFETY: the type of `this` is checked; the descriptor is the caller's to close.
        unsafe {
            let fd = match ruby::as_fixnum(descriptor) {
                Some(fd) => fd as i32,
                None => ruby::descriptor(descriptor).map_err(Raise::Jump)?,
            };
            let mut may_linger = true;
            let mut is_slow = false;
            if let Some(core) = this.core_from_anywhere() {
                may_linger = !(*core).descriptors.is_no_socket(fd);
                is_slow = (*core).descriptors.is_slow_file(fd);
            }
            // Ruby knows whom it concerns that waits through the same IO object: they have ended.
            tls::end_waits(fd);
            registry::forget(fd);
            if (is_slow || (may_linger && lingers(fd))) && ruby::called_from(b"io_close", b"close")
            {
                if let Ok(core) = this.core() {
                    return close_on_thread(core, fd);
                }
            }
            // Only EBADF leaves it open, and that is for Ruby to say.
            if libc::close(fd) != 0 && Errno::last_raw() == libc::EBADF {
                return Ok(FALSE);
            }
            Ok(TRUE)
        }
    })
}

/// Whether closing a socket waits until what was written has been sent (SO_LINGER, socket(7)).
fn lingers(fd: RawFd) -> bool {
    let mut linger = libc::linger {
        l_onoff: 0,
        l_linger: 0,
    };
    let mut length = std::mem::size_of::<libc::linger>() as libc::socklen_t;
    // SAFETY: the value has the length given; what is no socket is refused.
    let result = unsafe {
        let value = (&raw mut linger).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_LINGER, value, &mut length)
    };
    result == 0 && linger.l_onoff != 0 && linger.l_linger > 0
}

/// Has a thread do the waiting. (The ring would not wait: it lets go of the file before it is released.) Only
/// from IO#close: a finalizer must not switch fibers.
unsafe fn close_on_thread(core: *mut Core, fd: RawFd) -> ruby::Outcome {
    // SAFETY: see `switch`; the descriptor is the caller's to close.
    unsafe {
        let me = (*core).current_task();
        let close = move || match libc::close(fd) {
            0 => 0,
            _ => match Errno::last_raw() {
                // It is closed all the same, and must not be closed again (close(2), NOTES).
                libc::EINTR => 0,
                errno => -errno,
            },
        };
        // Ruby has forgotten the descriptor: if anything was raised first, nobody would close it.
        match thread_call::call_anyway(core, me, close) {
            // There was no thread to be had.
            Ok(result) if result == -libc::EAGAIN => {
                libc::close(fd);
                Ok(TRUE)
            }
            Ok(result) => Ok(ruby::boolean(result != -libc::EBADF)),
            Err(Failure::Raise(raise)) => Err(raise),
            Err(_) => Ok(TRUE),
        }
    }
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_close", method!(io_close, 1))?;
    Ok(())
}
