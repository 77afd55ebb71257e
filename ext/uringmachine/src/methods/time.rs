//! sleep, timeout, periodically, prep_timeout.

use magnus::{method, Error, Module, RClass, Ruby};
use uringmachine_runtime::clock;

use crate::classes::async_op;
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::owner::Um;
use crate::machine::wait::Ended;
use crate::machine::Timeout;
use crate::ruby::arguments::{wrong_type, Arguments};
use crate::ruby::this::This;
use crate::ruby::{self, call, classes, duration, Outcome, Raise, Value, NIL};

/// Sleeps. Zero lets the other fibers run; nil, or no argument, sleeps until the fiber is scheduled.
///
/// @method UringMachine#sleep(duration = nil)
/// @param duration [Numeric, nil] seconds
/// @return [Object] duration, or the value the fiber was scheduled with before
/// @raise [TypeError] if duration is no number
/// @raise [ArgumentError] if it is negative
/// @example
///   machine.sleep(0.1) #=> 0.1
fn sleep(caller: Caller, arguments: Arguments) -> Answer {
    let duration = arguments.optional(0).unwrap_or(NIL);
    let deadline = duration::named(duration, "duration")?;
    if deadline == Some(0) {
        caller.machine.yield_now(caller.me)?;
        return Ok(duration);
    }
    let deadline = deadline.map(duration::from_now);
    match caller.machine.pause_for("sleep", caller.me, deadline)? {
        Ended::Scheduled(value) => Ok(value),
        _ => Ok(duration),
    }
}

/// Runs a block, and raises in it when the time is up. It is raised where the block waits, never after it
/// has ended. Timeouts may be nested.
///
/// @method UringMachine#timeout(interval, exception, message = nil, &block)
/// @param interval [Numeric] seconds
/// @param exception [Class, Exception, Object] what is raised: an exception, or a class of them. Of any other
///   class an instance is made, which the call that waits then returns
/// @param message [String, nil] the exception's message
/// @return [Object] what the block returns
/// @raise [TypeError] if interval is no number
/// @raise [ArgumentError] if it is negative, or without a block
/// @example
///   machine.timeout(3, MyError, "too slow") { machine.shift(queue) }
fn timeout(caller: Caller, arguments: Arguments) -> Answer {
    if !ruby::block_given() {
        return Err(Raise::argument("no block given (timeout)").into());
    }
    let Some(nanoseconds) = duration::named(arguments.get(0), "interval")? else {
        return Err(wrong_type(NIL, "interval", "a number of seconds").into());
    };
    let (exception, is_value) = read_exception(arguments.get(1))?;
    let message = arguments.optional(2).unwrap_or(ruby::UNDEF);
    let (key, timer) = {
        let mut parts = caller.machine.parts();
        let fiber = parts.waiter(caller.me).fiber;
        let key = parts.timeouts.insert(Timeout {
            fiber,
            exception,
            message,
            is_value,
            made: NIL,
        });
        (key, parts.arm_timeout(key, nanoseconds))
    };
    let result = ruby::run_block();
    {
        // From here on it can fire no more: not late, and not into somebody else's wait.
        let mut parts = caller.machine.parts();
        parts.driver.timers.cancel(timer);
        parts.timeouts.remove(key);
    }
    Ok(result?)
}

/// What a timeout raises, or, second, what it has the wait return.
fn read_exception(object: Value) -> Result<(Value, bool), Raise> {
    if ruby::is_a(object, classes::exception()) {
        return Ok((object, false));
    }
    if !ruby::is_a(object, classes::class()) {
        return Ok((object, true));
    }
    if ruby::inherits(object, classes::exception()) {
        return Ok((object, false));
    }
    Ok((call::new_instance(object)?, true))
}

/// Runs a block at regular intervals, until it breaks or raises. An interval that passes while the block
/// runs is left out, not made up for.
///
/// @method UringMachine#periodically(interval, &block)
/// @param interval [Numeric] seconds, more than 0
/// @return [Object] the value the fiber was scheduled with, or what the block broke with
/// @raise [TypeError] if interval is no number
/// @raise [ArgumentError] if it is not positive, or without a block
/// @example
///   machine.periodically(0.2) { machine.write(fd, "tick\n") }
fn periodically(caller: Caller, arguments: Arguments) -> Answer {
    if !ruby::block_given() {
        return Err(Raise::argument("no block given (periodically)").into());
    }
    let interval = match duration::named(arguments.get(0), "interval")? {
        Some(nanoseconds) if nanoseconds > 0 => nanoseconds,
        _ => return Err(Raise::argument("interval must be positive").into()),
    };
    let mut next = duration::from_now(interval);
    loop {
        let me = caller.again().me;
        if let Ended::Scheduled(value) = caller.machine.pause_for("sleep", me, Some(next))? {
            return Ok(value);
        }
        ruby::run_block()?;
        let now = clock::now();
        next += interval;
        if next <= now {
            next += (now - next) / interval * interval + interval;
        }
    }
}

/// Starts the clock of a timeout that nobody waits for yet.
///
/// @method UringMachine#prep_timeout(interval)
/// @param interval [Numeric] seconds
/// @return [UringMachine::AsyncOp]
/// @raise [TypeError] if interval is no number
/// @raise [ArgumentError] if it is negative
/// @example
///   operation = machine.prep_timeout(0.05)
///   operation.await #=> -62, which is -UM::ETIME
fn prep_timeout(ruby: &Ruby, machine: This<Um>, interval: Value) -> Outcome {
    machine.own()?;
    match duration::named(interval, "interval")? {
        Some(nanoseconds) => Ok(async_op::start(ruby, machine.value(), nanoseconds)),
        None => Err(wrong_type(NIL, "interval", "a number of seconds")),
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "sleep", 0..=1, sleep);
    machine_method!(class, "timeout", 2..=3, timeout);
    machine_method!(class, "periodically", 1..=1, periodically);
    class.define_method("prep_timeout", method!(prep_timeout, 1))?;
    Ok(())
}
