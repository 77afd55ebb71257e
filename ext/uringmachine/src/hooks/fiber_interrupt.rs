//! fiber_interrupt: an exception for a fiber that waits, from Ruby 4.0 on the one that closes what it waits for.

use magnus::{method, Error, Module, RClass};
use uringmachine_runtime::tasks::State;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::Pending;
use crate::ruby::this::This;
use crate::ruby::Value;

/// Raises in a fiber that waits, because its IO is being closed. From any thread.
///
/// @method UringMachine::FiberScheduler#fiber_interrupt(fiber, exception)
/// @param fiber [Fiber, #raise] from Ruby 4.1 on, whatever answers alive? and raise
/// @param exception [Exception]
/// @return [nil]
/// @example
///   scheduler.fiber_interrupt(fiber, IOError.new("stream closed in another thread"))
fn fiber_interrupt(this: This<Scheduler>, fiber: Value, exception: Value) {
    let Some(machine) = this.machine_from_anywhere() else {
        return;
    };
    {
        let mut parts = machine.parts();
        let waits = |task| parts.driver.tasks.state(task) != Some(State::Running);
        match parts.find_waiting(fiber).filter(|task| waits(*task)) {
            Some(task) => parts.interrupt_by_close(task, exception),
            None => parts.raises.push((fiber, Pending::Exception(exception))),
        }
    }
    machine.notify();
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("fiber_interrupt", method!(fiber_interrupt, 2))?;
    Ok(())
}
