//! A line of fibers, of any thread's machine, that wait for the same thing: a queue's next value, a
//! mutex, an AsyncOp.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::Arc;

use uringmachine_runtime::{WaitId, Wake};

use super::caller::Caller;
use super::operate::Failure;
use super::trace::For;
use super::Machine;
use crate::ruby::{self, Value};

struct Entry {
    /// The UM of the machine, which is kept as long as a fiber waits in it.
    object: Value,
    machine: Arc<Machine>,
    wait: WaitId,
}

/// The fibers that wait, the first to be woken first. Used with Ruby's lock only.
#[derive(Default)]
pub struct Line {
    entries: RefCell<VecDeque<Entry>>,
}

impl Line {
    /// Marks the machines of the fibers.
    pub fn mark(&self) {
        for entry in self.entries.borrow().iter() {
            ruby::mark(entry.object);
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.entries.borrow().len()
    }

    /// Wakes the first that still waits; says whether there was one.
    #[inline]
    pub fn wake_one(&self) -> bool {
        loop {
            let next = self.entries.borrow_mut().pop_front();
            let Some(Entry { machine, wait, .. }) = next else {
                return false;
            };
            // A thread that has ended with fibers waiting takes nothing any more.
            if machine.is_abandoned() {
                continue;
            }
            let mut parts = machine.parts();
            let woken = parts.driver.tasks.wake(wait, Wake::Complete);
            if woken && parts.trace.is_some() {
                parts.trace_wake(wait.task);
            }
            drop(parts);
            if woken {
                machine.notify();
                return true;
            }
        }
    }

    /// Wakes all of them.
    pub fn wake_all(&self) {
        while self.wake_one() {}
    }

    /// Waits in the line, of what the word says, until woken. First in it if `again`: a fiber that was woken in vain keeps its place. Says whether
    /// it was woken: not if `deadline` came first.
    pub fn wait(
        &self,
        caller: &Caller,
        what: &'static str,
        again: bool,
        deadline: Option<u64>,
    ) -> Result<bool, Failure> {
        let wait = caller.machine.begin_wait(caller.me)?;
        let id = wait.id();
        caller.machine.awaits(caller.me, For::Word(what));
        let entry = Entry {
            object: caller.machine.object(),
            machine: caller.machine.share(),
            wait: id,
        };
        if again {
            self.entries.borrow_mut().push_front(entry);
        } else {
            self.entries.borrow_mut().push_back(entry);
        }
        let woken = wait.finish(deadline);
        if !matches!(woken, Ok(true)) {
            self.entries.borrow_mut().retain(|entry| entry.wait != id);
        }
        woken
    }
}
