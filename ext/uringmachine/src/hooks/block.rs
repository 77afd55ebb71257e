//! block and unblock (Mutex, Queue, Thread#join …), and fiber_interrupt (IO#close).

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Wake;

use crate::classes::fiber_scheduler::get;
use crate::machine::switch;
use crate::ruby::{self, duration, FALSE, NIL, TRUE, VALUE};

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
        ruby::method(|| {
            if !(1..=2).contains(&argc) {
                return Err(ruby::Raise::argument(&format!(
                    "wrong number of arguments (given {argc}, expected 1..2)"
                )));
            }
            let core = get(this).core()?;
            let blocker = *argv;
            let deadline = if argc == 2 {
                duration::rest(*argv.add(1))?.map(duration::from_now)
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
            None if ruby::rb_obj_is_fiber(fiber) == TRUE
                && ruby::truthy(ruby::rb_fiber_alive_p(fiber)) =>
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

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        ruby::define_method(class, c"block", block as *const (), -1);
        ruby::define_method(class, c"unblock", unblock as *const (), 2);
    }
}
