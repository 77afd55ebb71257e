//! timeout_after, and Timeout.timeout, which does without the hook.

use magnus::prelude::*;
use magnus::{method, Error, RClass, RModule};

use crate::classes::fiber_scheduler::{plain, Scheduler};
use crate::machine::Timeout;
use crate::ruby::arguments::Arguments;
use crate::ruby::call::{block_given, call_super, keyword_given, make_exception};
use crate::ruby::this::This;
use crate::ruby::{
    classes, duration, fiber, string, truthy, values, yield_, Outcome, Raise, Shared, Value, FALSE,
    NIL, UNDEF,
};

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
    let argument = |place| arguments.all().get(place).copied().unwrap_or(UNDEF);
    let duration = argument(0);
    let Some(nanoseconds) = duration::unbounded(duration)? else {
        return yield_(duration);
    };
    let outside = match argument(1) {
        UNDEF | NIL => error()?,
        exception => exception,
    };
    let raised = Raised {
        inside: within(outside)?,
        outside,
        message: argument(2),
    };
    limited(this, duration, nanoseconds, &raised)
}

/// Timeout.timeout: on Ruby 4.0 that makes a Proc and an exception for every call.
fn timeout(_module: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    let arguments = values(arguments);
    let argument = |place| arguments.get(place).copied().unwrap_or(NIL);
    let duration = argument(0);
    let scheduler = plain(fiber::current_scheduler());
    let nanoseconds = duration::plain(duration).filter(|nanoseconds| *nanoseconds > 0);
    match (scheduler, nanoseconds) {
        (Some(scheduler), Some(nanoseconds))
            if arguments.len() <= 3 && !has_keywords && block_given() =>
        {
            let outside = match argument(1) {
                NIL | FALSE => error()?,
                class => class,
            };
            let raised = Raised {
                // What is asked for by name the block may rescue.
                inside: if truthy(argument(1)) {
                    outside
                } else {
                    within(outside)?
                },
                outside,
                message: match argument(2) {
                    NIL | FALSE => expired()?,
                    message => message,
                },
            };
            limited(scheduler, duration, nanoseconds, &raised)
        }
        _ => call_super(arguments, has_keywords),
    }
}

/// What Timeout.timeout says of itself (timeout.rb).
fn expired() -> Outcome {
    static MESSAGE: Shared = Shared::new();
    if MESSAGE.get() == FALSE {
        MESSAGE.keep(string::freeze(string::utf8("execution expired")?));
    }
    Ok(MESSAGE.get())
}

/// What a limit that is reached raises: in the block, and what its caller sees of that.
struct Raised {
    inside: Value,
    outside: Value,
    /// UNDEF for the exception's own.
    message: Value,
}

/// Runs the block of the method that runs, for so long.
fn limited(this: This<Scheduler>, duration: Value, nanoseconds: u64, raised: &Raised) -> Outcome {
    let machine = this.machine()?;
    let me = machine.current_task();
    let (key, timer) = {
        let mut parts = machine.parts();
        let fiber = parts.waiter(me).fiber;
        let key = parts.timeouts.insert(Timeout {
            fiber,
            exception: raised.inside,
            message: raised.message,
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
        Err(Raise::Exception(error))
            if raised.outside != raised.inside && made != NIL && error == made =>
        {
            Err(turned_out(raised.outside, raised.message, error))
        }
        result => result,
    }
}

/// What is raised within the block for a timeout that its caller knows as `exception`: Timeout::Error is what
/// Timeout.timeout gives a scheduler on Ruby 3.4 where nothing else is asked for, and what it raises in the block by
/// itself is a Timeout::ExitException, which the block cannot take for an error of its own.
fn within(exception: Value) -> Outcome {
    Ok(match known()? {
        Some((error, exit)) if exception == error => exit,
        _ => exception,
    })
}

/// Timeout::Error.
fn error() -> Outcome {
    match known()? {
        Some((error, _)) => Ok(error),
        None => classes::timeout_error(),
    }
}

/// Timeout::Error and Timeout::ExitException, if timeout.rb is loaded.
fn known() -> Result<Option<(Value, Value)>, Raise> {
    static CLASSES: [Shared; 2] = [Shared::new(), Shared::new()];
    let [of_errors, of_exits] = &CLASSES;
    if of_errors.get() == FALSE {
        let Some(module) = classes::constant(classes::object(), "Timeout")? else {
            return Ok(None);
        };
        let error = classes::own_constant(module, "Error")?;
        let exit = classes::own_constant(module, "ExitException")?;
        let (Some(error), Some(exit)) = (error, exit) else {
            return Ok(None);
        };
        of_exits.keep(exit);
        of_errors.keep(error);
    }
    Ok(Some((of_errors.get(), of_exits.get())))
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

/// CoreGaps.define_timeout(module): defines `timeout`.
fn define_timeout(_module: Value, to: RModule) -> Result<(), Error> {
    to.define_method("timeout", method!(timeout, -1))
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("timeout_after", method!(timeout_after, -1))?;
    Ok(())
}

/// Defines what lib/uringmachine/core_ext/timeout.rb has it by.
pub fn define_gap(class: RClass) -> Result<(), Error> {
    let gaps = class.define_module("CoreGaps")?;
    gaps.define_singleton_method("define_timeout", method!(define_timeout, 1))
}
