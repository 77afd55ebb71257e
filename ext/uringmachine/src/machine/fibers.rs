//! Whose fiber is which task.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{TaskId, Wake};

use super::{Machine, Parts, Waiter, NOBODY};
use crate::ruby::{fiber, Value, NIL};

/// Fibers by address: multiplied by a large odd number, since addresses share their low bits.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only addresses are hashed");
    }

    #[inline]
    fn write_u64(&mut self, address: u64) {
        self.0 = address.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(20);
    }
}

type ByFiber = HashMap<Value, TaskId, BuildHasherDefault<AddressHasher>>;

/// The fibers that a machine knows.
pub struct Fibers {
    /// The task that runs, as far as the machine knows.
    pub current: TaskId,
    /// The root fiber, while it is parked here by a scheduler.
    pub root: Option<TaskId>,
    /// The thread's root fiber, or `NIL`: interrupts are its to handle.
    pub home: Value,
    by_fiber: ByFiber,
    /// The task of an unscheduled fiber that waited last: kept, since it likely waits again.
    kept: Option<TaskId>,
    /// How many tasks interrupt another one of their fiber.
    interrupting: usize,
    /// An interrupt of the thread came to another fiber than it is for, which is switched to.
    is_interrupted: bool,
    /// The fiber of the loop that the machine is driven by, or `NIL`: see [`looping`](super::looping).
    looping: Value,
    /// Whether a switch has more to look at than who is next: one of the two above.
    pub has_detours: bool,
}

impl Default for Fibers {
    fn default() -> Self {
        Self {
            current: NOBODY,
            root: None,
            home: NIL,
            by_fiber: ByFiber::default(),
            kept: None,
            interrupting: 0,
            is_interrupted: false,
            looping: NIL,
            has_detours: false,
        }
    }
}

impl Fibers {
    /// Whether any task interrupts another one of its fiber.
    #[inline]
    pub fn is_any_interrupting(&self) -> bool {
        self.interrupting > 0
    }

    /// Whether an interrupt of the thread came to another fiber than it is for, which is switched to.
    #[inline]
    pub fn is_interrupted(&self) -> bool {
        self.is_interrupted
    }

    pub fn set_interrupted(&mut self, is_interrupted: bool) {
        self.is_interrupted = is_interrupted;
        self.has_detours = is_interrupted || self.looping != NIL;
    }

    /// The fiber of the loop that the machine is driven by, or `NIL`.
    pub fn looping(&self) -> Value {
        self.looping
    }

    pub fn set_looping(&mut self, fiber: Value) {
        self.looping = fiber;
        self.has_detours = true;
    }

    /// Knows none any more: in a child of fork.
    pub fn forsake(&mut self) {
        self.by_fiber = ByFiber::default();
        (self.root, self.kept) = (None, None);
        (self.home, self.looping) = (NIL, NIL);
    }
}

impl Parts {
    /// The task of a fiber, if it has one.
    #[inline]
    pub fn find(&self, fiber: Value) -> Option<TaskId> {
        self.fibers.by_fiber.get(&fiber).copied()
    }

    /// As [`Parts::find`], of the fiber that runs, as a rule.
    #[inline]
    pub fn find_running(&self, fiber: Value) -> Option<TaskId> {
        let current = self.fibers.current;
        match self.driver.tasks.get(current) {
            Some(waiter) if waiter.fiber == fiber && waiter.outer.is_none() => Some(current),
            _ => self.find(fiber),
        }
    }

    /// The task of a fiber that somebody means who knows of no handlers: the innermost one that waits.
    pub fn find_waiting(&self, fiber: Value) -> Option<TaskId> {
        let mut task = self.find(fiber)?;
        while self.fibers.interrupting > 0 && self.driver.tasks.state(task) == Some(State::Running)
        {
            match self.driver.tasks.get(task).and_then(|waiter| waiter.outer) {
                Some(outer) => task = outer,
                None => break,
            }
        }
        Some(task)
    }

    /// Whether a fiber waits here, by itself or, as one that the machine started, in a fiber that it has resumed.
    pub fn has_waiting(&self, fiber: Value) -> bool {
        self.find_waiting(fiber).is_some_and(|task| {
            self.driver.tasks.state(task) != Some(State::Running)
                || (self.driver.tasks.get(task)).is_some_and(|waiter| waiter.scheduled)
        })
    }

    /// Whether a fiber was started by the scheduler or the machine.
    pub fn has_started(&self, fiber: Value) -> bool {
        self.find(fiber)
            .and_then(|task| self.driver.tasks.get(task))
            .is_some_and(|waiter| waiter.scheduled)
    }

    /// The task of a fiber whose wait `unblock` may end, and whether it is in one.
    #[inline]
    pub fn blocked_task(&self, mut task: TaskId) -> (TaskId, bool) {
        let first = task;
        while let Some(waiter) = self.driver.tasks.get(task) {
            match waiter.outer {
                _ if waiter.blocked => return (task, true),
                Some(outer) => task = outer,
                None => break,
            }
        }
        (first, false)
    }

    /// The task that interrupts of the thread belong to: the root fiber's, while it waits here.
    pub fn interrupt_target(&self) -> Option<TaskId> {
        if self.fibers.root.is_some() {
            return self.fibers.root;
        }
        let home = self.find_waiting(self.fibers.home)?;
        let waits = self.driver.tasks.state(home)? != State::Running;
        waits.then_some(home)
    }

    /// A task for a fiber that has none, or whose task is interrupted by what runs in it. See [`Machine::add`].
    pub fn insert(&mut self, fiber: Value, scheduled: bool) -> TaskId {
        let task = self.driver.tasks.add(Waiter::new(fiber, scheduled));
        self.fibers.by_fiber.insert(fiber, task);
        task
    }

    /// Forgets a task.
    pub fn remove(&mut self, task: TaskId) {
        if let Some(waiter) = self.driver.tasks.remove(task) {
            self.fibers.by_fiber.remove(&waiter.fiber);
            if self.trace.is_some() && waiter.scheduled {
                self.trace_end(waiter.fiber);
            }
        }
    }

    /// Ends a wait. The task of an unscheduled fiber goes when another takes its place.
    #[inline]
    pub fn finish_wait(&mut self, task: TaskId) {
        self.driver.tasks.end_wait(task);
        let waiter = self.waiter(task);
        waiter.blocked = false;
        waiter.blocker = NIL;
        waiter.aside = false;
        if !waiter.stepping {
            waiter.closed_by = NIL;
        }
        if !waiter.scheduled {
            self.keep(task);
        }
    }

    /// Keeps the task of an unscheduled fiber, in place of another one's.
    #[inline]
    pub fn keep(&mut self, task: TaskId) {
        if self.fibers.kept == Some(task) {
            return;
        }
        if let Some(other) = self.fibers.kept.replace(task) {
            let in_use = self.fibers.root == Some(other)
                || self.driver.tasks.get(other).is_some_and(|other| {
                    other.fiber == self.fibers.home || other.inside || !other.pending.is_empty()
                });
            if !in_use && self.driver.tasks.state(other) == Some(State::Running) {
                self.remove(other);
            }
        }
    }
}

impl Machine {
    /// The task of the fiber that runs. A signal's handler runs in the middle of a fiber's wait: it gets
    /// a task of its own, so that its waits and those that it interrupts have nothing to do with each other.
    #[inline]
    pub fn current_task(&self) -> TaskId {
        let fiber = fiber::current();
        {
            let parts = self.parts();
            let current = parts.fibers.current;
            if let Some(waiter) = parts.driver.tasks.get(current) {
                if waiter.fiber == fiber && !waiter.inside {
                    return current;
                }
            }
        }
        self.find_current(fiber)
    }

    #[inline(never)]
    fn find_current(&self, fiber: Value) -> TaskId {
        let mut task = self.task_of(fiber);
        let mut parts = self.parts();
        if parts.waiter(task).inside {
            let outer = task;
            task = parts.insert(fiber, true);
            parts.waiter(task).outer = Some(outer);
            parts.fibers.interrupting += 1;
        }
        parts.fibers.current = task;
        task
    }

    /// Whoever has interrupted a wait of this task is done.
    #[inline]
    pub fn end_interruptions(&self, task: TaskId) {
        let any = self.parts().fibers.interrupting > 0;
        if any {
            self.remove_interruptions(task);
        }
    }

    #[cold]
    fn remove_interruptions(&self, task: TaskId) {
        loop {
            let (outer, pending) = {
                let mut parts = self.parts();
                let fiber = parts.waiter(task).fiber;
                let Some(inner) = parts.find(fiber).filter(|inner| *inner != task) else {
                    return;
                };
                let Some(outer) = parts.waiter(inner).outer else {
                    return;
                };
                let Some(removed) = parts.driver.tasks.remove(inner) else {
                    return;
                };
                parts.fibers.by_fiber.insert(fiber, outer);
                parts.fibers.interrupting -= 1;
                (outer, removed.pending)
            };
            for pending in pending {
                self.interrupt(outer, pending);
            }
        }
    }

    /// The fibers that are wanted, of those that the machine knows.
    pub fn fibers_that(&self, wanted: impl Fn(State, &Waiter) -> bool) -> Vec<Value> {
        let parts = self.parts();
        let tasks = parts.driver.tasks.iter();
        tasks
            .filter(|(_, state, waiter)| wanted(*state, waiter))
            .map(|(_, _, waiter)| waiter.fiber)
            .collect()
    }

    /// Wakes the fiber that has waited for a blocker longest; says whether there is one.
    pub fn wake_blocked_by(&self, blocker: Value) -> bool {
        let first = {
            let parts = self.parts();
            let blocked = parts.driver.tasks.iter().filter(|(_, state, waiter)| {
                *state == State::Waiting && waiter.blocked && waiter.blocker == blocker
            });
            blocked
                .filter_map(|(task, ..)| parts.driver.tasks.current_wait(task))
                .min_by_key(|wait| wait.serial)
        };
        first.is_some_and(|wait| {
            self.notify();
            self.parts().driver.tasks.wake(wait, Wake::Complete)
        })
    }

    /// The task of a fiber, made if it has none.
    pub fn task_of(&self, fiber: Value) -> TaskId {
        let known = self.parts().find(fiber);
        known.unwrap_or_else(|| self.add(fiber, false))
    }

    /// A task for a fiber that has none.
    pub fn add(&self, fiber: Value, scheduled: bool) -> TaskId {
        let is_home = !scheduled && self.parts().fibers.home == NIL && fiber::is_blocking(fiber);
        let mut parts = self.parts();
        if is_home {
            parts.fibers.home = fiber;
        }
        parts.insert(fiber, scheduled)
    }
}
