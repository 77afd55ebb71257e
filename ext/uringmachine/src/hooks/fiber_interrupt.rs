//! fiber_interrupt: an exception for a fiber that waits, from Ruby 4.0 on the one that closes what it waits for.

//! block and unblock (Mutex, Queue, Thread#join …), and fiber_interrupt (IO#close).

use crate::classes::fiber_scheduler::get;
use crate::machine::Pending;
use crate::ruby::{self, NIL, VALUE};
use uringmachine_runtime::tasks::State;

/// Raises in a fiber that waits, because its IO is being closed. From any thread.
///
/// @method UringMachine::FiberScheduler#fiber_interrupt(fiber, exception)
/// @param fiber [Fiber, #raise] from Ruby 4.1 on, whatever answers alive? and raise
/// @param exception [Exception]
/// @return [nil]
/// @example
///   scheduler.fiber_interrupt(fiber, IOError.new("stream closed in another thread"))
unsafe extern "C" fn fiber_interrupt(this: VALUE, fiber: VALUE, exception: VALUE) -> VALUE {
    // SAFETY: as in `unblock`.
    unsafe {
        let Some(core) = get(this).core_from_anywhere() else {
            return NIL;
        };
        match (*core).find_waiting(fiber) {
            Some(task) => match (*core).machine.tasks.state(task) {
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
}

/// Defines the hook.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions take what their arity says.
    unsafe {
        ruby::define_method(class, c"fiber_interrupt", fiber_interrupt as *const (), 2);
    }
}
