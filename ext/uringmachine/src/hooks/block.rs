//! block and unblock: Mutex, Queue, Thread#join …

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Ruby, Value};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Wake;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::switch;
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{as_value, raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, FALSE, NIL, TRUE};

/// Waits until `unblock`. Ruby calls it for Mutex, Queue, ConditionVariable and Thread#join.
///
/// @method UringMachine::FiberScheduler#block(blocker, timeout = nil)
/// @param blocker [Object] what is waited for
/// @param timeout [Numeric, nil] seconds
/// @return [Boolean] true if it was unblocked, false after the timeout
/// @example
///   scheduler.block(mutex, 0.1) #=> false
fn block(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let arguments = Arguments::of(arguments, 1..=2)?;
            let core = this.core()?;
            let blocker = arguments.get(0);
            let deadline = if let Some(timeout) = arguments.all().get(1) {
                duration::rest(*timeout)?.map(duration::from_now)
            } else {
                None
            };
            let me = (*core).current_task();
            // The unblock may have come before this hook was reached. Callers look again at what they
            // wait for, except Ruby 3.4's Thread#join: it must not see another blocker's.
            let early = std::mem::replace(&mut (*core).waiter(me).unblocked_by, FALSE);
            let joins = ruby::is_a(blocker, rb_sys::rb_cThread);
            if early == blocker || (early != FALSE && !joins) {
                (*core).finish_wait(me);
                return Ok(TRUE);
            }
            let waiter = (*core).waiter(me);
            waiter.blocked = true;
            waiter.blocker = blocker;
            let ended = switch::pause(core, me, deadline)?;
            Ok(ruby::boolean(ended != switch::Ended::Deadline))
        }
    })
}

/// Ends a fiber's `block` or `kernel_sleep`. From any thread, any number of times, for any fiber.
///
/// @method UringMachine::FiberScheduler#unblock(blocker, fiber)
/// @param blocker [Object]
/// @param fiber [Fiber]
/// @return [nil]
/// @example
///   scheduler.unblock(mutex, fiber)
fn unblock(this: This<Scheduler>, blocker: Value, fiber: Value) -> Value {
    let (blocker, fiber) = (blocker.as_raw(), fiber.as_raw());
    let body = || {
        // SAFETY: called with the GVL, which guards the tasks while their thread sleeps or not.
        unsafe {
            let Some(core) = this.core_from_anywhere() else {
                return NIL;
            };
            let task = match (*core).find(fiber) {
                Some(task) => task,
                // A fiber that never waited here, about to: see below.
                None if ruby::rb_obj_is_fiber(fiber) == TRUE
                    && ruby::truthy(ruby::rb_fiber_alive_p(fiber)) =>
                {
                    (*core).add(fiber, false)
                }
                None => return NIL,
            };
            let task = (*core).blocked_task(task);
            match (*core).driver.tasks.state(task) {
                Some(State::Waiting | State::Ready(_)) if (*core).waiter(task).blocked => {
                    // One whose wait is over takes it all the same: nobody else is given it.
                    if let Some(wait) = (*core).driver.tasks.current_wait(task) {
                        if (*core).driver.tasks.wake(wait, Wake::Complete) {
                            (*core).notify();
                        }
                    }
                }
                // It has registered with the blocker but not reached `block` yet: remember. Or it is a thread's root fiber,
                // which waits without the scheduler: for the fibers of other threads that are in an IO it closes
                // (thread.c, rb_thread_io_close_wait).
                Some(State::Running) => {
                    (*core).waiter(task).unblocked_by = blocker;
                    if fiber == (*core).home {
                        rb_sys::rb_thread_wakeup_alive((*core).thread());
                    }
                }
                // Woken already, or waiting for something else: this is for an earlier wait.
                _ => {}
            }
            NIL
        }
    };
    as_value(body())
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("block", method!(block, -1))?;
    class.define_method("unblock", method!(unblock, 2))?;
    Ok(())
}
