//! The end of a fiber that a machine has spun: its result, and who is told.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::OnceLock;

use super::{report, Core};
use crate::ruby::{self, errors, Outcome, Raise, NIL, TRUE, VALUE};

/// How a value is pushed to a UM::Queue, which is a class above.
pub static PUSH: OnceLock<fn(VALUE, VALUE)> = OnceLock::new();

/// What a fiber of a machine keeps of itself, in instance variables that no program's collide with.
pub fn result_variable() -> ruby::ID {
    ruby::id("@um_result")
}

pub fn done_variable() -> ruby::ID {
    ruby::id("@um_done")
}

pub fn listeners_variable() -> ruby::ID {
    ruby::id("@um_done_listeners")
}

/// Notes that a spun fiber was ended before it began: by Fiber#kill.
pub unsafe fn end_unstarted(core: *mut Core, fiber: VALUE) {
    // SAFETY: as `end`, which for a fiber without a result has nothing to go on unwinding.
    unsafe { drop(end(core, fiber, Ok(NIL))) };
}

/// Whether anybody has ever waited for a fiber so: to look for the variable costs a tenth of a fiber.
pub static ANY_LISTENERS: AtomicBool = AtomicBool::new(false);

/// Tells whoever waits for a fiber that it ends; says whether there is anybody.
pub unsafe fn tell_listeners(fiber: VALUE) -> bool {
    if !ANY_LISTENERS.load(Ordering::Relaxed) {
        return false;
    }
    // SAFETY: plain accessors of a list that only we write to.
    unsafe {
        let listeners = rb_sys::rb_attr_get(fiber, listeners_variable());
        if listeners == NIL {
            return false;
        }
        let Some(push) = PUSH.get() else {
            return false;
        };
        for place in 0..rb_sys::RARRAY_LEN(listeners) {
            push(rb_sys::rb_ary_entry(listeners, place as _), fiber);
        }
        true
    }
}

/// Notes how a fiber ended and tells whoever waits for it. What must go on unwinding is returned.
pub unsafe fn end(core: *mut Core, fiber: VALUE, result: Outcome) -> Result<(), Raise> {
    // SAFETY: plain accessors; what may raise is protected.
    unsafe {
        let (value, unwinds) = match result {
            Ok(value) => (value, None),
            Err(Raise::Exception(exception)) => {
                let fatal = report::is_fatal(exception);
                (exception, fatal.then_some(Raise::Exception(exception)))
            }
            Err(raise) => (NIL, Some(raise)),
        };
        if value != NIL {
            rb_sys::rb_ivar_set(fiber, result_variable(), value);
        }
        rb_sys::rb_ivar_set(fiber, done_variable(), TRUE);
        let failed = result_is_error(value) && unwinds.is_none();
        let mut reported = Ok(());
        if !tell_listeners(fiber) && failed && !ruby::is_a(value, errors::terminate_class()) {
            reported = report::report(core, value);
        }
        if !core.is_null() {
            if let Some(task) = (*core).find(fiber) {
                (*core).remove(task);
            }
        }
        match (unwinds, reported) {
            (Some(raise), _) => Err(raise),
            (None, reported) => reported,
        }
    }
}

pub unsafe fn result_is_error(value: VALUE) -> bool {
    // SAFETY: a type check.
    unsafe { ruby::is_a(value, rb_sys::rb_eException) }
}

/// Ruby's own Fiber#kill, unbound.
pub static KILL: AtomicU64 = AtomicU64::new(0);

/// Fiber#kill for a caller that the fiber's end switches back to: the root fiber. Ruby kills a fiber anew whenever
/// it is switched to, so its ensure blocks wait best where nothing else runs. May longjmp.
pub unsafe fn kill(fiber: VALUE) -> VALUE {
    // SAFETY: the method is kept for ever.
    unsafe {
        let method = KILL.load(Ordering::Relaxed);
        ruby::funcall(method, ruby::id("bind_call"), &[fiber])
    }
}
