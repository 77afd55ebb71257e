//! One wait of a fiber: it begins when it is made, and ends when it is dropped.

use std::cell::RefMut;

use uringmachine_runtime::{TaskId, WaitId, Wake};

use super::operate::Failure;
use super::trace::For;
use super::{registry, Machine, Parts, Resumption};
use crate::ruby::{Outcome, Raise, Value, NIL};

/// A wait of the fiber that runs. The fiber is in it from its making until it is dropped, however it is left; what wakes
/// it in between, before the fiber is suspended too, is not lost.
pub struct Wait<'a> {
    machine: &'a Machine,
    me: TaskId,
    id: WaitId,
}

/// How a wait ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody woke it.
    Woken,
    /// Its deadline came.
    Deadline,
    /// A machine's `schedule` gave it a value.
    Scheduled(Value),
}

impl Drop for Wait<'_> {
    #[inline]
    fn drop(&mut self) {
        self.machine.parts().finish_wait(self.me);
    }
}

impl Machine {
    /// Begins a wait.
    ///
    /// # Errors
    /// What the fiber is to raise: then there is none.
    #[inline]
    pub fn begin_wait(&self, me: TaskId) -> Result<Wait<'_>, Raise> {
        let mut parts = self.parts_to_wait(me)?;
        let id = parts.driver.tasks.begin_wait(me);
        drop(parts);
        Ok(Wait::begun(self, me, id))
    }

    /// The machine's parts, for a wait that is to begin.
    ///
    /// # Errors
    /// What the fiber is to raise.
    #[inline(always)]
    pub fn parts_to_wait(&self, me: TaskId) -> Result<RefMut<'_, Parts>, Raise> {
        let mut parts = self.parts();
        if !parts.has_nothing_pending(me) {
            drop(parts);
            self.raise_before_waiting(me)?;
            parts = self.parts();
        }
        Ok(parts)
    }

    /// What a mask holds back is pending, and not raised.
    #[cold]
    fn raise_before_waiting(&self, me: TaskId) -> Result<(), Raise> {
        self.raise_pending(me).inspect_err(|_| {
            // It was about to block, and does not.
            self.parts().waiter(me).blocked = false;
        })
    }

    /// Begins a wait, whatever the fiber is to raise.
    #[inline]
    pub fn begin_wait_anyway(&self, me: TaskId) -> Wait<'_> {
        let id = self.parts().driver.tasks.begin_wait(me);
        Wait::begun(self, me, id)
    }

    /// As [`Machine::pause`], for what a trace calls by a word.
    pub fn pause_for(
        &self,
        what: &'static str,
        me: TaskId,
        deadline: Option<u64>,
    ) -> Result<Ended, Raise> {
        self.awaits(me, For::Word(what));
        self.pause(me, deadline)
    }

    /// Waits until woken or until `deadline`.
    pub fn pause(&self, me: TaskId, deadline: Option<u64>) -> Result<Ended, Raise> {
        let wait = self.begin_wait(me)?;
        let ended = match wait.until(deadline) {
            // Whoever was waited for has given what it had to this fiber, though its time was up, or it is to raise:
            // it takes that, and raises at its next wait. Nobody else would be given it.
            Ok(Wake::Timeout | Wake::Interrupt) if wait.was_unblocked() => Ok(Ended::Woken),
            woken => wait.ended(woken),
        };
        let passes_on = ended.is_err() && wait.was_unblocked();
        let blocker = self.parts().waiter(me).blocker;
        drop(wait);
        if passes_on {
            // It was given what it leaves: Fiber#raise does not wait.
            registry::pass_on(blocker);
        }
        ended
    }

    /// Waits until somebody schedules the fiber, and returns the value it is given.
    pub fn await_schedule(&self, me: TaskId) -> Outcome {
        match self.take_resumption(me) {
            Some(Resumption::Value(value)) => return Ok(value),
            Some(Resumption::Raise(raise)) => return Err(raise),
            None => {}
        }
        let wait = self.begin_wait_anyway(me);
        self.parts().waiter(me).yielding = true;
        let woken = wait.suspend();
        self.parts().waiter(me).yielding = false;
        woken?;
        match self.take_resumption(me) {
            Some(Resumption::Value(value)) => Ok(value),
            Some(Resumption::Raise(raise)) => Err(raise),
            None => Ok(NIL),
        }
    }

    /// Runs `switch`, which may transfer to another fiber. The current one goes on as soon as that waits, or ends.
    pub fn step_aside(&self, switch: impl FnOnce() -> Outcome) -> Outcome {
        let me = self.current_task();
        let wait = self.begin_wait_anyway(me);
        let mut value = NIL;
        wait.first_in_line().after(|| {
            value = switch()?;
            Ok(())
        })?;
        Ok(value)
    }
}

impl<'a> Wait<'a> {
    /// One that has begun.
    #[inline]
    pub fn begun(machine: &'a Machine, me: TaskId, id: WaitId) -> Self {
        Self { machine, me, id }
    }

    /// Ends it, with the machine's parts at hand.
    #[inline]
    pub fn end_with(self, parts: &mut Parts) {
        parts.finish_wait(self.me);
        std::mem::forget(self);
    }

    /// What wakes it.
    #[inline]
    pub fn id(&self) -> WaitId {
        self.id
    }

    /// Begins it anew: what would have woken it until now does not any more.
    pub fn renew(&mut self) -> WaitId {
        self.id = self.machine.parts().driver.tasks.begin_wait(self.me);
        self.id
    }

    /// Has the fiber be the first to go on when another one waits.
    pub fn first_in_line(&self) -> &Self {
        let tasks = &mut self.machine.parts().driver.tasks;
        tasks.wake_first(self.id, Wake::Complete);
        self
    }

    /// Hands the thread over until the wait has ended.
    ///
    /// # Errors
    /// What an interrupt of the thread raises in this fiber.
    #[inline]
    pub fn suspend(&self) -> Result<Wake, Raise> {
        self.machine.suspend_after(self.me, || Ok(()))
    }

    /// As [`Wait::suspend`], after `first`, which may switch by itself.
    pub fn after(&self, first: impl FnOnce() -> Result<(), Raise>) -> Result<Wake, Raise> {
        self.machine.suspend_after(self.me, || {
            first()?;
            self.machine.goes_on(self.me);
            Ok(())
        })
    }

    /// As [`Wait::suspend`], until `deadline` at most.
    #[inline]
    pub fn until(&self, deadline: Option<u64>) -> Result<Wake, Raise> {
        let Some(deadline) = deadline else {
            return self.suspend();
        };
        let timer = self.machine.parts().driver.wake_at(deadline, self.id);
        let woken = self.suspend();
        self.machine.parts().driver.timers.cancel(timer);
        woken
    }

    /// What an end of the wait means: what the fiber is to raise is raised.
    pub fn ended(&self, woken: Result<Wake, Raise>) -> Result<Ended, Raise> {
        match woken? {
            Wake::Complete => Ok(Ended::Woken),
            Wake::Timeout => Ok(Ended::Deadline),
            Wake::Interrupt => match self.machine.take_resumption(self.me) {
                Some(Resumption::Raise(raise)) => Err(raise),
                Some(Resumption::Value(value)) => Ok(Ended::Scheduled(value)),
                None => Ok(Ended::Woken),
            },
        }
    }

    /// Waits for somebody to wake it, until `deadline` at most; says whether somebody did.
    ///
    /// # Errors
    /// What the fiber is to raise, or be given.
    pub fn finish(&self, deadline: Option<u64>) -> Result<bool, Failure> {
        match self.ended(self.until(deadline))? {
            Ended::Woken => Ok(true),
            Ended::Deadline => Ok(false),
            Ended::Scheduled(value) => Err(Failure::Scheduled(value)),
        }
    }

    /// Whether it was woken by `unblock`, in `block`, after it had been ended by something else.
    fn was_unblocked(&self) -> bool {
        let mut parts = self.machine.parts();
        parts.waiter(self.me).blocked && parts.driver.tasks.take_completion(self.me)
    }
}
