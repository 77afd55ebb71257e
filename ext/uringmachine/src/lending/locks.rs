//! How many operations have locked an object, in this process.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::os::per_process::PerProcess;
use crate::ruby::io_buffer::Buffer;
use crate::ruby::{is_string, string, Raise, Value};

/// How many operations have locked an object. Behind a lock of its own, since Ractors have a GVL
/// each; a process of its own has none of its parent's operations.
static LOCKS: PerProcess<Mutex<HashMap<Value, u32>>> = PerProcess::new();

/// The list, for as long as nothing of Ruby's is called: whoever makes an object may have to wait until all Ractors
/// let the collector run, and one that waits for the list does not.
fn locks() -> MutexGuard<'static, HashMap<Value, u32>> {
    LOCKS.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a String or an IO::Buffer is locked.
pub fn is_locked(object: Value) -> bool {
    if is_string(object) {
        return string::is_locked(object);
    }
    Buffer::of(object).is_some_and(|buffer| buffer.bytes().is_locked())
}

/// Locks an object for one more operation that reads it; false if somebody else has locked it.
pub fn lock(object: Value) -> bool {
    if is_locked(object) {
        return match locks().get_mut(&object) {
            Some(count) => {
                *count += 1;
                true
            }
            None => false,
        };
    }
    if put_on(object).is_err() {
        return false;
    }
    // What is known of its address is of an object that was collected, with a fiber that never went on.
    locks().insert(object, 1);
    true
}

/// Takes a lock back, in a child of fork too one that the parent took.
pub fn unlock(object: Value) {
    {
        let mut locks = locks();
        if let Some(count) = locks.get_mut(&object) {
            *count -= 1;
            if *count > 0 {
                return;
            }
            locks.remove(&object);
        }
    }
    // One that is not locked has been unlocked by its program.
    let _ = take_off(object);
}

/// Unlocks, in a child of fork, what an operation of the parent's works on: in the child none does. Whatever
/// an operation holds and is locked was locked for it.
pub fn take_over(held: Value) {
    if is_locked(held) {
        let _ = take_off(held);
    }
}

fn put_on(object: Value) -> Result<(), Raise> {
    match Buffer::of(object) {
        Some(buffer) => buffer.lock(),
        None => string::lock(object),
    }
}

fn take_off(object: Value) -> Result<(), Raise> {
    match Buffer::of(object) {
        Some(buffer) => buffer.unlock(),
        None => string::unlock(object),
    }
}
