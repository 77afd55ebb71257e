//! process_fork: what a child of fork has of the scheduler.

use std::ffi::c_int;

use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::classes::machine;
use crate::machine::owner;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL, TRUE, VALUE};

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
fn process_fork(ruby: &Ruby, this: This<Scheduler>) -> Result<Value, Error> {
    settle(ruby, || {
        // SAFETY: the type is checked; what may raise is protected.
        unsafe {
            let scheduler = this;
            if scheduler.core.get().is_null() || !(*scheduler.core.get()).is_forked() {
                return Err(Raise::misuse("process_fork is for a child of fork"));
            }
            if !scheduler.renews.get() {
                return Ok(NIL);
            }
            ruby::protect(|| renew(this)).map_err(Raise::Jump)
        }
    })
}

/// A scheduler as `this` for the child, installed. May longjmp.
unsafe fn renew(this: This<Scheduler>) -> VALUE {
    // SAFETY: plain calls of Ruby methods; nothing here needs dropping.
    unsafe {
        let parents = this.machine.get();
        let size = owner::size_of(parents) as i64;
        let sqpoll = ruby::funcall(parents, ruby::id("sqpoll_mode?"), &[]);
        let options = [("size", ruby::fixnum(size)), ("sqpoll", sqpoll)];
        let machine = new_with(machine::class(), &[], &options);
        let renew = rb_sys::rb_id2sym(ruby::id("renew"));
        let new = new_with(
            rb_sys::rb_obj_class(this.value()),
            &[machine],
            &[("fork", renew)],
        );
        if this.abort_on_exception.get() {
            ruby::funcall(new, ruby::id("abort_on_exception="), &[TRUE]);
        }
        ruby::rb_fiber_scheduler_set(new);
        new
    }
}

/// `class.new` with keywords. May longjmp.
unsafe fn new_with(class: VALUE, arguments: &[VALUE], options: &[(&str, VALUE)]) -> VALUE {
    // SAFETY: the arguments are on this frame.
    unsafe {
        let hash = rb_sys::rb_hash_new();
        for (name, value) in options {
            rb_sys::rb_hash_aset(hash, rb_sys::rb_id2sym(ruby::id(name)), *value);
        }
        let mut list = [NIL; 2];
        list[..arguments.len()].copy_from_slice(arguments);
        list[arguments.len()] = hash;
        let count = arguments.len() as c_int + 1;
        let keywords = rb_sys::RB_PASS_KEYWORDS as c_int;
        rb_sys::rb_funcallv_kw(class, ruby::id("new"), count, list.as_ptr(), keywords)
    }
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("process_fork", method!(process_fork, 0))?;
    Ok(())
}
