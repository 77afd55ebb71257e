//! fiber: Fiber.schedule.

use magnus::{method, Error, Module, RClass};
use uringmachine_runtime::Wake;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::trace::For;
use crate::machine::wait::Wait;
use crate::ruby::fiber::{new_by_ruby, transfer};
use crate::ruby::this::This;
use crate::ruby::{collections, is_hash, options, values, Name, Outcome, Raise, Value};

/// Starts a fiber at once and returns it when it first waits, or ends. Fiber.schedule calls it.
///
/// @method UringMachine::FiberScheduler#fiber(storage: nil, &block)
/// @param storage [Hash, true, nil] as of Fiber.new
/// @return [Fiber]
/// @raise [ArgumentError] without a block
/// @example
///   Fiber.schedule { sleep 1 }
fn fiber(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let machine = this.machine()?;
    let (block, fiber) = new_fiber(this.body.get(), storage(values(arguments))?)?;
    let me = machine.current_task();
    let place = machine.trace_place(block)?;
    let mut parts = machine.parts();
    let task = parts.insert(fiber, true);
    parts.trace_start(fiber, place, None);
    // Whoever started the fiber goes on as soon as it waits.
    let id = parts.driver.tasks.begin_wait(me);
    parts.driver.tasks.wake_first(id, Wake::Complete);
    let is_root = parts.fibers.root.is_none() && !parts.waiter(me).scheduled;
    if is_root {
        parts.fibers.root = Some(me);
    }
    parts.fibers.current = task;
    parts.turns.has_begun();
    parts.starting = block;
    if let Some(trace) = &mut parts.trace {
        trace.awaits(me, For::Word("Fiber.schedule"));
    }
    drop(parts);
    let wait = Wait::begun(machine, me, id);
    let woken = wait.after(|| transfer(fiber, &[this.value()]).map(drop));
    if is_root {
        machine.parts().fibers.root = None;
    }
    woken?;
    Ok(fiber)
}

/// The `storage:` of `Fiber.schedule(storage: …)`, as Fiber.new takes it.
fn storage(arguments: &[Value]) -> Result<Option<Value>, Raise> {
    match arguments {
        [] => Ok(None),
        [options] if is_hash(*options) => Ok(collections::option(*options, "storage")),
        _ => Err(Raise::argument(&format!(
            "wrong number of arguments (given {}, expected 0)",
            arguments.len()
        ))),
    }
}

/// A fiber that does not block, with a body.
fn new_fiber(body: Value, storage: Option<Value>) -> Result<(Value, Value), Raise> {
    static NEW: Name = Name::new("new");
    let new = NEW.id();
    let options = match storage {
        None => None,
        Some(storage) => Some(options(&[("storage", storage)])?),
    };
    new_by_ruby(new, options, body)
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("fiber", method!(fiber, -1))?;
    Ok(())
}
