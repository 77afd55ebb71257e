//! timeout_after: Timeout.timeout.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::Timeout;
use crate::ruby::arguments::Arguments;
use crate::ruby::call::make_exception;
use crate::ruby::this::This;
use crate::ruby::{classes, duration, yield_, Outcome, Raise, Shared, Value, FALSE, NIL, UNDEF};

/// Runs a block, and raises in the fiber, as Fiber#raise would, unless it ends in time. Timeout.timeout
/// calls it.
///
/// @method UringMachine::FiberScheduler#timeout_after(duration, exception = Timeout::Error, message = nil, &block)
/// @param duration [Numeric] seconds, given to the block too
/// @param exception [Class, Exception]
/// @param message [String, nil]
/// @return [Object] what the block returns
/// @example
///   scheduler.timeout_after(1, Timeout::Error, "too slow") { read }
fn timeout_after(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 1..=3)?;
    let machine = this.machine()?;
    let me = machine.current_task();
    let argument = |place| arguments.all().get(place).copied().unwrap_or(UNDEF);
    let duration = argument(0);
    let Some(nanoseconds) = duration::unbounded(duration)? else {
        return yield_(duration);
    };
    let outside = match argument(1) {
        UNDEF | NIL => classes::timeout_error()?,
        exception => exception,
    };
    let exception = within(outside)?;
    let (key, timer) = {
        let mut parts = machine.parts();
        let fiber = parts.waiter(me).fiber;
        let key = parts.timeouts.insert(Timeout {
            fiber,
            exception,
            message: argument(2),
            is_value: false,
            made: NIL,
        });
        (key, parts.arm_timeout(key, nanoseconds))
    };
    let result = yield_(duration);
    // From here on it can fire no more: not late, and not into somebody else's wait.
    let made = {
        let mut parts = machine.parts();
        parts.driver.timers.cancel(timer);
        let timeout = parts.timeouts.remove(key);
        timeout.map_or(NIL, |timeout| timeout.made)
    };
    match result {
        Err(Raise::Exception(error)) if outside != exception && made != NIL && error == made => {
            Err(turned_out(outside, argument(2), error))
        }
        result => result,
    }
}

/// What is raised within the block for a timeout that its caller knows as `exception`: Timeout::Error is what
/// Timeout.timeout gives a scheduler on Ruby 3.4 where nothing else is asked for, and what it raises in the block by
/// itself is a Timeout::ExitException, which the block cannot take for an error of its own.
fn within(exception: Value) -> Outcome {
    static CLASSES: [Shared; 2] = [Shared::new(), Shared::new()];
    let [of_errors, of_exits] = &CLASSES;
    if of_errors.get() == FALSE {
        let module = classes::constant(classes::object(), "Timeout")?;
        let Some(module) = module else {
            return Ok(exception);
        };
        let error = classes::own_constant(module, "Error")?;
        let exit = classes::own_constant(module, "ExitException")?;
        let (Some(error), Some(exit)) = (error, exit) else {
            return Ok(exception);
        };
        of_exits.keep(exit);
        of_errors.keep(error);
    }
    Ok(if exception == of_errors.get() {
        of_exits.get()
    } else {
        exception
    })
}

/// What a timeout raises once it is out of its block; what was raised in it is the cause.
fn turned_out(class: Value, message: Value, cause: Value) -> Raise {
    let arguments = [class, message];
    let count = if message == UNDEF { 1 } else { 2 };
    match make_exception(&arguments[..count]) {
        Ok(exception) => Raise::caused_by(exception, cause),
        Err(raise) => raise,
    }
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("timeout_after", method!(timeout_after, -1))?;
    Ok(())
}
