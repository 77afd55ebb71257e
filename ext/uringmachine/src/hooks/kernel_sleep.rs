//! kernel_sleep: Kernel#sleep.

//! kernel_sleep, yield, timeout_after.

use crate::classes::fiber_scheduler::get;
use crate::machine::switch;
use crate::ruby::{self, duration, Raise, TRUE, VALUE};
use std::ffi::c_int;

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
unsafe extern "C" fn kernel_sleep(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        ruby::method(|| {
            let core = get(this).core()?;
            let duration = match argc {
                0 => None,
                1 => duration::nanoseconds(*argv)?,
                _ => {
                    return Err(Raise::argument(&format!(
                        "wrong number of arguments (given {argc}, expected 0..1)"
                    )))
                }
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
        })
    }
}

/// Defines the hook.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions take what their arity says.
    unsafe {
        ruby::define_method(class, c"kernel_sleep", kernel_sleep as *const (), -1);
    }
}
