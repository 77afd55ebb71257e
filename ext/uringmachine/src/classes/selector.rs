//! UM::Selector: the object, and the scheduler that asks it. Its methods are in `adapters/`.

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::VecDeque;
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::{DataTypeFunctions, TypedData};

use crate::machine::Machine;
use crate::ruby::call::Name;
use crate::ruby::this::This;
use crate::ruby::{call, is_just, is_object, just_class, truthy, variable, Raise, Value, NIL};

/// What a UM::Selector holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::Selector", mark, size, free_immediately)]
pub struct Selector {
    /// The loop's fiber.
    pub looping: Cell<Value>,
    pub um: Cell<Value>,
    pub machine: OnceCell<Arc<Machine>>,
    /// What is to be switched to in the next turn: fibers, and what answers as they do.
    pub pushed: RefCell<VecDeque<Value>>,
    /// Nanoseconds that the last turn has slept.
    pub idle: Cell<u64>,
    pub closed: Cell<bool>,
    /// The class of the scheduler that it has met last, or `NIL`; and whether the hooks of that do no more than to ask it.
    met: Cell<Value>,
    is_spared: Cell<bool>,
}

impl Default for Selector {
    fn default() -> Self {
        Self {
            looping: Cell::new(NIL),
            um: Cell::new(NIL),
            machine: OnceCell::new(),
            pushed: RefCell::default(),
            idle: Cell::new(0),
            closed: Cell::new(false),
            met: Cell::new(NIL),
            is_spared: Cell::new(false),
        }
    }
}

impl DataTypeFunctions for Selector {
    fn mark(&self, marker: &Marker) {
        marker.mark(self.looping.get().to_magnus());
        marker.mark(self.um.get().to_magnus());
        marker.mark(self.met.get().to_magnus());
        for object in self.pushed.borrow().iter() {
            marker.mark(object.to_magnus());
        }
    }
}

impl Selector {
    /// Its machine, on its own thread.
    #[inline]
    pub fn machine(&self) -> Result<&Machine, Raise> {
        match self.machine.get() {
            Some(machine) if machine.is_own() && !self.closed.get() => Ok(machine),
            _ => Err(self.refusal()),
        }
    }

    /// Whether the hooks of the scheduler that it has met last do no more than to ask it.
    #[inline]
    pub fn is_spared(&self) -> bool {
        self.is_spared.get()
    }

    #[cold]
    fn refusal(&self) -> Raise {
        Raise::misuse(match self.machine.get() {
            None => "uninitialized selector",
            Some(_) if self.closed.get() => "the selector is closed",
            Some(machine) if machine.is_forked() => {
                "this selector belongs to the parent process; make one of your own"
            }
            Some(_) => "this selector belongs to another thread",
        })
    }
}

impl This<Selector> {
    /// Meets the scheduler of the thread that it has a turn in: looks, once for a class, whether what its hooks do beside asking
    /// can be spared.
    #[inline]
    pub fn meet(self, scheduler: Value) -> Result<(), Raise> {
        if scheduler == NIL || is_just(scheduler, self.met.get()) {
            return Ok(());
        }
        self.look_at(scheduler)
    }

    /// See lib/uringmachine/selector.rb.
    #[cold]
    fn look_at(self, scheduler: Value) -> Result<(), Raise> {
        let is_spared = truthy(call(self.value(), "spares?", &[scheduler])?);
        self.met.set(just_class(scheduler));
        self.is_spared.set(is_spared);
        Ok(())
    }
}

/// The core of the selector that a scheduler of Async's asks, if this thread runs fibers by it, and its hooks can be spared.
/// Does not raise.
#[inline]
pub fn with_spared<T>(scheduler: Value, body: impl FnOnce(&Machine) -> T) -> Option<T> {
    static SELECTOR: Name = Name::new("@selector");
    if !is_object(scheduler) {
        return None;
    }
    let selector = This::<Selector>::find(variable(scheduler, SELECTOR.id()))?;
    let machine = selector.machine.get()?;
    let runs = selector.is_spared.get()
        && is_just(scheduler, selector.met.get())
        && machine.is_own()
        && machine.is_usable();
    runs.then(|| body(machine))
}
