//! What the fibers of a machine wait for, found out when somebody asks. Nothing is noted for it while they run: it lies in
//! the tables of tasks, operations, timers and descriptors.

use std::collections::HashMap;
use std::os::fd::RawFd;

use uringmachine_runtime::driver::Timer;
use uringmachine_runtime::in_flight::{Known, Whose};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{clock, TaskId, Wake};

use super::{Machine, Parts, Waiter};
use crate::ruby::Value;

/// A fiber, and what it waits for.
pub struct Seen {
    pub fiber: Value,
    /// See [`standing`].
    pub state: &'static str,
    /// Started by the scheduler or the machine.
    pub scheduled: bool,
    /// The operations it waits for, with their descriptors; one without a name is between two steps of something longer.
    pub operations: Vec<(&'static str, RawFd)>,
    /// What it waits for that is no operation, if that is known; or `NIL`.
    pub blocker: Value,
    /// Nanoseconds that it has waited for at the least, if that is known.
    pub waited: Option<u64>,
    /// Nanoseconds until its wait ends by itself, if it does.
    pub left: Option<u64>,
}

/// A machine as it stands.
pub struct Snapshot {
    pub fibers: Vec<Seen>,
    /// What the kernel does that no fiber waits for.
    pub others: Vec<Known>,
    pub numbers: [(&'static str, usize); 6],
    /// Whether the thread sleeps in the kernel.
    pub is_asleep: bool,
}

/// Where a fiber is.
fn standing(state: State, waiter: &Waiter, is_current: bool) -> &'static str {
    match state {
        _ if waiter.fresh => "new",
        State::Running if is_current => "running",
        State::Running => "suspended",
        State::Waiting if waiter.draining => "draining",
        State::Waiting => "waiting",
        State::Ready(Wake::Complete) => "ready",
        State::Ready(Wake::Timeout) => "timed out",
        State::Ready(Wake::Interrupt) => "interrupted",
    }
}

impl Parts {
    /// A task that is of interest: neither one kept for a fiber that may wait again, nor one that a handler has left behind.
    fn is_seen(&self, task: TaskId, state: State, waiter: &Waiter) -> bool {
        state != State::Running
            || waiter.scheduled
            || task == self.fibers.current
            || waiter.fiber == self.fibers.home
    }

    fn look(&mut self) -> Snapshot {
        let now = clock::now();
        self.ages.note(self.driver.tasks.serial());
        let mut operations: HashMap<TaskId, Vec<(&'static str, RawFd)>> = HashMap::new();
        let mut others = Vec::new();
        let mut in_flight = 0;
        for known in self.driver.known_operations() {
            in_flight += 1;
            match known.whose {
                Whose::Wait(wait) | Whose::Multishot(Some(wait))
                    if self.driver.tasks.current_wait(wait.task) == Some(wait)
                        && self.driver.tasks.state(wait.task) != Some(State::Running) =>
                {
                    let list = operations.entry(wait.task).or_default();
                    list.push((known.name, known.fd));
                }
                _ => others.push(known),
            }
        }
        for (fd, task) in self.waits.between_steps() {
            operations.entry(task).or_default().push(("", fd));
        }
        let mut left = HashMap::new();
        for (deadline, timer) in self.driver.timers.deadlines() {
            if let Timer::Wait(wait) = timer {
                left.insert(*wait, deadline.saturating_sub(now));
            }
        }
        let tasks = self.driver.tasks.iter();
        let seen = tasks.filter(|(task, state, waiter)| self.is_seen(*task, *state, waiter));
        let fibers = seen.map(|(task, state, waiter)| {
            let wait = self.driver.tasks.current_wait(task);
            let wait = wait.filter(|_| state != State::Running);
            Seen {
                fiber: waiter.fiber,
                state: standing(state, waiter, task == self.fibers.current),
                scheduled: waiter.scheduled && waiter.outer.is_none(),
                operations: operations.remove(&task).unwrap_or_default(),
                blocker: waiter.blocker,
                waited: wait.and_then(|wait| self.ages.at_least(wait.serial)),
                left: wait.and_then(|wait| left.get(&wait).copied()),
            }
        });
        let fibers: Vec<Seen> = fibers.collect();
        let numbers = [
            ("fibers", fibers.len()),
            ("run_queue", self.driver.tasks.queued()),
            ("operations_in_flight", in_flight),
            ("timers", self.driver.timers.len()),
            ("loans", self.lending.loans.len()),
            ("objects_lent", self.lending.holds.len()),
        ];
        Snapshot {
            fibers,
            others,
            numbers,
            is_asleep: false,
        }
    }
}

impl Machine {
    /// The machine as it stands. Any thread of its Ractor may ask.
    pub fn look(&self) -> Snapshot {
        let is_asleep = self.is_asleep();
        let snapshot = self.parts().look();
        Snapshot {
            is_asleep,
            ..snapshot
        }
    }
}
