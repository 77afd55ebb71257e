//! sleep, timeout, periodically, prep_timeout.

use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, RClass, Ruby, Value};
use uringmachine_runtime::clock;

use crate::classes::async_op;
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::switch::{self, Ended};
use crate::machine::Timeout;
use crate::ruby::arguments::{wrong_type, Arguments};
use crate::ruby::method::settle;
use crate::ruby::{self, duration, Raise, NIL, VALUE};

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
    // SAFETY: see `switch`.
    unsafe {
        let duration = arguments.optional(0).unwrap_or(NIL);
        let deadline = duration::named(duration, "duration")?;
        if deadline == Some(0) {
            switch::yield_now(caller.core, caller.me)?;
            return Ok(duration);
        }
        let deadline = deadline.map(duration::from_now);
        match switch::pause(caller.core, caller.me, deadline)? {
            Ended::Scheduled(value) => Ok(value),
            _ => Ok(duration),
        }
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
    // SAFETY: see `switch`.
    unsafe {
        if rb_sys::rb_block_given_p() == 0 {
            return Err(Raise::argument("no block given (timeout)").into());
        }
        let Some(nanoseconds) = duration::named(arguments.get(0), "interval")? else {
            return Err(
                crate::ruby::arguments::wrong_type(NIL, "interval", "a number of seconds").into(),
            );
        };
        let (exception, is_value) = read_exception(arguments.get(1))?;
        let message = arguments.optional(2).unwrap_or(ruby::UNDEF);
        let core = caller.core;
        let key = (*core).timeouts.insert(Timeout {
            fiber: (*core).waiter(caller.me).fiber,
            exception,
            message,
            is_value,
            made: NIL,
        });
        let timer = (*core).arm_timeout(key, nanoseconds);
        let result = ruby::protect(|| rb_sys::rb_yield(NIL));
        // From here on it can fire no more: not late, and not into somebody else's wait.
        (*core).driver.timers.cancel(timer);
        (*core).timeouts.remove(key);
        Ok(result.map_err(Raise::Jump)?)
    }
}

/// What a timeout raises, or, second, what it has the wait return.
unsafe fn read_exception(object: VALUE) -> Result<(VALUE, bool), Raise> {
    // SAFETY: type checks; what may raise is protected.
    unsafe {
        let class = rb_sys::rb_cClass;
        if ruby::is_a(object, rb_sys::rb_eException) {
            return Ok((object, false));
        }
        if !ruby::is_a(object, class) {
            return Ok((object, true));
        }
        if rb_sys::rb_class_inherited_p(object, rb_sys::rb_eException) == ruby::TRUE {
            return Ok((object, false));
        }
        let instance = ruby::protect(|| rb_sys::rb_class_new_instance(0, std::ptr::null(), object));
        Ok((instance.map_err(Raise::Jump)?, true))
    }
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
    // SAFETY: see `switch`.
    unsafe {
        if rb_sys::rb_block_given_p() == 0 {
            return Err(Raise::argument("no block given (periodically)").into());
        }
        let interval = match duration::named(arguments.get(0), "interval")? {
            Some(nanoseconds) if nanoseconds > 0 => nanoseconds,
            _ => return Err(Raise::argument("interval must be positive").into()),
        };
        let mut next = duration::from_now(interval);
        loop {
            let me = caller.again().me;
            if let Ended::Scheduled(value) = switch::pause(caller.core, me, Some(next))? {
                return Ok(value);
            }
            ruby::protect(|| rb_sys::rb_yield(NIL)).map_err(Raise::Jump)?;
            let now = clock::now();
            next += interval;
            if next <= now {
                next += (now - next) / interval * interval + interval;
            }
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
fn prep_timeout(ruby: &Ruby, machine: Value, interval: Value) -> Result<Value, Error> {
    settle(ruby, || {
        let machine = machine.as_raw();
        // SAFETY: the receiver of the method that runs.
        unsafe { Caller::new(machine) }?;
        match duration::named(interval.as_raw(), "interval")? {
            Some(nanoseconds) => Ok(async_op::start(ruby, machine, nanoseconds)),
            None => Err(wrong_type(NIL, "interval", "a number of seconds")),
        }
    })
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "sleep", 0..=1, sleep);
    machine_method!(class, "timeout", 2..=3, timeout);
    machine_method!(class, "periodically", 1..=1, periodically);
    class.define_method("prep_timeout", method!(prep_timeout, 1))?;
    Ok(())
}
