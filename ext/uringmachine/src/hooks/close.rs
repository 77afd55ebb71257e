//! close, scheduler_close and run: the end of a scheduler.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::ending::thread_is_ending;
use crate::machine::owner;
use crate::ruby::call::call_if_there;
use crate::ruby::this::This;
use crate::ruby::{call, classes, fiber, Outcome, Raise, Value, NIL};

/// Drives the fibers until none waits.
///
/// @method UringMachine::FiberScheduler#run
/// @return [true]
/// @example
///   scheduler.run
fn run(this: This<Scheduler>) -> Result<bool, Raise> {
    this.machine()?.run_all()?;
    Ok(true)
}

/// Waits for the fibers, or unwinds them if the thread is being ended, and gives the ring back. Ruby calls
/// it when the scheduler is replaced, and at the thread's end.
///
/// @method UringMachine::FiberScheduler#scheduler_close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   Fiber.set_scheduler(nil) # calls it
fn scheduler_close(this: This<Scheduler>) -> Outcome {
    if this.closed.get() {
        return Err(Raise::new(
            classes::runtime_error(),
            "Scheduler already closed!",
        ));
    }
    let is_its = (this.known_machine()).is_some_and(|machine| !machine.is_forked());
    if !is_its {
        this.closed.set(true);
        return Ok(NIL);
    }
    let machine = match this.machine() {
        Ok(machine) => machine,
        Err(raise) => {
            this.closed.set(true);
            return Err(raise);
        }
    };
    let ended = if thread_is_ending() {
        machine.terminate_all()
    } else {
        machine.run_all().map_err(|raise| machine.unwind_all(raise))
    };
    this.closed.set(true);
    owner::shut_down(machine);
    ended.map(|()| NIL)
}

/// Closes the scheduler: as `Fiber.set_scheduler(nil)` where it is installed.
///
/// @method UringMachine::FiberScheduler#close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   scheduler.close
fn close(this: This<Scheduler>) -> Outcome {
    // What is installed may be an object that delegates to this one.
    let installed = fiber::scheduler();
    if is_or_delegates_to(installed, this.value())? {
        return fiber::set_scheduler(NIL);
    }
    call(this.value(), "scheduler_close", &[])
}

fn is_or_delegates_to(installed: Value, scheduler: Value) -> Result<bool, Raise> {
    Ok(installed == scheduler
        || (installed != NIL && call_if_there(installed, "uring_scheduler")? == Some(scheduler)))
}

/// Defines the hooks.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("run", method!(run, 0))?;
    class.define_method("close", method!(close, 0))?;
    class.define_method("scheduler_close", method!(scheduler_close, 0))?;
    Ok(())
}
