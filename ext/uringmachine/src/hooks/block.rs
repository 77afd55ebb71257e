//! block and unblock: Mutex, Queue, Thread#join …

use magnus::{method, Error, Module, RClass};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Wake;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::wait::Ended;
use crate::machine::Machine;
use crate::ruby::arguments::Arguments;
use crate::ruby::this::This;
use crate::ruby::{boolean, classes, duration, fiber, is_a, Outcome, Value, FALSE, TRUE};

/// Waits until `unblock`. Ruby calls it for Mutex, Queue, ConditionVariable and Thread#join.
///
/// @method UringMachine::FiberScheduler#block(blocker, timeout = nil)
/// @param blocker [Object] what is waited for
/// @param timeout [Numeric, nil] seconds
/// @return [Boolean] true if it was unblocked, false after the timeout
/// @example
///   scheduler.block(mutex, 0.1) #=> false
fn block(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 1..=2)?;
    let machine = this.machine()?;
    let blocker = arguments.get(0);
    let deadline = match arguments.all().get(1) {
        Some(timeout) => duration::rest(*timeout)?.map(duration::from_now),
        None => None,
    };
    let me = machine.current_task();
    {
        let mut parts = machine.parts();
        let waiter = parts.waiter(me);
        // The unblock may have come before this hook was reached. Callers look again at what they
        // wait for, except Ruby 3.4's Thread#join: it must not see another blocker's.
        let early = std::mem::replace(&mut waiter.unblocked_by, FALSE);
        if early == blocker || (early != FALSE && !is_a(blocker, classes::thread())) {
            parts.finish_wait(me);
            return Ok(TRUE);
        }
        waiter.blocked = true;
        waiter.blocker = blocker;
    }
    let ended = machine.pause(me, deadline)?;
    Ok(boolean(ended != Ended::Deadline))
}

/// Ends a fiber's `block` or `kernel_sleep`. From any thread, any number of times, for any fiber.
///
/// @method UringMachine::FiberScheduler#unblock(blocker, fiber)
/// @param blocker [Object]
/// @param fiber [Fiber]
/// @return [nil]
/// @example
///   scheduler.unblock(mutex, fiber)
fn unblock(this: This<Scheduler>, blocker: Value, fiber: Value) {
    if let Some(machine) = this.machine_from_anywhere() {
        unblock_in(machine, blocker, fiber);
    }
}

fn unblock_in(machine: &Machine, blocker: Value, fiber: Value) {
    let mut parts = machine.parts();
    let task = match parts.find(fiber) {
        Some(task) => task,
        None => {
            drop(parts);
            if !fiber::is_alive(fiber) {
                return;
            }
            // A fiber that never waited here, about to: see below.
            let task = machine.add(fiber, false);
            parts = machine.parts();
            task
        }
    };
    let (task, blocked) = parts.blocked_task(task);
    let state = parts.driver.tasks.state(task);
    if state == Some(State::Running) {
        // It has registered with the blocker but not reached `block` yet: remember. Or it is a thread's root fiber,
        // which waits without the scheduler: for the fibers of other threads that are in an IO it closes
        // (thread.c, rb_thread_io_close_wait).
        parts.waiter(task).unblocked_by = blocker;
        let is_home = fiber == parts.fibers.home;
        drop(parts);
        if is_home {
            fiber::wake_thread(machine.thread());
        }
    } else if blocked {
        // One whose wait is over takes it all the same: nobody else is given it.
        let wait = parts.driver.tasks.current_wait(task);
        let woken = wait.is_some_and(|wait| parts.driver.tasks.wake(wait, Wake::Complete));
        if woken && parts.trace.is_some() {
            parts.trace_wake(task);
        }
        drop(parts);
        if woken {
            machine.notify();
        }
    }
    // Else it is woken already, or waits for something else: this is for an earlier wait.
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("block", method!(block, -1))?;
    class.define_method("unblock", method!(unblock, 2))?;
    Ok(())
}
