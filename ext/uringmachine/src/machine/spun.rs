//! The end of a fiber: its result, and who is told.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::OnceLock;

use super::{report, Machine};
use crate::ruby::{
    call, classes, collections, errors, is_a, set_variable, variable, Name, Outcome, Raise, Shared,
    Value, NIL, TRUE,
};

/// How a value is pushed to a UM::Queue, which is a class above.
pub static PUSH: OnceLock<fn(Value, Value)> = OnceLock::new();

/// What a fiber of a machine keeps of itself, in instance variables that no program's collide with.
pub static RESULT: Name = Name::new("@um_result");
pub static DONE: Name = Name::new("@um_done");
pub static KILLED: Name = Name::new("@um_killed");
pub static LISTENERS: Name = Name::new("@um_done_listeners");

/// Notes that a spun fiber was ended before it began: by Fiber#kill.
pub fn end_unstarted(machine: &Machine, fiber: Value) -> Result<(), Raise> {
    end(Some(machine), fiber, Ok(NIL))
}

/// Whether anybody has ever waited for a fiber so: to look for the variable costs a tenth of a fiber.
pub static ANY_LISTENERS: AtomicBool = AtomicBool::new(false);

/// The end of a fiber of Fiber.schedule: its result is kept for whoever waits for it, and for nobody else, since a variable
/// costs a tenth of a fiber.
pub fn end_scheduled(fiber: Value, result: &Outcome) -> Result<(), Raise> {
    if tell_listeners(fiber) {
        if let Ok(value) | Err(Raise::Exception(value)) = result {
            set_variable(fiber, RESULT.id(), *value)?;
        }
    }
    Ok(())
}

/// Tells whoever waits for a fiber that it ends; says whether there is anybody.
pub fn tell_listeners(fiber: Value) -> bool {
    if !ANY_LISTENERS.load(Ordering::Relaxed) {
        return false;
    }
    let listeners = variable(fiber, LISTENERS.id());
    let (true, Some(push)) = (listeners != NIL, PUSH.get()) else {
        return false;
    };
    for queue in collections::entries(listeners) {
        push(queue, fiber);
    }
    true
}

/// Notes how a fiber ended and tells whoever waits for it. What must go on unwinding is returned.
pub fn end(machine: Option<&Machine>, fiber: Value, result: Outcome) -> Result<(), Raise> {
    let (value, unwinds) = match result {
        Ok(value) => (value, None),
        Err(Raise::Exception(exception)) => {
            let fatal = report::is_fatal(exception);
            (exception, fatal.then_some(Raise::Exception(exception)))
        }
        Err(raise) => (NIL, Some(raise)),
    };
    if value != NIL {
        set_variable(fiber, RESULT.id(), value)?;
    }
    set_variable(fiber, DONE.id(), TRUE)?;
    let failed = is_a(value, classes::exception()) && unwinds.is_none();
    let mut reported = Ok(());
    if !tell_listeners(fiber) && failed && !is_a(value, errors::terminate_class()) {
        reported = report::report(machine, value);
    }
    if let Some(machine) = machine {
        let mut parts = machine.parts();
        if let Some(task) = parts.find(fiber) {
            parts.remove(task);
        }
    }
    match unwinds {
        Some(raise) => Err(raise),
        None => reported,
    }
}

/// Ruby's own Fiber#kill, unbound.
pub static KILL: Shared = Shared::new();

/// Fiber#kill for a caller that the fiber's end switches back to: the root fiber. Ruby kills a fiber anew whenever
/// it is switched to, so its ensure blocks wait best where nothing else runs.
pub fn kill(fiber: Value) -> Outcome {
    call(KILL.get(), "bind_call", &[fiber])
}

thread_local! {
    /// The UM of the machine that is about to start a fiber it has spun: for a moment, in which nothing else runs.
    static STARTING: Cell<Value> = const { Cell::new(NIL) };
}

/// Sets it.
pub fn set_starting(um: Value) {
    STARTING.set(um);
}

/// The UM whose machine started the fiber that begins to run, asked once; or nil.
pub fn take_starting() -> Value {
    STARTING.replace(NIL)
}
