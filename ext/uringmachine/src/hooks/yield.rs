//! yield: others go first.

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::switch;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::NIL;

/// Lets other fibers run. Ruby 4.0 calls it while an interrupt is masked.
///
/// @method UringMachine::FiberScheduler#yield
/// @return [nil]
/// @example
///   scheduler.yield
fn yield_(ruby: &Ruby, this: This<Scheduler>) -> Result<Value, Error> {
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let core = this.core()?;
            let me = (*core).current_task();
            switch::yield_now(core, me)?;
            Ok(NIL)
        }
    })
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("yield", method!(yield_, 0))?;
    Ok(())
}
