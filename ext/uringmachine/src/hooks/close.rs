//! close, scheduler_close and run: the end of a scheduler.

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::ending::{run_all, terminate_all, thread_is_ending, unwind_all};
use crate::machine::owner;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL, TRUE};

/// How long the end of a scheduler waits for the kernel to give memory back, in nanoseconds.
const SHUT_DOWN_LIMIT: u64 = 5_000_000_000;

/// Drives the fibers until none waits.
///
/// @method UringMachine::FiberScheduler#run
/// @return [true]
/// @example
///   scheduler.run
fn run(ruby: &Ruby, this: This<Scheduler>) -> Result<Value, Error> {
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let core = this.core()?;
            run_all(core)?;
            Ok(TRUE)
        }
    })
}

/// Waits for the fibers, or unwinds them if the thread is being ended, and gives the ring back. Ruby calls
/// it when the scheduler is replaced, and at the thread's end.
///
/// @method UringMachine::FiberScheduler#scheduler_close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   Fiber.set_scheduler(nil) # calls it
fn scheduler_close(ruby: &Ruby, this: This<Scheduler>) -> Result<Value, Error> {
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let scheduler = this;
            if scheduler.closed.get() {
                return Err(Raise::new(
                    rb_sys::rb_eRuntimeError,
                    "Scheduler already closed!",
                ));
            }
            if scheduler.core.get().is_null() || (*scheduler.core.get()).is_forked() {
                scheduler.closed.set(true);
                return Ok(NIL);
            }
            let core = match scheduler.core() {
                Ok(core) => core,
                Err(raise) => {
                    scheduler.closed.set(true);
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
            this.closed.set(true);
            if (*core).driver.shut_down(SHUT_DOWN_LIMIT) {
                (*core).driver.close();
            } else {
                // The kernel may still write to what the machine knows: it must never be freed.
                owner::leak(this.machine.get());
            }
            ended.map(|()| NIL)
        }
    })
}

/// Closes the scheduler: as `Fiber.set_scheduler(nil)` where it is installed.
///
/// @method UringMachine::FiberScheduler#close
/// @return [nil]
/// @raise [RuntimeError] if it is closed already
/// @example
///   scheduler.close
fn close(ruby: &Ruby, this: This<Scheduler>) -> Result<Value, Error> {
    let this = this.value();
    let close = || {
        // SAFETY: plain calls of Ruby's, stopped where they raise, with nothing here to drop.
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
    };
    // SAFETY: `close` holds plain values.
    settle(ruby, || unsafe {
        ruby::protect(close).map_err(Raise::Jump)
    })
}

/// Defines the hooks.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("run", method!(run, 0))?;
    class.define_method("close", method!(close, 0))?;
    class.define_method("scheduler_close", method!(scheduler_close, 0))?;
    Ok(())
}
