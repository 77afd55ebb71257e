//! fiber_interrupt: an exception for a fiber that waits, from Ruby 4.0 on the one that closes what it waits for.

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Value};
use uringmachine_runtime::tasks::State;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::Pending;
use crate::ruby::method::as_value;
use crate::ruby::this::This;
use crate::ruby::NIL;

/// Raises in a fiber that waits, because its IO is being closed. From any thread.
///
/// @method UringMachine::FiberScheduler#fiber_interrupt(fiber, exception)
/// @param fiber [Fiber, #raise] from Ruby 4.1 on, whatever answers alive? and raise
/// @param exception [Exception]
/// @return [nil]
/// @example
///   scheduler.fiber_interrupt(fiber, IOError.new("stream closed in another thread"))
fn fiber_interrupt(this: This<Scheduler>, fiber: Value, exception: Value) -> Value {
    let (fiber, exception) = (fiber.as_raw(), exception.as_raw());
    let body = || {
        // SAFETY: as in `unblock`.
        unsafe {
            let Some(core) = this.core_from_anywhere() else {
                return NIL;
            };
            match (*core).find_waiting(fiber) {
                Some(task) => match (*core).driver.tasks.state(task) {
                    Some(State::Waiting | State::Ready(_)) => {
                        (*core).interrupt_by_close(task, exception);
                    }
                    _ => (*core).raises.push((fiber, Pending::Exception(exception))),
                },
                None => (*core).raises.push((fiber, Pending::Exception(exception))),
            }
            (*core).notify();
            NIL
        }
    };
    as_value(body())
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("fiber_interrupt", method!(fiber_interrupt, 2))?;
    Ok(())
}
