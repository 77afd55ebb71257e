//! process_fork: what a child of fork has of the scheduler.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::classes::machine;
use crate::machine::owner;
use crate::ruby::call::call_with_keywords;
use crate::ruby::this::This;
use crate::ruby::{call, class_of, fiber, fixnum, options, symbol, Outcome, Raise, NIL, TRUE};

/// Gives a child of fork its scheduler: none, or, if this one was made with `fork: :renew`, a fresh one of the
/// same class on a machine of the same size, which is installed. The child of every fork that goes through
/// Ruby (fork, IO.popen("-"), Process.daemon) calls it, by the fiber that forked, after the parent's ring has
/// been left alone. That fiber is the child's only one, and its root: it blocks, as the main program does, and
/// what it gives to Fiber.schedule runs under the new scheduler. Classes of one's own may override it.
///
/// @method UringMachine::FiberScheduler#process_fork
/// @return [UringMachine::FiberScheduler, nil] the child's scheduler
/// @raise [UringMachine::Error] in the process that the scheduler belongs to
/// @raise [Errno::EMFILE] and the like, if a resource is short
/// @example
///   def process_fork
///     super&.tap { |scheduler| scheduler.abort_on_exception = true }
///   end
fn process_fork(this: This<Scheduler>) -> Outcome {
    let is_parents = (this.known_machine()).is_some_and(|machine| machine.is_forked());
    if !is_parents {
        return Err(Raise::misuse("process_fork is for a child of fork"));
    }
    if !this.renews.get() {
        return Ok(NIL);
    }
    renew(this)
}

/// A scheduler as `this` for the child, installed. May longjmp.
fn renew(this: This<Scheduler>) -> Outcome {
    let parents = this.um.get();
    let size = owner::find(parents)?.size.get();
    let sqpoll = call(parents, "sqpoll_mode?", &[])?;
    let size = ("size", fixnum(i64::from(size)));
    let arguments = [options(&[size, ("sqpoll", sqpoll)])?];
    let machine = call_with_keywords(machine::class(), "new", &arguments)?;
    let arguments = [machine, options(&[("fork", symbol("renew"))])?];
    let new = call_with_keywords(class_of(this.value()), "new", &arguments)?;
    if this.abort_on_exception.get() {
        call(new, "abort_on_exception=", &[TRUE])?;
    }
    fiber::set_scheduler(new)?;
    Ok(new)
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("process_fork", method!(process_fork, 0))?;
    Ok(())
}
