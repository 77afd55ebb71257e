//! yield: others go first.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::ruby::this::This;
use crate::ruby::Raise;

/// Lets other fibers run. Ruby 4.0 calls it while an interrupt is masked.
///
/// @method UringMachine::FiberScheduler#yield
/// @return [nil]
/// @example
///   scheduler.yield
fn yield_(this: This<Scheduler>) -> Result<(), Raise> {
    let machine = this.machine()?;
    machine.yield_now(machine.current_task())
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("yield", method!(yield_, 0))?;
    Ok(())
}
