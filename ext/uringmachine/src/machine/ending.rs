//! The end of a thread's fibers: they are run to theirs, or unwound.

//! UM::FiberScheduler: the object, its life, and how fibers start and end. Its hooks are in
//! `hooks/`.

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::TaskId;

use crate::machine::{switch, Core, Pending};
use crate::ruby::{self, Raise, NIL, TRUE, VALUE};

/// Runs until no fiber waits in the machine.
pub unsafe fn run_all(core: *mut Core) -> Result<(), Raise> {
    // SAFETY: see `switch`.
    unsafe {
        let me = (*core).current_task();
        let outer = (*core).root.replace(me);
        let mut ended = Ok(());
        while (*core).driver.tasks.waiting() > 0 {
            // The root waits for nothing but control: every fiber that ends gives it back.
            if let Err(raise) = switch::run_others(core, me) {
                ended = Err(raise);
                break;
            }
        }
        (*core).root = outer;
        (*core).finish_wait(me);
        ended
    }
}

/// Whether the thread is unwinding for good: killed, or by a signal or an exit.
pub unsafe fn thread_is_ending() -> bool {
    // SAFETY: plain accessors.
    unsafe {
        let error = ruby::current_error();
        if ruby::as_fixnum(error).is_some() {
            return true;
        }
        error != NIL
            && (rb_sys::rb_obj_is_kind_of(error, rb_sys::rb_eSystemExit) == TRUE
                || rb_sys::rb_obj_is_kind_of(error, rb_sys::rb_eSignal) == TRUE)
    }
}

/// The thread was interrupted while it waited for its fibers: unwinds them, then goes on unwinding.
pub unsafe fn unwind_all(core: *mut Core, raise: Raise) -> Raise {
    // SAFETY: see `switch`.
    unsafe {
        let first = match raise {
            Raise::Jump(state) => switch::unwinding(state),
            raise => raise,
        };
        match (terminate_all(core), first) {
            // A kill cannot be kept while others run; the later one stands for it.
            (Err(later), Raise::Jump(_)) => later,
            (_, first) => first,
        }
    }
}

/// Unwinds every fiber, so that its ensure blocks run, and waits for those to their end, whatever interrupts. What their
/// ensure blocks start is waited for.
pub unsafe fn terminate_all(core: *mut Core) -> Result<(), Raise> {
    /// More interrupts than anybody sends: it is the machine that fails.
    const MOST: usize = 1000;
    // SAFETY: see `switch`.
    unsafe {
        (*core).ending = true;
        for task in unwindable(core) {
            (*core).interrupt(task, Pending::Unwind);
        }
        let mut later = None;
        // Fibers of the program's own have no body of ours that an unwinding could end in.
        let mut killed = Vec::new();
        while let Some((task, fiber)) = next_to_kill(core, &killed) {
            killed.push(task);
            let me = (*core).current_task();
            let outer = (*core).root.replace(me);
            let result = ruby::protect(|| crate::machine::spun::kill(fiber));
            (*core).current = me;
            (*core).root = outer;
            if let Err(state) = result {
                later.get_or_insert(switch::unwinding(state));
            }
        }
        for _ in 0..MOST {
            match run_all(core) {
                Ok(()) => break,
                Err(Raise::Jump(state)) => drop(later.get_or_insert(switch::unwinding(state))),
                Err(raise) => drop(later.get_or_insert(raise)),
            }
        }
        (*core).ending = false;
        match later.or((*core).late.take()) {
            Some(raise) => Err(raise),
            None => Ok(()),
        }
    }
}

/// The tasks of the fibers that a machine has started, and that can be told to end.
pub unsafe fn unwindable(core: *mut Core) -> Vec<TaskId> {
    // SAFETY: as above.
    unsafe {
        let current = ruby::rb_fiber_current();
        (*core)
            .driver
            .tasks
            .iter()
            .filter(|(_, _, waiter)| waiter.unwinds() && waiter.fiber != current)
            .map(|(task, _, _)| task)
            .collect()
    }
}

pub unsafe fn next_to_kill(core: *mut Core, killed: &[TaskId]) -> Option<(TaskId, VALUE)> {
    // SAFETY: see `switch`.
    unsafe {
        let current = ruby::rb_fiber_current();
        (*core)
            .driver
            .tasks
            .iter()
            .find(|(task, state, waiter)| {
                *state != State::Running
                    && waiter.fiber != current
                    && !waiter.unwinds()
                    && !killed.contains(task)
            })
            .map(|(task, _, waiter)| (task, waiter.fiber))
    }
}
