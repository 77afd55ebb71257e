//! Switching: the fiber that must wait hands the thread to the next runnable fiber, or, if there is
//! none, submits, sleeps and reaps itself. There is no loop fiber.

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{TaskId, Wake};

use super::{report, spun, Machine, Parts, Pending, NOBODY};
use crate::ruby::{self, classes, errors, fiber, gvl, is_a, Outcome, Raise, Value, NIL};

/// What a fiber does that waits.
pub(super) enum Step {
    /// It goes on: its wait has ended.
    Woken(Wake),
    /// Something is to be raised in a fiber that does not wait here.
    RaiseElsewhere,
    /// An interrupt of the thread is to be seen to.
    Interrupted,
    /// Another fiber is next.
    Switch(Value),
    /// So is one that this machine has not run yet.
    Start(TaskId),
    /// Nobody is.
    Idle,
}

impl Parts {
    /// Takes the next ready task, which runs from now on unless it is `me`.
    #[inline(always)]
    pub(super) fn next_ready(&mut self, me: TaskId) -> Step {
        let Some((task, wake)) = self.driver.tasks.next_ready() else {
            return Step::Idle;
        };
        if task == me {
            return Step::Woken(wake);
        }
        self.turns.switches += 1;
        self.fibers.current = task;
        let waiter = self.waiter(task);
        waiter.woken = wake;
        if waiter.fresh {
            return Step::Start(task);
        }
        Step::Switch(waiter.fiber)
    }
}

impl Machine {
    /// The next step of the fiber of `me`; whoever is switched to is noted as the one that runs. Every so often the ring
    /// and the timers come first.
    #[inline(always)]
    fn next_step(&self, me: TaskId) -> Step {
        let mut parts = self.parts();
        if parts.fibers.has_detours {
            if let Some(step) = parts.detour(me) {
                return step;
            }
        }
        if parts.driver.tasks.state(me) == Some(State::Running) {
            return Step::Woken(parts.waiter(me).woken);
        }
        if !parts.raises.is_empty() {
            return Step::RaiseElsewhere;
        }
        // Where nobody is ready it looks at the ring anyway.
        if !parts.driver.tasks.queue_is_empty() && parts.is_to_poll() {
            drop(parts);
            self.poll();
            parts = self.parts();
        }
        parts.next_ready(me)
    }

    /// Suspends the task until its wait has ended.
    #[inline]
    fn suspend(&self, me: TaskId) -> Result<Wake, Raise> {
        loop {
            match self.next_step(me) {
                Step::Woken(wake) => {
                    if let Some(wake) = self.heed(me, wake) {
                        return Ok(wake);
                    }
                }
                Step::RaiseElsewhere => {
                    self.raise_elsewhere(me)?;
                    continue;
                }
                Step::Interrupted => self.check_interrupts(me)?,
                Step::Switch(fiber) => {
                    fiber::transfer(fiber, &[])?;
                }
                Step::Start(task) => {
                    self.start(task)?;
                }
                Step::Idle => self.idle(me)?,
            }
            let mut parts = self.parts();
            parts.fibers.current = me;
            if parts.fibers.is_any_interrupting() {
                drop(parts);
                self.end_interruptions(me);
            }
        }
    }

    /// The fiber of a task runs again.
    #[inline]
    pub fn goes_on(&self, me: TaskId) {
        self.parts().fibers.current = me;
    }

    /// How a wait ends that has been woken; `None` if it goes on: it pays no heed to an interrupt in a finalizer or a
    /// handler, but to what closes its descriptor.
    #[inline]
    fn heed(&self, me: TaskId, wake: Wake) -> Option<Wake> {
        if wake != Wake::Interrupt {
            return Some(wake);
        }
        let heeds = {
            let mut parts = self.parts();
            let waiter = parts.waiter(me);
            waiter.closed_by != NIL || !waiter.is_to_raise()
        };
        if heeds || !self.is_aside(me) {
            return Some(wake);
        }
        self.parts().driver.tasks.go_on_waiting(me)
    }

    /// Switches to a fiber that this machine has not run yet, with the value it was scheduled with.
    #[cold]
    pub(super) fn start(&self, task: TaskId) -> Outcome {
        let (fiber, spun) = {
            let mut parts = self.parts();
            let waiter = parts.waiter(task);
            waiter.fresh = false;
            let (fiber, spun) = (waiter.fiber, waiter.spun);
            parts.trace_end_of_wait(task, &Ok(Wake::Complete));
            (fiber, spun)
        };
        if !fiber::is_alive(fiber) {
            // Somebody else has run it to its end, or has killed it.
            if spun {
                spun::end_unstarted(self, fiber)?;
            } else {
                self.parts().remove(task);
            }
            return Ok(NIL);
        }
        let value = {
            let mut parts = self.parts();
            let waiter = parts.waiter(task);
            let value = match waiter.pending.front() {
                Some(Pending::Value(value)) => *value,
                // A fiber of the program's own is given the exception as a value.
                Some(Pending::Exception(exception)) if !spun => *exception,
                _ => NIL,
            };
            if !(spun && matches!(waiter.pending.front(), Some(Pending::Exception(_)))) {
                waiter.pending.pop_front();
            }
            if !spun {
                parts.keep(task);
            }
            value
        };
        spun::set_starting(if spun { self.object() } else { NIL });
        fiber::transfer(fiber, &[value])
    }

    /// Nothing is runnable: takes what has completed, or sleeps until something does.
    #[allow(unsafe_code)]
    pub(super) fn idle(&self, me: TaskId) -> Result<(), Raise> {
        let looping = self.parts().fibers.looping();
        if looping != NIL && !self.is_of(me, looping) {
            return fiber::transfer(looping, &[]).map(drop);
        }
        let (wants_poll, has_expired) = {
            let mut parts = self.parts();
            let wants_poll = parts.driver.wants_poll() || parts.discards.any();
            if !wants_poll {
                parts.driver.fire();
            }
            (wants_poll, parts.driver.has_expired())
        };
        if wants_poll {
            self.poll();
        } else if has_expired {
            self.expire_timeouts();
        }
        let (sleep, eventfd) = {
            let mut parts = self.parts();
            if parts.has_ready() {
                return Ok(());
            }
            let prepared = parts.driver.prepare_sleep();
            prepared.map_err(|error| Raise::of(&error, libc::EINVAL))?;
            let deadline = parts.driver.timers.next_deadline();
            parts.falls_asleep();
            let eventfd = parts.driver.waker().map_or(-1, |waker| waker.fd());
            (parts.driver.sleeper(deadline), eventfd)
        };
        let mut result = Ok(());
        self.set_asleep(true);
        // SAFETY: the machine lives as long as one of its fibers waits in it, which this one does; meanwhile others use its
        // tasks, and nobody but its own thread uses its ring.
        let ran = gvl::sleep(eventfd, || result = unsafe { sleep.run() });
        self.set_asleep(false);
        {
            let mut parts = self.parts();
            parts.wakes();
            result.map_err(|error| Raise::of(&error, libc::EINVAL))?;
            parts.driver.reap();
        }
        if fiber::is_interrupted(self.thread()) {
            self.check_interrupts(me)
        } else if !ran {
            // Ruby refuses to sleep on the timer's tick and on postponed jobs too (thread.c,
            // unblock_function_set), and does so until somebody has looked after them.
            fiber::check_interrupts()
        } else {
            Ok(())
        }
    }

    /// An interrupt (a signal, Thread#raise, Thread#kill) belongs to the thread, not to the fiber that
    /// happened to wait last: if the root fiber is parked here, it gets it. That one has to look for it: Ruby notes an
    /// interrupt of the fiber that ran when it came, and a switch takes no more along than that a signal has (cont.c,
    /// ec_switch).
    #[cold]
    fn check_interrupts(&self, me: TaskId) -> Result<(), Raise> {
        let (target, ending) = {
            let mut parts = self.parts();
            let (target, ending) = (parts.interrupt_target(), parts.ending);
            let is_anothers = !ending && target.is_some_and(|root| root != me);
            parts.fibers.set_interrupted(is_anothers);
            (target, ending)
        };
        match target {
            // What interrupts the end of a thread is raised when that is over: no ensure block is cut short.
            _ if ending => {
                if let Err(raise) = fiber::check_interrupts() {
                    self.keep_late(me, raise);
                }
                Ok(())
            }
            Some(root) if root != me => {
                let fiber = {
                    let mut parts = self.parts();
                    parts.fibers.current = root;
                    parts.waiter(root).fiber
                };
                fiber::transfer(fiber, &[])?;
                self.goes_on(me);
                Ok(())
            }
            _ => fiber::check_interrupts(),
        }
    }

    /// Raises in a fiber that does not wait in this machine: it has resumed one that does, or it was
    /// suspended by its own program.
    #[cold]
    fn raise_elsewhere(&self, me: TaskId) -> Result<(), Raise> {
        let (fiber, pending) = self.parts().raises.remove(0);
        // It may wait here by now.
        let waiting = {
            let parts = self.parts();
            parts
                .find_waiting(fiber)
                .filter(|task| parts.driver.tasks.state(*task) != Some(State::Running))
        };
        if let Some(task) = waiting {
            self.interrupt(task, pending);
            return Ok(());
        }
        let exception = match pending {
            Pending::Exception(exception) | Pending::Value(exception) => exception,
            Pending::Unwind => return Ok(()),
            Pending::Timeout(key) => {
                let raises = self.parts().timeouts.get(key).copied();
                if raises.is_none_or(|timeout| timeout.is_value) {
                    return Ok(());
                }
                match self.make_timeout(key) {
                    Some(raise) => raise.exception()?,
                    None => return Ok(()),
                }
            }
        };
        // A fiber that cannot be raised in refuses that by an exception of its own.
        if !fiber::is_fiber(fiber) {
            ruby::call(fiber, "raise", &[exception])?;
        } else if fiber::is_alive(fiber) {
            fiber::raise_in(fiber, exception)?;
        }
        self.goes_on(me);
        Ok(())
    }

    /// Suspends the task after `first`, which may switch by itself, and whose failure ends the wait.
    #[inline]
    pub fn suspend_after(
        &self,
        me: TaskId,
        first: impl FnOnce() -> Result<(), Raise>,
    ) -> Result<Wake, Raise> {
        {
            let mut parts = self.parts();
            parts.waiter(me).inside = true;
            parts.trace_wait(me);
        }
        let mut woken = first().and_then(|()| self.suspend(me));
        if woken.is_err() {
            woken = self.go_on_to_the_end(me, woken);
        }
        let mut parts = self.parts();
        parts.waiter(me).inside = false;
        if parts.fibers.is_any_interrupting() {
            drop(parts);
            self.end_interruptions(me);
            parts = self.parts();
        }
        parts.fibers.current = me;
        parts.trace_end_of_wait(me, &woken);
        woken
    }

    /// While a thread ends: goes on with a wait that was interrupted by what is kept for the end.
    #[cold]
    fn go_on_to_the_end(&self, me: TaskId, mut woken: Result<Wake, Raise>) -> Result<Wake, Raise> {
        while let Err(raise) = woken {
            self.keep_for_later(me, raise)?;
            woken = self.suspend(me);
        }
        woken
    }

    /// While a thread ends: keeps what interrupts it for the end, if that is what came to a wait. A switch to a fiber looks
    /// for interrupts when it arrives (cont.c, fiber_switch), and its ensure block is not to be cut short by them.
    #[cold]
    fn keep_for_later(&self, me: TaskId, raise: Raise) -> Result<(), Raise> {
        let is_late = self.parts().ending
            && match &raise {
                Raise::Exception(exception) => report::is_fatal(*exception),
                raise => raise.is_kill(),
            };
        if !is_late {
            return Err(raise);
        }
        self.keep_late(me, raise);
        Ok(())
    }

    /// Keeps what interrupts the end of a thread. The root fiber goes on with it; no other has anything left of it in `$!`.
    #[cold]
    fn keep_late(&self, me: TaskId, raise: Raise) {
        let mut parts = self.parts();
        if parts.fibers.root != Some(me) {
            errors::end_unwinding();
        }
        parts.late.get_or_insert(raise);
    }

    /// The root fiber's part while it waits for all others: runs what is ready, or waits for something to
    /// be, once. Control comes back here when a fiber ends.
    pub fn run_others(&self, me: TaskId) -> Result<(), Raise> {
        let is_interrupted = self.parts().fibers.is_interrupted();
        if is_interrupted {
            self.check_interrupts(me)?;
        }
        let step = self.next_step(NOBODY);
        let ran = match step {
            // Nobody wakes who does not wait.
            Step::Woken(_) | Step::Interrupted => Ok(()),
            Step::RaiseElsewhere => self.raise_elsewhere(me),
            Step::Switch(fiber) => fiber::transfer(fiber, &[]).map(drop),
            Step::Start(task) => self.start(task).map(drop),
            Step::Idle => self.idle(me),
        };
        self.goes_on(me);
        ran
    }

    /// Hands the thread over without being known to the machine meanwhile, so that a fiber that nobody
    /// schedules any more can be collected. Returns the value it is scheduled with, if it ever is.
    pub fn switch_away(&self, me: TaskId) -> Outcome {
        let fiber = {
            let mut parts = self.parts();
            let home = parts.fibers.home;
            let waiter = parts.waiter(me);
            let fiber = waiter.fiber;
            if waiter.scheduled || fiber == home || !waiter.pending.is_empty() {
                drop(parts);
                return self.await_schedule(me);
            }
            parts.trace_wait(me);
            parts.remove(me);
            fiber
        };
        let value = self.wait_unknown(fiber);
        {
            let mut parts = self.parts();
            if let Some(task) = parts.find(fiber) {
                parts.fibers.current = task;
                parts.driver.tasks.end_wait(task);
            }
            parts.trace_return(fiber);
        }
        let value = value?;
        if is_a(value, classes::exception()) {
            return Err(Raise::Exception(value));
        }
        Ok(value)
    }

    /// Runs others until the current fiber, which the machine does not know, is scheduled: the value it is given.
    fn wait_unknown(&self, fiber: Value) -> Outcome {
        loop {
            let step = self.next_step(NOBODY);
            let value = match step {
                Step::Woken(_) | Step::Interrupted => continue,
                Step::RaiseElsewhere => {
                    self.raise_elsewhere(NOBODY)?;
                    continue;
                }
                // Whoever schedules this fiber makes it a task again, which has never run here.
                Step::Start(task) if self.is_of(task, fiber) => {
                    return Ok(self.take_value(task).unwrap_or(NIL));
                }
                Step::Switch(next) if next == fiber => {
                    let task = self.parts().fibers.current;
                    return Ok(self.take_value(task).unwrap_or(NIL));
                }
                Step::Start(task) => self.start(task)?,
                Step::Switch(next) => fiber::transfer(next, &[])?,
                Step::Idle => {
                    self.idle(NOBODY)?;
                    if let Some(value) = self.take_left_behind(fiber) {
                        return Ok(value);
                    }
                    continue;
                }
            };
            // It was scheduled, or else only passed by: a fiber ended.
            let current = self.parts().fibers.current;
            if self.is_of(current, fiber) {
                return Ok(value);
            }
            self.goes_on(NOBODY);
        }
    }

    /// Whether a task is a fiber's.
    fn is_of(&self, task: TaskId, fiber: Value) -> bool {
        let parts = self.parts();
        let waiter = parts.driver.tasks.get(task);
        waiter.is_some_and(|waiter| waiter.fiber == fiber)
    }

    /// The value that a task is given, which runs from now on.
    fn take_value(&self, task: TaskId) -> Option<Value> {
        let mut parts = self.parts();
        parts.fibers.current = task;
        let waiter = parts.waiter(task);
        waiter.fresh = false;
        match waiter.pending.pop_front() {
            Some(Pending::Value(value) | Pending::Exception(value)) => Some(value),
            _ => None,
        }
    }

    /// The handler of a signal that has waited in a fiber that the machine does not know leaves a task behind, which
    /// may have been given something.
    fn take_left_behind(&self, fiber: Value) -> Option<Value> {
        let task = {
            let parts = self.parts();
            let task = parts.find(fiber)?;
            if parts.driver.tasks.state(task) != Some(State::Running) {
                return None;
            }
            task
        };
        let value = self.take_value(task);
        if value.is_none() {
            let mut parts = self.parts();
            parts.fibers.current = NOBODY;
            parts.remove(task);
        }
        value
    }
}
