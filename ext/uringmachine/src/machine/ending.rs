//! The end of a thread's fibers: they are run to theirs, or unwound.

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{TaskId, Wake};

use super::{spun, Machine, Pending};
use crate::ruby::{as_fixnum, classes, errors, fiber, is_a, Raise, Value, NIL};

/// Whether the thread is unwinding for good: killed, or by a signal or an exit.
pub fn thread_is_ending() -> bool {
    let error = errors::current_error();
    as_fixnum(error).is_some()
        || (error != NIL
            && (is_a(error, classes::system_exit()) || is_a(error, classes::signal_exception())))
}

impl Machine {
    /// Runs until no fiber waits in the machine.
    pub fn run_all(&self) -> Result<(), Raise> {
        let me = self.current_task();
        let outer = self.parts().fibers.root.replace(me);
        self.trace_root(me);
        let mut ended = Ok(());
        while ended.is_ok() && self.parts().driver.tasks.waiting() > 0 {
            // The root waits for nothing but control: every fiber that ends gives it back.
            ended = self.run_others(me);
        }
        let mut parts = self.parts();
        parts.fibers.root = outer;
        parts.finish_wait(me);
        parts.trace_end_of_wait(me, &Ok(Wake::Complete));
        ended
    }

    /// The thread was interrupted while it waited for its fibers: unwinds them, then goes on unwinding.
    pub fn unwind_all(&self, first: Raise) -> Raise {
        match (self.terminate_all(), first) {
            // A kill cannot be kept while others run; the later one stands for it.
            (Err(later), Raise::Jump(_)) => later,
            (_, first) => first,
        }
    }

    /// Unwinds every fiber, so that its ensure blocks run, and waits for those to their end, whatever interrupts. What their
    /// ensure blocks start is waited for.
    pub fn terminate_all(&self) -> Result<(), Raise> {
        /// More interrupts than anybody sends: it is the machine that fails.
        const MOST: usize = 1000;
        self.parts().ending = true;
        for task in self.unwindable() {
            self.interrupt(task, Pending::Unwind);
        }
        let mut later = None;
        // Fibers of the program's own have no body of ours that an unwinding could end in.
        let mut killed = Vec::new();
        while let Some((task, fiber)) = self.next_to_kill(&killed) {
            killed.push(task);
            let me = self.current_task();
            let outer = self.parts().fibers.root.replace(me);
            let result = spun::kill(fiber);
            let mut parts = self.parts();
            parts.fibers.current = me;
            parts.fibers.root = outer;
            drop(parts);
            if let Err(raise) = result {
                later.get_or_insert(raise);
            }
        }
        for _ in 0..MOST {
            match self.run_all() {
                Ok(()) => break,
                Err(raise) => drop(later.get_or_insert(raise)),
            }
        }
        let mut parts = self.parts();
        parts.ending = false;
        match later.or(parts.late.take()) {
            Some(raise) => Err(raise),
            None => Ok(()),
        }
    }

    /// The tasks of the fibers that a machine has started, and that can be told to end.
    fn unwindable(&self) -> Vec<TaskId> {
        let current = fiber::current();
        let parts = self.parts();
        let tasks = parts.driver.tasks.iter();
        tasks
            .filter(|(_, _, waiter)| waiter.unwinds() && waiter.fiber != current)
            .map(|(task, _, _)| task)
            .collect()
    }

    fn next_to_kill(&self, killed: &[TaskId]) -> Option<(TaskId, Value)> {
        let current = fiber::current();
        let parts = self.parts();
        let mut tasks = parts.driver.tasks.iter();
        tasks
            .find(|(task, state, waiter)| {
                *state != State::Running
                    && waiter.fiber != current
                    && !waiter.unwinds()
                    && !killed.contains(task)
            })
            .map(|(task, _, waiter)| (task, waiter.fiber))
    }
}
