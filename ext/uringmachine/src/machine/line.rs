//! A line of fibers, of any thread's machine, that wait for the same thing: a queue's next value, a
//! mutex, an AsyncOp.

use std::collections::VecDeque;

use uringmachine_runtime::{WaitId, Wake};

use crate::machine::caller::Caller;
use crate::machine::switch::{self, Failure};
use crate::machine::{Core, Resumption};
use crate::ruby::{Raise, VALUE};

struct Entry {
    /// The UM of the core, which keeps the core alive.
    machine: VALUE,
    core: *mut Core,
    wait: WaitId,
}

// SAFETY: used with Ruby's lock only, which one thread has at a time.
unsafe impl Send for Entry {}

/// The fibers that wait, the first to be woken first.
#[derive(Default)]
pub struct Waiters {
    line: VecDeque<Entry>,
}

impl Waiters {
    /// Marks the machines of the fibers.
    pub fn mark(&self) {
        for entry in &self.line {
            // SAFETY: called by the collector, with a value that is alive.
            unsafe { rb_sys::rb_gc_mark(entry.machine) };
        }
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.line.len()
    }

    /// Wakes the first that still waits; says whether there was one.
    #[inline]
    pub fn wake_one(&mut self) -> bool {
        while let Some(entry) = self.line.pop_front() {
            // SAFETY: the machine was marked until now, and the GVL guards its tasks.
            unsafe {
                // A thread that has ended with fibers waiting takes nothing any more.
                if (*entry.core).is_abandoned() {
                    continue;
                }
                if (*entry.core).driver.tasks.wake(entry.wait, Wake::Complete) {
                    (*entry.core).notify();
                    return true;
                }
            }
        }
        false
    }

    /// Wakes all of them.
    pub fn wake_all(&mut self) {
        while self.wake_one() {}
    }
}

/// Waits in a line until woken. `line` finds it anew after the wait, since others use it meanwhile. First
/// in line if `again`: a fiber that was woken in vain keeps its place. Says whether it was woken: not if
/// `deadline` came first.
pub unsafe fn wait(
    caller: &Caller,
    machine: VALUE,
    line: impl Fn() -> *mut Waiters,
    again: bool,
    deadline: Option<u64>,
) -> Result<bool, Failure> {
    // SAFETY: see `switch`; the line belongs to an object on the caller's frame.
    unsafe {
        let core = caller.core;
        if let Some(raise) = (*core).take_pending(caller.me) {
            return Err(raise.into());
        }
        let wait = (*core).driver.tasks.begin_wait(caller.me);
        let entry = Entry {
            machine,
            core,
            wait,
        };
        if again {
            (*line()).line.push_front(entry);
        } else {
            (*line()).line.push_back(entry);
        }
        let timer = deadline.map(|deadline| (*core).driver.wake_at(deadline, wait));
        let result = switch::wait(core, caller.me, None);
        if let Some(timer) = timer {
            (*core).driver.timers.cancel(timer);
        }
        let ended = match result {
            Ok(Wake::Complete) => Ok(true),
            Ok(Wake::Timeout) => Ok(false),
            Ok(Wake::Interrupt) => match (*core).take_resumption(caller.me) {
                Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                Some(Resumption::Raise(raise)) => Err(raise.into()),
                None => Ok(true),
            },
            Err(state) => Err(Raise::Jump(state).into()),
        };
        if !matches!(ended, Ok(true)) {
            (*line()).line.retain(|entry| entry.wait != wait);
        }
        (*core).finish_wait(caller.me);
        ended
    }
}
