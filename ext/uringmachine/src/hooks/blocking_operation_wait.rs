//! blocking_operation_wait: what has no operation in io_uring.

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::switch;
use crate::off_thread::ruby_threads;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, version};

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
fn blocking_operation_wait(
    ruby: &Ruby,
    this: This<Scheduler>,
    operation: Value,
) -> Result<Value, Error> {
    let operation = operation.as_raw();
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let core = this.core()?;
            let me = (*core).current_task();
            if is_close() {
                return ruby_threads::finish(core, me, operation);
            }
            switch::take_turns(core, me)?;
            ruby_threads::wait(core, me, operation)
        }
    })
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method(
        "blocking_operation_wait",
        method!(blocking_operation_wait, 1),
    )?;
    Ok(())
}
