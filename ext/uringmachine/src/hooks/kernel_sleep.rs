//! kernel_sleep: Kernel#sleep.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::ruby::arguments::Arguments;
use crate::ruby::this::This;
use crate::ruby::{duration, Outcome, FALSE, TRUE};

/// Sleeps: Kernel#sleep, Mutex#sleep, ConditionVariable#wait. Zero lets other fibers run; nil waits for
/// `unblock`.
///
/// @method UringMachine::FiberScheduler#kernel_sleep(duration = nil)
/// @param duration [Numeric, nil] seconds
/// @return [true]
/// @raise [TypeError] if duration is no number
/// @raise [ArgumentError] if it is negative
/// @example
///   scheduler.kernel_sleep(0.1)
fn kernel_sleep(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let machine = this.machine()?;
    let arguments = Arguments::of(arguments, 0..=1)?;
    let duration = match arguments.all() {
        [] => None,
        [duration, ..] => duration::nanoseconds(*duration)?,
    };
    let me = machine.current_task();
    if duration == Some(0) {
        machine.yield_now(me)?;
        return Ok(TRUE);
    }
    {
        let mut parts = machine.parts();
        let waiter = parts.waiter(me);
        // A wake-up that came between the registration with a ConditionVariable, or the release
        // of a Mutex, and this hook.
        if std::mem::replace(&mut waiter.unblocked_by, FALSE) != FALSE {
            parts.finish_wait(me);
            return Ok(TRUE);
        }
        waiter.blocked = true;
    }
    machine.pause(me, duration.map(duration::from_now))?;
    Ok(TRUE)
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("kernel_sleep", method!(kernel_sleep, -1))?;
    Ok(())
}
