//! close, scheduler_close and run: the end of a scheduler.

//! UM::FiberScheduler: the object, its life, and how fibers start and end. Its hooks are in
//! `hooks/`.

use crate::classes::fiber_scheduler::get;
use crate::machine::ending::{run_all, terminate_all, thread_is_ending, unwind_all};
use crate::machine::owner;
use crate::ruby::{self, Raise, NIL, TRUE, VALUE};

/// How long the end of a scheduler waits for the kernel to give memory back, in nanoseconds.
const SHUT_DOWN_LIMIT: u64 = 5_000_000_000;

/// Drives the fibers until none waits.
///
/// @method UringMachine::FiberScheduler#run
/// @return [true]
/// @example
///   scheduler.run
unsafe extern "C" fn run(this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        ruby::method(|| {
            let core = get(this).core()?;
            run_all(core)?;
            Ok(TRUE)
        })
    }
}

/// Waits for the fibers, or unwinds them if the thread is being ended, and gives the ring back. Ruby calls
/// it when the scheduler is replaced, and at the thread's end.
///
/// @method UringMachine::FiberScheduler#scheduler_close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   Fiber.set_scheduler(nil) # calls it
unsafe extern "C" fn scheduler_close(this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        ruby::method(|| {
            let scheduler = get(this);
            if scheduler.closed {
                return Err(Raise::new(
                    rb_sys::rb_eRuntimeError,
                    "Scheduler already closed!",
                ));
            }
            if scheduler.core.is_null() || (*scheduler.core).is_forked() {
                scheduler.closed = true;
                return Ok(NIL);
            }
            let core = match scheduler.core() {
                Ok(core) => core,
                Err(raise) => {
                    scheduler.closed = true;
                    return Err(raise);
                }
            };
            let ended = if thread_is_ending() {
                terminate_all(core)
            } else {
                match run_all(core) {
                    Ok(()) => Ok(()),
                    Err(raise) => Err(unwind_all(core, raise)),
                }
            };
            get(this).closed = true;
            if (*core).machine.shut_down(SHUT_DOWN_LIMIT) {
                (*core).machine.close();
            } else {
                // The kernel may still write to what the machine knows: it must never be freed.
                owner::leak(get(this).machine);
            }
            ended.map(|()| NIL)
        })
    }
}

/// Closes the scheduler: as `Fiber.set_scheduler(nil)` where it is installed.
///
/// @method UringMachine::FiberScheduler#close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   scheduler.close
unsafe extern "C" fn close(this: VALUE) -> VALUE {
    // SAFETY: plain accessors; set_scheduler calls scheduler_close and may raise, with nothing here
    // to drop.
    unsafe {
        // What is installed may be an object that delegates to this one.
        let installed = ruby::rb_fiber_scheduler_get();
        let itself = ruby::id("uring_scheduler");
        if installed == this
            || (installed != NIL
                && rb_sys::rb_respond_to(installed, itself) != 0
                && ruby::funcall(installed, itself, &[]) == this)
        {
            return ruby::rb_fiber_scheduler_set(NIL);
        }
        ruby::funcall(this, ruby::id("scheduler_close"), &[])
    }
}

/// Defines the hooks.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions take what their arity says.
    unsafe {
        ruby::define_method(class, c"run", run as *const (), 0);
        ruby::define_method(class, c"close", close as *const (), 0);
        ruby::define_method(class, c"scheduler_close", scheduler_close as *const (), 0);
    }
}
