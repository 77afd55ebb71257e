//! Ruby's own Mutex.

use super::{may_raise, truthy, Outcome, Raise, Value};

/// Thread::Mutex.new
pub fn mutex() -> Outcome {
    // SAFETY: a new object.
    may_raise(|| unsafe { rb_sys::rb_mutex_new() })
}

/// Locks a Mutex.
///
/// # Errors
/// ThreadError, as Mutex#lock.
pub fn lock(mutex: Value) -> Result<(), Raise> {
    // SAFETY: a Mutex.
    may_raise(|| unsafe { rb_sys::rb_mutex_lock(mutex.raw()) }).map(drop)
}

/// Locks a Mutex if nobody has it; says whether.
pub fn try_lock(mutex: Value) -> Result<bool, Raise> {
    // SAFETY: a Mutex.
    may_raise(|| unsafe { rb_sys::rb_mutex_trylock(mutex.raw()) }).map(truthy)
}

/// Unlocks a Mutex, and wakes the next that waits for it.
///
/// # Errors
/// ThreadError if it is not the caller's.
pub fn unlock(mutex: Value) -> Result<(), Raise> {
    // SAFETY: a Mutex.
    may_raise(|| unsafe { rb_sys::rb_mutex_unlock(mutex.raw()) }).map(drop)
}
