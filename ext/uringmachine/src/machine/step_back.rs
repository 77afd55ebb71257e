//! Stepping back: a fiber that can run lets the others go first, in one look at its machine before and one after.

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{TaskId, Wake};

use super::switch::Step;
use super::trace::For;
use super::wait::Wait;
use super::{Machine, Parts};
use crate::ruby::{fiber, Outcome, Raise};

impl Parts {
    /// The running task goes to the end of the run queue; says who is next. `None` if there is more to be seen to first.
    #[inline(always)]
    fn step_back(&mut self, me: TaskId) -> Option<Step> {
        if !self.raises.is_empty() || self.trace.is_some() || self.is_to_poll() {
            return None;
        }
        if self.driver.tasks.queue_is_empty() {
            return Some(Step::Woken(Wake::Complete));
        }
        self.driver.tasks.step_back(me);
        let step = self.next_ready(me);
        match step {
            Step::Woken(_) => self.finish_wait(me),
            _ => self.waiter(me).inside = true,
        }
        Some(step)
    }

    /// The task that has stepped back goes on, if nothing has come between.
    #[inline(always)]
    fn step_forward(&mut self, me: TaskId) -> bool {
        let is_woken = self.driver.tasks.state(me) == Some(State::Running)
            && self.waiter(me).woken == Wake::Complete
            && !self.fibers.is_any_interrupting();
        if is_woken {
            self.fibers.current = me;
            self.waiter(me).inside = false;
            self.finish_wait(me);
        }
        is_woken
    }
}

impl Machine {
    /// Lets every other runnable fiber run once.
    #[inline]
    pub fn yield_now(&self, me: TaskId) -> Result<(), Raise> {
        let step = self.parts_to_wait(me)?.step_back(me);
        let arrived = match step {
            Some(Step::Woken(_)) => return Ok(()),
            Some(Step::Switch(fiber)) => fiber::transfer(fiber, &[]),
            Some(Step::Start(task)) => self.start(task),
            _ => return self.yield_and_poll(me),
        };
        if arrived.is_ok() && self.parts().step_forward(me) {
            return Ok(());
        }
        self.finish_yielding(me, arrived)
    }

    /// As [`Machine::yield_now`], when it is the turn of the ring, or of an exception for somebody else.
    #[cold]
    fn yield_and_poll(&self, me: TaskId) -> Result<(), Raise> {
        let wait = self.begin_wait(me)?;
        self.awaits(me, For::Word("turn"));
        self.parts().driver.tasks.wake(wait.id(), Wake::Complete);
        wait.suspend().map(drop)
    }

    /// The end of [`Machine::yield_now`] for a fiber that was switched to for something else than its turn.
    #[cold]
    fn finish_yielding(&self, me: TaskId, arrived: Outcome) -> Result<(), Raise> {
        let id = self.parts().driver.tasks.current_wait(me);
        let wait = id.map(|id| Wait::begun(self, me, id));
        let woken = self.suspend_after(me, || arrived.map(drop));
        drop(wait);
        woken.map(drop)
    }
}
