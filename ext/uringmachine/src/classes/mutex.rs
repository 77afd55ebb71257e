//! UM::Mutex: one fiber at a time, of one machine or of several threads'.

use std::cell::{Cell, RefCell};

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::rb_sys::{protect, AsRawValue};
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData, Value};

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::line::{self, Waiters};
use crate::ruby::method::{as_value, settle};
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a UM::Mutex holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::Mutex", mark, size, free_immediately)]
pub struct Mutex {
    /// The fiber that has it, or `NIL`.
    owner: Cell<VALUE>,
    waiters: RefCell<Waiters>,
}

impl Default for Mutex {
    fn default() -> Self {
        Self {
            owner: Cell::new(NIL),
            waiters: RefCell::default(),
        }
    }
}

impl DataTypeFunctions for Mutex {
    fn mark(&self, marker: &Marker) {
        marker.mark(as_value(self.owner.get()));
        self.waiters.borrow().mark();
    }
}

impl Mutex {
    fn is_free(&self) -> bool {
        self.owner.get() == NIL
    }

    fn unlock(&self) {
        self.owner.set(NIL);
        self.waiters.borrow_mut().wake_one();
    }
}

/// Unlocks the mutex however the block is left: by a return, an exception, a throw or a kill.
struct Locked(This<Mutex>);

impl Drop for Locked {
    fn drop(&mut self) {
        self.0.unlock();
        self.0.keep();
    }
}

/// Runs a block while no other fiber, of any thread, runs one for the same mutex.
///
/// @method UringMachine#synchronize(mutex, &block)
/// @param mutex [UringMachine::Mutex]
/// @return [Object] what the block returns
/// @raise [UringMachine::Error] if this fiber has the mutex already
/// @raise [TypeError] if mutex is no UM::Mutex
/// @raise [ArgumentError] without a block
/// @example
///   machine.synchronize(mutex) { connection.query(sql) }
fn synchronize(ruby: &Ruby, machine: Value, mutex: This<Mutex>) -> Result<Value, Error> {
    if !mutex.is_free() {
        let waited = settle(ruby, || answer(wait_for(machine, mutex)))?;
        if waited.as_raw() != ruby::UNDEF {
            return Ok(waited);
        }
    }
    // SAFETY: a plain accessor.
    mutex.owner.set(unsafe { ruby::rb_fiber_current() });
    let _locked = Locked(mutex);
    if !ruby.block_given() {
        return settle(ruby, || {
            Err(Raise::argument("no block given (synchronize)"))
        });
    }
    // SAFETY: the block of the method that runs; what it raises is stopped.
    protect(|| unsafe { rb_sys::rb_yield(NIL) }).map(as_value)
}

/// Waits for a mutex that somebody has: `UNDEF` once it is free, or what the fiber was scheduled with.
#[cold]
fn wait_for(machine: Value, mutex: This<Mutex>) -> Answer {
    // SAFETY: a plain accessor.
    if mutex.owner.get() == unsafe { ruby::rb_fiber_current() } {
        return Err(Raise::misuse("deadlock; this fiber has locked the mutex already").into());
    }
    let machine = machine.as_raw();
    // SAFETY: the receiver of the method that runs.
    let caller = unsafe { Caller::new(machine) }?;
    let mut again = false;
    loop {
        // SAFETY: see `switch`; the mutex is on the caller's frame, and not borrowed.
        let waited =
            unsafe { line::wait(&caller, machine, || mutex.waiters.as_ptr(), again, None) };
        if let Err(failure) = waited {
            // It may have been woken for a mutex that it now leaves to another.
            if mutex.is_free() {
                mutex.waiters.borrow_mut().wake_one();
            }
            return Err(failure);
        }
        if mutex.is_free() {
            return Ok(ruby::UNDEF);
        }
        again = true;
    }
}

/// @method UringMachine::Mutex#locked?
/// @return [Boolean] whether a fiber has it
/// @example
///   UM::Mutex.new.locked? #=> false
fn is_locked(mutex: This<Mutex>) -> bool {
    !mutex.is_free()
}

/// @method UringMachine::Mutex#owned?
/// @return [Boolean] whether the current fiber has it
/// @example
///   machine.synchronize(mutex) { mutex.owned? } #=> true
fn is_owned(mutex: This<Mutex>) -> bool {
    // SAFETY: a plain accessor.
    mutex.owner.get() == unsafe { ruby::rb_fiber_current() }
}

/// Defines the class, and the machine's method for it.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let class = module.define_class("Mutex", ruby.class_object())?;
    class.define_alloc_func::<Mutex>();
    class.define_method("locked?", method!(is_locked, 0))?;
    class.define_method("owned?", method!(is_owned, 0))?;
    module.define_method("synchronize", method!(synchronize, 1))?;
    Ok(())
}
