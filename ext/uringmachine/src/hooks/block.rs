//! block and unblock (Mutex, Queue, Thread#join …), and fiber_interrupt (IO#close).

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Wake;

use crate::core::Pending;
use crate::durations;
use crate::scheduler::get;
use crate::switch;
use crate::sys::{self, FALSE, NIL, TRUE, VALUE};

/// Waits until `unblock`. Ruby calls it for Mutex, Queue, ConditionVariable and Thread#join.
///
/// @method UringMachine::FiberScheduler#block(blocker, timeout = nil)
/// @param blocker [Object] what is waited for
/// @param timeout [Numeric, nil] seconds
/// @return [Boolean] true if it was unblocked, false after the timeout
/// @example
///   scheduler.block(mutex, 0.1) #=> false
unsafe extern "C" fn block(argc: std::ffi::c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        sys::method(|| {
            if !(1..=2).contains(&argc) {
                return Err(sys::Raise::argument(&format!(
                    "wrong number of arguments (given {argc}, expected 1..2)"
                )));
            }
            let core = get(this).core()?;
            let blocker = *argv;
            let deadline = if argc == 2 {
                durations::rest(*argv.add(1))?.map(durations::from_now)
            } else {
                None
            };
            let me = (*core).current_task();
            // The unblock may have come before this hook was reached. Callers look again at what they
            // wait for, except Ruby 3.4's Thread#join: it must not see another blocker's.
            let early = std::mem::replace(&mut (*core).waiter(me).unblocked_by, FALSE);
            let joins = sys::is_a(blocker, rb_sys::rb_cThread);
            if early == blocker || (early != FALSE && !joins) {
                (*core).finish_wait(me);
                return Ok(TRUE);
            }
            let waiter = (*core).waiter(me);
            waiter.blocked = true;
            waiter.blocker = blocker;
            let ended = switch::pause(core, me, deadline)?;
            Ok(sys::boolean(ended != switch::Ended::Deadline))
        })
    }
}

/// Ends a fiber's `block` or `kernel_sleep`. From any thread, any number of times, for any fiber.
///
/// @method UringMachine::FiberScheduler#unblock(blocker, fiber)
/// @param blocker [Object]
/// @param fiber [Fiber]
/// @return [nil]
/// @example
///   scheduler.unblock(mutex, fiber)
unsafe extern "C" fn unblock(this: VALUE, blocker: VALUE, fiber: VALUE) -> VALUE {
    // SAFETY: called with the GVL, which guards the tasks while their thread sleeps or not.
    unsafe {
        let Some(core) = get(this).core_from_anywhere() else {
            return NIL;
        };
        let task = match (*core).find(fiber) {
            Some(task) => task,
            // A fiber that never waited here, about to: see below.
            None if sys::rb_obj_is_fiber(fiber) == TRUE
                && sys::truthy(sys::rb_fiber_alive_p(fiber)) =>
            {
                (*core).add(fiber, false)
            }
            None => return NIL,
        };
        let task = (*core).blocked_task(task);
        match (*core).machine.tasks.state(task) {
            Some(State::Waiting | State::Ready(_)) if (*core).waiter(task).blocked => {
                // One whose wait is over takes it all the same: nobody else is given it.
                if let Some(wait) = (*core).machine.tasks.current_wait(task) {
                    if (*core).machine.tasks.wake(wait, Wake::Complete) {
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
}

/// Raises in a fiber that waits, because its IO is being closed. From any thread.
///
/// @method UringMachine::FiberScheduler#fiber_interrupt(fiber, exception)
/// @param fiber [Fiber, #raise] from Ruby 4.1 on, whatever answers alive? and raise
/// @param exception [Exception]
/// @return [nil]
/// @example
///   scheduler.fiber_interrupt(fiber, IOError.new("stream closed in another thread"))
unsafe extern "C" fn fiber_interrupt(this: VALUE, fiber: VALUE, exception: VALUE) -> VALUE {
    // SAFETY: as in `unblock`.
    unsafe {
        let Some(core) = get(this).core_from_anywhere() else {
            return NIL;
        };
        match (*core).find_waiting(fiber) {
            Some(task) => match (*core).machine.tasks.state(task) {
                Some(State::Waiting | State::Ready(_)) => {
                    (*core).interrupt_by_close(task, exception);
                }
                _ => (*core).raises.push((fiber, Pending::Exception(exception))),
            },
            None => (*core).raises.push((fiber, Pending::Exception(exception))),
        }
        (*core).notify();
        NIL
    }
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        sys::define_method(class, c"block", block as *const (), -1);
        sys::define_method(class, c"unblock", unblock as *const (), 2);
        sys::define_method(class, c"fiber_interrupt", fiber_interrupt as *const (), 2);
    }
}
