//! kernel_sleep: Kernel#sleep.

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::switch;
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, TRUE};

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
fn kernel_sleep(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let core = this.core()?;
            let arguments = Arguments::of(arguments, 0..=1)?;
            let duration = match arguments.all() {
                [] => None,
                [duration, ..] => duration::nanoseconds(*duration)?,
            };
            let me = (*core).current_task();
            if duration == Some(0) {
                switch::yield_now(core, me)?;
                return Ok(TRUE);
            }
            // A wake-up that came between the registration with a ConditionVariable, or the release
            // of a Mutex, and this hook.
            if std::mem::replace(&mut (*core).waiter(me).unblocked_by, ruby::FALSE) != ruby::FALSE {
                (*core).finish_wait(me);
                return Ok(TRUE);
            }
            (*core).waiter(me).blocked = true;
            switch::pause(core, me, duration.map(duration::from_now))?;
            Ok(TRUE)
        }
    })
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("kernel_sleep", method!(kernel_sleep, -1))?;
    Ok(())
}
