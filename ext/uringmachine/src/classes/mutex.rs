//! UM::Mutex: one fiber at a time, of one machine or of several threads'.

use std::cell::Cell;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};

use crate::machine::caller::{answer, Caller};
use crate::machine::line::Line;
use crate::machine::operate::Failure;
use crate::machine::owner::Um;
use crate::ruby::this::This;
use crate::ruby::{block_given, fiber, run_block, Outcome, Raise, Value, NIL};

/// What a UM::Mutex holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::Mutex", mark, size, free_immediately)]
pub struct Mutex {
    /// The fiber that has it, or nil.
    owner: Cell<Value>,
    line: Line,
}

impl Default for Mutex {
    fn default() -> Self {
        Self {
            owner: Cell::new(NIL),
            line: Line::default(),
        }
    }
}

impl DataTypeFunctions for Mutex {
    fn mark(&self, marker: &Marker) {
        marker.mark(self.owner.get().to_magnus());
        self.line.mark();
    }
}

impl Mutex {
    fn is_free(&self) -> bool {
        self.owner.get() == NIL
    }

    fn unlock(&self) {
        self.owner.set(NIL);
        self.line.wake_one();
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
fn synchronize(machine: This<Um>, mutex: This<Mutex>) -> Outcome {
    if !mutex.is_free() {
        match wait_for(&machine, mutex) {
            Ok(()) => {}
            Err(failure) => return answer(Err(failure)),
        }
    }
    mutex.owner.set(fiber::current());
    let _locked = Locked(mutex);
    if !block_given() {
        return Err(Raise::argument("no block given (synchronize)"));
    }
    run_block()
}

/// Waits for a mutex that somebody has: `UNDEF` once it is free, or what the fiber was scheduled with.
#[cold]
fn wait_for(um: &Um, mutex: This<Mutex>) -> Result<(), Failure> {
    if mutex.owner.get() == fiber::current() {
        return Err(Raise::misuse("deadlock; this fiber has locked the mutex already").into());
    }
    let caller = Caller::new(um)?;
    let mut again = false;
    loop {
        if let Err(failure) = mutex.line.wait(&caller, "UM::Mutex", again, None) {
            // It may have been woken for a mutex that it now leaves to another.
            if mutex.is_free() {
                mutex.line.wake_one();
            }
            return Err(failure);
        }
        if mutex.is_free() {
            return Ok(());
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
    mutex.owner.get() == fiber::current()
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
