//! What fibers are to raise, or be given, at the end of a wait or at the next.

use uringmachine_runtime::driver::Timer;
use uringmachine_runtime::slab::Key;
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{clock, TaskId, Wake};

use super::{interrupts, Machine, Parts};
use crate::ruby::{self, Raise, Value, NIL, UNDEF};

/// What a fiber is to raise when its wait ends by [`Wake::Interrupt`].
#[derive(Clone, Copy, Debug)]
pub enum Pending {
    /// This exception.
    Exception(Value),
    /// That of a timeout, made when it is raised.
    Timeout(Key),
    /// This value is not raised: a machine's `schedule` gives it to the fiber.
    Value(Value),
    /// The fiber is to end.
    Unwind,
}

impl Pending {
    /// The Ruby object that must be kept for it.
    pub fn object(&self) -> Option<Value> {
        match self {
            Self::Exception(object) | Self::Value(object) => Some(*object),
            Self::Timeout(_) | Self::Unwind => None,
        }
    }

    /// Whether it is raised.
    pub fn is_raised(&self) -> bool {
        !matches!(self, Self::Value(_))
    }
}

/// How a fiber goes on that somebody has scheduled.
#[derive(Debug)]
pub enum Resumption {
    Raise(Raise),
    Value(Value),
}

/// A running `timeout_after` block.
#[derive(Clone, Copy, Debug)]
pub struct Timeout {
    pub fiber: Value,
    pub exception: Value,
    pub message: Value,
    /// `exception` is not raised: the wait returns it.
    pub is_value: bool,
    /// What has been raised, once it was made.
    pub made: Value,
}

impl Parts {
    /// Arms a timer for a running `timeout_after`.
    pub fn arm_timeout(&mut self, key: Key, seconds_from_now: u64) -> Key {
        self.driver.timers.arm(
            clock::now().saturating_add(seconds_from_now),
            Timer::Own(key),
        )
    }

    pub fn defer(&mut self, task: TaskId, pending: Pending) {
        self.waiter(task).pending.push_back(pending);
    }

    /// Whether there is nothing that a task is to raise, or be given.
    #[inline]
    pub fn has_nothing_pending(&mut self, task: TaskId) -> bool {
        let waiter = self.waiter(task);
        waiter.pending.is_empty() && waiter.closed_by == NIL
    }

    /// Takes an exception that a task was to raise at its next wait: its fiber ends without one.
    pub fn take_kept(&mut self, task: TaskId) -> Option<Value> {
        self.waiter(task)
            .pending
            .iter()
            .find_map(|pending| match pending {
                Pending::Exception(exception) => Some(*exception),
                _ => None,
            })
    }

    /// Keeps what a task was to raise for its next wait, since its operation has moved something: its result counts.
    /// What belongs to the operation goes with it; what cannot be kept (a kill, a throw) is returned.
    #[cold]
    pub fn keep_raise(&mut self, task: TaskId, raise: Raise) -> Result<(), Raise> {
        let waiter = self.waiter(task);
        let pending = match raise {
            Raise::Exception(exception) => match waiter.rare.as_ref().and_then(|rare| rare.taken) {
                Some((made, key)) if made == exception => Pending::Timeout(key),
                _ => Pending::Exception(exception),
            },
            Raise::Unwind => Pending::Unwind,
            raise => return Err(raise),
        };
        waiter.pending.push_front(pending);
        Ok(())
    }

    /// What the operation that a task is in is to raise for the close of its descriptor, if it has been closed.
    #[inline]
    pub fn closed(&mut self, task: TaskId) -> Option<Raise> {
        match self.waiter(task).closed_by {
            NIL => None,
            exception => Some(Raise::Exception(exception)),
        }
    }

    /// Forgets the values a task was given: they were for a wait that has ended by itself.
    pub fn drop_values(&mut self, task: TaskId) {
        self.waiter(task).pending.retain(Pending::is_raised);
    }

    /// Ends the operation that a task is in, because its descriptor is being closed: it raises the exception there,
    /// or nowhere.
    pub fn interrupt_by_close(&mut self, task: TaskId, exception: Value) {
        let waiter = self.waiter(task);
        waiter.closed_by = exception;
        if !waiter.draining {
            if let Some(wait) = self.driver.tasks.current_wait(task) {
                self.driver.tasks.wake(wait, Wake::Interrupt);
            }
        }
    }

    /// The masks that hold a task's timeouts back, and the exception that one would raise: `None` if it is held back by
    /// nothing.
    fn masks_over(&self, task: TaskId, pending: &Pending) -> Option<(Vec<Value>, Value)> {
        let Pending::Timeout(key) = pending else {
            return None;
        };
        let rare = self.driver.tasks.get(task)?.rare.as_ref()?;
        let timeout = self.timeouts.get(*key)?;
        Some((rare.masks.clone(), timeout.exception))
    }
}

impl Machine {
    /// Has the fibers raise whose timeouts have fired.
    pub fn expire_timeouts(&self) {
        loop {
            let expired = self.parts().driver.take_expired();
            let Some(key) = expired else { return };
            let timeout = self.parts().timeouts.get(key).copied();
            let Some(Timeout { fiber, .. }) = timeout else {
                continue;
            };
            let waiting = {
                let parts = self.parts();
                // A fiber of the program's own may have another task by now.
                (parts.find_waiting(fiber))
                    .and_then(|task| Some((task, parts.driver.tasks.state(task)?)))
            };
            let pending = Pending::Timeout(key);
            match waiting {
                Some((task, State::Waiting)) => self.interrupt(task, pending),
                // Its wait is over: it keeps the result and raises at its next wait, if it is then
                // still inside the block.
                Some((task, State::Ready(_))) => self.parts().defer(task, pending),
                // It waits somewhere else, in a fiber it has resumed.
                _ => self.parts().raises.push((fiber, pending)),
            }
        }
    }

    /// Ends a wait by something to raise or to be given; one that is draining, or over, raises at
    /// its next wait.
    pub fn interrupt(&self, task: TaskId, pending: Pending) {
        let held_back = self.is_held_back(task, &pending);
        self.trace_pending(task, &pending);
        let mut parts = self.parts();
        let waiter = parts.waiter(task);
        if !waiter.draining && !waiter.aside && !held_back {
            if let Some(wait) = parts.driver.tasks.current_wait(task) {
                parts.driver.tasks.wake(wait, Wake::Interrupt);
            }
        }
        parts.defer(task, pending);
    }

    /// Whether a mask of the fiber's holds back what it is to raise.
    fn is_held_back(&self, task: TaskId, pending: &Pending) -> bool {
        let over = self.parts().masks_over(task, pending);
        over.is_some_and(|(masks, exception)| interrupts::holds_back(&masks, exception))
    }

    /// Makes the exception that a task is to raise now, if any.
    #[inline]
    pub fn take_pending(&self, task: TaskId) -> Option<Raise> {
        if self.parts().has_nothing_pending(task) {
            return None;
        }
        self.take_raise(task)
    }

    /// As [`Machine::take_pending`]: it is raised.
    #[inline]
    pub fn raise_pending(&self, task: TaskId) -> Result<(), Raise> {
        match self.take_pending(task) {
            Some(raise) => Err(raise),
            None => Ok(()),
        }
    }

    #[cold]
    fn take_raise(&self, task: TaskId) -> Option<Raise> {
        let closed = self.parts().closed(task);
        if closed.is_some() {
            return closed;
        }
        if self.is_aside(task) {
            return None;
        }
        loop {
            let pending = self.take_let_through(task, Pending::is_raised)?;
            match self.resumption(task, pending) {
                Some(Resumption::Raise(raise)) => return Some(raise),
                Some(Resumption::Value(value)) => {
                    let mut parts = self.parts();
                    parts.waiter(task).pending.push_front(Pending::Value(value));
                }
                None => {}
            }
        }
    }

    /// What a task is to raise or be given next, if anything.
    #[inline]
    pub fn take_resumption(&self, task: TaskId) -> Option<Resumption> {
        loop {
            let next = {
                let mut parts = self.parts();
                let waiter = parts.waiter(task);
                if waiter.closed_by != NIL {
                    return Some(Resumption::Raise(Raise::Exception(waiter.closed_by)));
                }
                match waiter.rare {
                    None => Some(waiter.pending.pop_front()?),
                    Some(_) => None,
                }
            };
            let pending = match next {
                Some(pending) => pending,
                None => self.take_let_through(task, |_| true)?,
            };
            let resumption = self.resumption(task, pending);
            if resumption.is_some() {
                return resumption;
            }
        }
    }

    /// Takes the next of what a task is to raise or be given that is wanted, and that no mask holds back.
    #[cold]
    fn take_let_through(&self, task: TaskId, wanted: fn(&Pending) -> bool) -> Option<Pending> {
        let list = self.parts().driver.tasks.get(task)?.pending.clone();
        let place = (list.iter())
            .position(|pending| wanted(pending) && !self.is_held_back(task, pending))?;
        self.parts().waiter(task).pending.remove(place)
    }

    /// Whether a task waits, or is about to, in a finalizer or a handler, where it pays no heed to what it is to raise.
    pub fn is_aside(&self, task: TaskId) -> bool {
        let looks = {
            let mut parts = self.parts();
            let waiter = parts.waiter(task);
            !waiter.aside && waiter.is_to_raise()
        };
        if looks {
            let aside = interrupts::runs_aside();
            self.parts().waiter(task).aside = aside;
        }
        self.parts().waiter(task).aside
    }

    /// `None` for a timeout whose block has ended.
    fn resumption(&self, task: TaskId, pending: Pending) -> Option<Resumption> {
        match pending {
            Pending::Exception(exception) => Some(Resumption::Raise(Raise::Exception(exception))),
            Pending::Value(value) => Some(Resumption::Value(value)),
            Pending::Unwind => Some(Resumption::Raise(Raise::Unwind)),
            Pending::Timeout(key) => {
                let timeout = *self.parts().timeouts.get(key)?;
                if timeout.is_value {
                    return Some(Resumption::Value(timeout.exception));
                }
                let raise = self.make_timeout(key)?;
                if let Raise::Exception(exception) = raise {
                    self.parts().waiter(task).rare().taken = Some((exception, key));
                }
                Some(Resumption::Raise(raise))
            }
        }
    }

    /// Makes the exception of a timeout; `None` if its block has ended.
    pub fn make_timeout(&self, key: Key) -> Option<Raise> {
        let timeout = *self.parts().timeouts.get(key)?;
        let arguments = [timeout.exception, timeout.message];
        let count = if timeout.message == UNDEF { 1 } else { 2 };
        Some(match ruby::call::make_exception(&arguments[..count]) {
            Ok(exception) => {
                if let Some(timeout) = self.parts().timeouts.get_mut(key) {
                    timeout.made = exception;
                }
                Raise::Exception(exception)
            }
            Err(raise) => raise,
        })
    }
}
