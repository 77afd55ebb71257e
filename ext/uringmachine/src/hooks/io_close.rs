//! io_close (Ruby 4.0).

use std::os::fd::RawFd;

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::operate::Failure;
use crate::machine::{registry, thread_call, Machine};
use crate::os::fd::Fd;
use crate::os::{socket, Errno};
use crate::ruby::call::called_from;
use crate::ruby::this::This;
use crate::ruby::{as_fixnum, io, Raise, Value};
use crate::tls;

/// Closes a descriptor now, so that it is closed when IO#close returns. Also called from finalizers, at any
/// point: it neither switches fibers nor raises.
///
/// @method UringMachine::FiberScheduler#io_close(fd)
/// @param fd [Integer] file descriptor
/// @return [Boolean] false leaves the closing, and the report of an error, to Ruby
/// @example
///   scheduler.io_close(fd) #=> true
fn io_close(this: This<Scheduler>, descriptor: Value) -> Result<bool, Raise> {
    let fd = match as_fixnum(descriptor) {
        Some(fd) => fd as i32,
        None => io::descriptor(descriptor)?,
    };
    let mut may_linger = true;
    let mut is_slow = false;
    if let Some(machine) = this.machine_from_anywhere() {
        let descriptors = &machine.parts().descriptors;
        may_linger = !descriptors.is_no_socket(fd);
        is_slow = descriptors.is_slow_file(fd);
    }
    // Ruby knows whom it concerns that waits through the same IO object: they have ended.
    tls::end_waits(fd);
    registry::forget(fd);
    let may_wait = is_slow || (may_linger && socket::lingers(fd));
    if may_wait && called_from(b"io_close", &[b"close"]) {
        if let Ok(machine) = this.machine() {
            return close_on_thread(machine, fd);
        }
    }
    // Only EBADF leaves it open, and that is for Ruby to say.
    Ok(Fd(fd).close() != Err(Errno(libc::EBADF)))
}

/// Has a thread do the waiting. (The ring would not wait: it lets go of the file before it is released.) Only
/// from IO#close: a finalizer must not switch fibers.
fn close_on_thread(machine: &Machine, fd: RawFd) -> Result<bool, Raise> {
    let me = machine.current_task();
    // It is closed all the same when a signal interrupts it, and must not be closed again (close(2), NOTES).
    let close = move || match Fd(fd).close() {
        Ok(()) => 0,
        Err(errno) => errno.negative(),
    };
    // Ruby has forgotten the descriptor: if anything was raised first, nobody would close it.
    match thread_call::call_anyway(machine, me, close) {
        // There was no thread to be had.
        Ok(result) if result == -libc::EAGAIN => {
            let _ = Fd(fd).close();
            Ok(true)
        }
        Ok(result) => Ok(result != -libc::EBADF),
        Err(Failure::Raise(raise)) => Err(raise),
        Err(_) => Ok(true),
    }
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_close", method!(io_close, 1))?;
    Ok(())
}
