//! The payload of a task: a fiber, and how it stands.

use std::collections::VecDeque;

use uringmachine_runtime::slab::Key;
use uringmachine_runtime::{OpKey, TaskId, Wake};

use super::Pending;
use crate::ruby::{self, Value, FALSE, NIL};

/// The payload of a task: a fiber, and how it stands.
#[derive(Debug)]
pub struct Waiter {
    pub fiber: Value,
    /// Started by the scheduler or the machine: it lives as long as its fiber.
    pub scheduled: bool,
    /// Started by the machine's `spin`.
    pub spun: bool,
    /// It has never run in this machine: its first switch brings a value along.
    pub fresh: bool,
    /// It waits for nothing but to be scheduled.
    pub yielding: bool,
    /// It is between the start and the end of a wait, wherever its fiber is meanwhile.
    pub inside: bool,
    /// The task of the wait that this one interrupts: see [`Machine::current_task`](super::Machine::current_task).
    pub outer: Option<TaskId>,
    /// Whether its wait ends when somebody else switches to its fiber.
    pub resumable: Resumable,
    /// Its last operation, if the kernel still has the memory of it (a zero-copy send that was cancelled).
    pub lent: Option<OpKey>,
    /// Why its last wait ended.
    pub woken: Wake,
    /// It waits for the kernel to give memory back: nothing may interrupt that.
    pub draining: bool,
    /// It waits in a finalizer or a handler: what it is to raise is for its own waits.
    pub aside: bool,
    /// In the middle of an operation of several steps: the close of its descriptor counts between two of them, too.
    pub stepping: bool,
    /// What the operation that it is in is to raise, or its next step, for a descriptor that is being closed; or
    /// `NIL`. It goes with the operation.
    pub closed_by: Value,
    /// What few fibers ever need.
    pub rare: Option<Box<Rare>>,
    /// The wait may be ended by `unblock`.
    pub blocked: bool,
    /// What it waits for then, if that is known; or `NIL`. Whoever waits keeps it.
    pub blocker: Value,
    /// An `unblock` that came before the `block` it was for.
    pub unblocked_by: Value,
    /// What it is to raise, or be given, at its next waits.
    pub pending: VecDeque<Pending>,
}

/// Whether a wait ends when its fiber is switched to without having been woken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resumable {
    No,
    Yes,
    /// It has given the thread away: whoever switches to it now, and has not woken it, ends it.
    Away,
}

/// What few fibers ever need, apart from the rest: there may be a waiter for each of very many.
#[derive(Debug, Default)]
pub struct Rare {
    /// The masks of Thread.handle_interrupt that hold its timeouts back, the innermost last.
    pub masks: Vec<Value>,
    /// The exception that was made last for a timeout, and whose: see [`Parts::keep_raise`](super::Parts::keep_raise).
    pub taken: Option<(Value, Key)>,
}

impl Waiter {
    /// That of a fiber.
    pub fn new(fiber: Value, scheduled: bool) -> Self {
        Self {
            fiber,
            scheduled,
            spun: false,
            fresh: false,
            yielding: false,
            inside: false,
            outer: None,
            resumable: Resumable::No,
            lent: None,
            woken: Wake::Complete,
            draining: false,
            aside: false,
            stepping: false,
            closed_by: NIL,
            rare: None,
            blocked: false,
            blocker: NIL,
            unblocked_by: FALSE,
            pending: VecDeque::new(),
        }
    }

    /// Keeps nothing any more: in a child of fork.
    pub fn forsake(&mut self) {
        (self.fiber, self.unblocked_by) = (NIL, FALSE);
        self.pending = VecDeque::new();
    }

    /// Marks what it refers to.
    pub fn mark(&self) {
        ruby::mark_all(&[self.fiber, self.unblocked_by, self.closed_by]);
        if let Some(rare) = &self.rare {
            ruby::mark_all(&rare.masks);
        }
        let pending = self.pending.iter().filter_map(Pending::object);
        pending.for_each(ruby::mark);
    }

    /// What few need, made when it is needed.
    pub fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Whether the fiber's body is one of ours, which an unwinding ends in: that of one that has begun.
    pub fn unwinds(&self) -> bool {
        self.scheduled && !self.fresh
    }

    /// Whether its next wait raises.
    pub fn is_to_raise(&self) -> bool {
        self.pending.iter().any(Pending::is_raised)
    }
}
