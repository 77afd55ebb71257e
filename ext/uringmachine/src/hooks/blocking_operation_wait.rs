//! What has no operation in io_uring: address_resolve and blocking_operation_wait.

use crate::classes::fiber_scheduler::get;
use crate::machine::switch;
use crate::off_thread::ruby_threads;
use crate::ruby::{self, version, VALUE};

/// Whether the operation is the close of an IO, which has forgotten its descriptor by now: if anything is raised first,
/// nobody closes it. From Ruby 4.0 on `io_close` is called for it.
unsafe fn is_close() -> bool {
    const CLOSES: [&[u8]; 4] = [b"close", b"close_read", b"close_write", b"reopen"];
    // SAFETY: within the hook.
    !version::has_cause() && unsafe { ruby::called_from_any(b"blocking_operation_wait", &CLOSES) }
}

/// Runs a blocking operation on a worker thread while other fibers run here.
///
/// @method UringMachine::FiberScheduler#blocking_operation_wait(operation)
/// @param operation [#call] what Ruby hands over
/// @return [Object] ignored by Ruby; nil leaves the operation to it
/// @example
///   # called by Ruby for zlib, File.stat and others
unsafe extern "C" fn blocking_operation_wait(this: VALUE, operation: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        ruby::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            if is_close() {
                return ruby_threads::finish(core, me, operation);
            }
            switch::take_turns(core, me)?;
            ruby_threads::wait(core, me, operation)
        })
    }
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        ruby::define_method(
            class,
            c"blocking_operation_wait",
            blocking_operation_wait as *const (),
            1,
        );
    }
}
