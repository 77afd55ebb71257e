//! A machine that somebody else's loop drives, as Async's: its fibers hand the thread to each other as ever, and where nobody
//! is ready they give it back to the loop's fiber, which alone sleeps.

use uringmachine_runtime::operations::Poll;
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{clock, TaskId, Wake};

use super::operate::Failure;
use super::poll::{ready_events, wait_ready, wakes_for, NEVER_WAKES};
use super::switch::Step;
use super::task::Resumable;
use super::trace::For;
use super::wait::{Ended, Wait};
use super::{Machine, Parts};
use crate::ruby::{fiber, Outcome, Raise};

/// What a turn of the loop has brought.
#[derive(Clone, Copy, Debug, Default)]
pub struct Turned {
    /// How many fibers have gone on.
    pub ready: u64,
    /// Nanoseconds in the kernel's wait.
    pub slept: u64,
}

impl Parts {
    /// What a fiber does that waits, if it is not what others do.
    #[cold]
    pub(super) fn detour(&mut self, me: TaskId) -> Option<Step> {
        // Nobody else: whoever was woken, and goes to the root instead, would not be woken again.
        if self.fibers.is_interrupted() && self.interrupt_target() == Some(me) {
            return Some(Step::Interrupted);
        }
        let is_woken = self.driver.tasks.state(me) == Some(State::Running);
        let waiter = self.driver.tasks.get_mut(me)?;
        match waiter.resumable {
            Resumable::No => None,
            Resumable::Yes => {
                waiter.resumable = Resumable::Away;
                None
            }
            Resumable::Away => {
                waiter.resumable = Resumable::Yes;
                (!is_woken).then_some(Step::Woken(Wake::Interrupt))
            }
        }
    }
}

impl Machine {
    /// The fiber that runs is the loop's from now on.
    pub fn follow(&self) {
        let me = self.current_task();
        let mut parts = self.parts();
        let fiber = parts.waiter(me).fiber;
        parts.fibers.set_looping(fiber);
    }

    /// One turn of the loop, whose fiber runs: takes what has completed, sleeps until something does if nobody is ready, until a
    /// deadline at most, and has everyone run who is ready.
    pub fn turn(&self, deadline: Option<u64>) -> Result<Turned, Raise> {
        let me = self.current_task();
        let wait = self.begin_wait_anyway(me);
        let mut slept = 0;
        let sleeps = deadline != Some(0) && !self.parts().has_ready();
        if sleeps {
            slept = self.sleep_in_loop(me, &wait, deadline)?;
        } else {
            self.poll();
        }
        let before = {
            let mut parts = self.parts();
            parts.driver.tasks.wake(wait.id(), Wake::Complete);
            parts.turns.switches
        };
        self.awaits(me, For::Word("loop"));
        wait.suspend()?;
        let ready = self.parts().turns.switches - before;
        Ok(Turned { ready, slept })
    }

    fn sleep_in_loop(&self, me: TaskId, wait: &Wait, deadline: Option<u64>) -> Result<u64, Raise> {
        let timer = deadline.map(|deadline| self.parts().driver.wake_at(deadline, wait.id()));
        let since = clock::now();
        let slept = self.idle(me);
        if let Some(timer) = timer {
            self.parts().driver.timers.cancel(timer);
        }
        slept.map(|()| clock::now() - since)
    }

    /// Runs `switch`, which may transfer to another fiber. The current one goes on in its turn.
    pub fn step_behind(&self, switch: impl FnOnce() -> Outcome) -> Result<(), Raise> {
        let me = self.current_task();
        let wait = self.begin_wait(me)?;
        self.parts().driver.tasks.wake(wait.id(), Wake::Complete);
        wait.after(|| switch().map(drop)).map(drop)
    }

    /// Gives the thread back to the loop's fiber, without being woken by anything but a switch.
    pub fn give_back(&self) -> Outcome {
        let looping = self.parts().fibers.looping();
        fiber::transfer(looping, &[])
    }

    /// Sleeps until a deadline, or until somebody switches to the fiber; says whether it was the deadline.
    pub fn sleep_or_resumed(&self, deadline: u64) -> Result<bool, Raise> {
        let me = self.current_task();
        self.parts().waiter(me).resumable = Resumable::Yes;
        let ended = self.pause_for("sleep", me, Some(deadline));
        self.parts().waiter(me).resumable = Resumable::No;
        ended.map(|ended| ended == Ended::Deadline)
    }

    /// Waits until one of `events` is there, or the descriptor has hung up or failed: the events, or 0 once somebody has switched
    /// to the fiber.
    pub fn wait_ready_or_resumed(&self, me: TaskId, fd: i32, events: i64) -> Result<i64, Raise> {
        let mut poll = Poll {
            fd,
            events: wakes_for(events as u32),
        };
        self.parts().waiter(me).resumable = Resumable::Yes;
        let answer = self.ask(me, &mut poll, None);
        self.parts().waiter(me).resumable = Resumable::No;
        match answer {
            Ok(NEVER_WAKES) => wait_ready(self, me, fd, events, None),
            Ok(answer) if answer >= 0 => Ok(ready_events(answer)),
            Ok(error) if error == -libc::EINTR => Ok(0),
            Ok(error) => Err(Raise::errno(-error)),
            Err(Failure::Raise(raise)) => Err(raise),
            Err(Failure::Timeout | Failure::Scheduled(_)) => Ok(0),
        }
    }
}
