//! timeout_after: Timeout.timeout.

use std::sync::atomic::{AtomicU64, Ordering};

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::Timeout;
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, Raise, NIL, VALUE};

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
fn timeout_after(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let arguments = Arguments::of(arguments, 1..=3)?;
            let core = this.core()?;
            let me = (*core).current_task();
            let argument = |place| arguments.all().get(place).copied().unwrap_or(ruby::UNDEF);
            let duration = argument(0);
            let Some(nanoseconds) = duration::unbounded(duration)? else {
                return ruby::protect(|| rb_sys::rb_yield(duration)).map_err(Raise::Jump);
            };
            let exception = match argument(1) {
                ruby::UNDEF | NIL => ruby::timeout_error()?,
                exception => exception,
            };
            let (outside, exception) = (exception, within(exception));
            let key = (*core).timeouts.insert(Timeout {
                fiber: (*core).waiter(me).fiber,
                exception,
                message: argument(2),
                is_value: false,
                made: NIL,
            });
            let timer = (*core).arm_timeout(key, nanoseconds);
            let result = ruby::protect(|| rb_sys::rb_yield(duration));
            // From here on it can fire no more: not late, and not into somebody else's wait.
            (*core).driver.timers.cancel(timer);
            let made = (*core)
                .timeouts
                .remove(key)
                .map_or(NIL, |timeout| timeout.made);
            match result {
                Err(_) if outside != exception && made != NIL && ruby::current_error() == made => {
                    Err(turned_out(outside, argument(2)))
                }
                result => result.map_err(Raise::Jump),
            }
        }
    })
}

/// What is raised within the block for a timeout that its caller knows as `exception`: Timeout::Error is what
/// Timeout.timeout gives a scheduler on Ruby 3.4 where nothing else is asked for, and what it raises in the block by
/// itself is a Timeout::ExitException, which the block cannot take for an error of its own.
unsafe fn within(exception: VALUE) -> VALUE {
    /// Timeout::Error and Timeout::ExitException, once they are loaded.
    static CLASSES: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];
    // SAFETY: constants are looked up where they are defined.
    unsafe {
        let [mut error, mut exit] = [0, 1].map(|place| CLASSES[place].load(Ordering::Relaxed));
        if error == 0 {
            let name = ruby::id("Timeout");
            if rb_sys::rb_const_defined(rb_sys::rb_cObject, name) == 0 {
                return exception;
            }
            let module = rb_sys::rb_const_get(rb_sys::rb_cObject, name);
            let [of_error, of_exit] = [ruby::id("Error"), ruby::id("ExitException")];
            if rb_sys::rb_const_defined_at(module, of_error) == 0
                || rb_sys::rb_const_defined_at(module, of_exit) == 0
            {
                return exception;
            }
            error = rb_sys::rb_const_get_at(module, of_error);
            exit = rb_sys::rb_const_get_at(module, of_exit);
            for (place, class) in [error, exit].into_iter().enumerate() {
                rb_sys::rb_gc_register_mark_object(class);
                CLASSES[place].store(class, Ordering::Relaxed);
            }
        }
        if exception == error {
            exit
        } else {
            exception
        }
    }
}

/// What a timeout raises once it is out of its block; what was raised in it is the cause.
unsafe fn turned_out(class: VALUE, message: VALUE) -> Raise {
    let arguments = [class, message];
    let count = if message == ruby::UNDEF { 1 } else { 2 };
    // SAFETY: the arguments live on this frame; the exception that is being unwound stays so.
    unsafe {
        let cause = ruby::current_error();
        let made = ruby::protect(|| ruby::rb_make_exception(count, arguments.as_ptr()));
        ruby::put_error_back(cause);
        match made {
            Ok(exception) => Raise::Exception(exception),
            Err(state) => Raise::Jump(state),
        }
    }
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("timeout_after", method!(timeout_after, -1))?;
    Ok(())
}
