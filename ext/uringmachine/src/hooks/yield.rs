//! yield: others go first.

//! kernel_sleep, yield, timeout_after.

use crate::classes::fiber_scheduler::get;
use crate::machine::switch;
use crate::ruby::{self, NIL, VALUE};

/// Lets other fibers run. Ruby 4.0 calls it while an interrupt is masked.
///
/// @method UringMachine::FiberScheduler#yield
/// @return [nil]
/// @example
///   scheduler.yield
unsafe extern "C" fn yield_(this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        ruby::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            switch::yield_now(core, me)?;
            Ok(NIL)
        })
    }
}

/// Defines the hook.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions take what their arity says.
    unsafe {
        ruby::define_method(class, c"yield", yield_ as *const (), 0);
    }
}
