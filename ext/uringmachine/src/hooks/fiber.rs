//! fiber: Fiber.schedule.

use std::ffi::c_int;
use std::sync::OnceLock;

use magnus::{method, Error, Module, RClass, Ruby, Value};
use uringmachine_runtime::Wake;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::switch;
use crate::ruby::method::{raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, Raise, TRUE, VALUE};

/// Starts a fiber at once and returns it when it first waits, or ends. Fiber.schedule calls it.
///
/// @method UringMachine::FiberScheduler#fiber(storage: nil, &block)
/// @param storage [Hash, true, nil] as of Fiber.new
/// @return [Fiber]
/// @raise [ArgumentError] without a block
/// @example
///   Fiber.schedule { sleep 1 }
fn fiber(ruby: &Ruby, this: This<Scheduler>, arguments: &[Value]) -> Result<Value, Error> {
    let arguments = raw(arguments);
    settle(ruby, || {
        // SAFETY: see `switch` on frames and unwinding.
        unsafe {
            if rb_sys::rb_block_given_p() == 0 {
                return Err(Raise::argument(
                    "tried to create Proc object without a block",
                ));
            }
            let core = this.core()?;
            let block = rb_sys::rb_block_proc();
            let fiber = new_fiber(this.body.get(), storage(arguments)?)?;
            let me = (*core).current_task();
            let task = (*core).add(fiber, true);
            // Whoever started the fiber goes on as soon as it waits.
            let wait = (*core).driver.tasks.begin_wait(me);
            (*core).driver.tasks.wake_first(wait, Wake::Complete);
            let is_root = (*core).root.is_none() && !(*core).waiter(me).scheduled;
            if is_root {
                (*core).root = Some(me);
            }
            (*core).current = task;
            (*core).starting = block;
            let result = switch::wait(core, me, Some((fiber, this.value())));
            if is_root {
                (*core).root = None;
            }
            (*core).finish_wait(me);
            match result {
                Ok(_) => Ok(fiber),
                Err(state) => Err(Raise::Jump(state)),
            }
        }
    })
}

/// The `storage:` of `Fiber.schedule(storage: …)`, as Fiber.new takes it.
unsafe fn storage(arguments: &[VALUE]) -> Result<Option<VALUE>, Raise> {
    let argc = arguments.len();
    if argc == 0 {
        return Ok(None);
    }
    // SAFETY: type checks, and a look into a Hash.
    unsafe {
        let options = arguments[0];
        if argc > 1 || rb_sys::rb_obj_is_kind_of(options, rb_sys::rb_cHash) != TRUE {
            return Err(Raise::argument(&format!(
                "wrong number of arguments (given {argc}, expected 0)"
            )));
        }
        let key = rb_sys::rb_id2sym(ruby::id("storage"));
        let storage = rb_sys::rb_hash_lookup2(options, key, ruby::UNDEF);
        Ok((storage != ruby::UNDEF).then_some(storage))
    }
}

/// A fiber that does not block, with a body.
unsafe fn new_fiber(body: VALUE, storage: Option<VALUE>) -> Result<VALUE, Raise> {
    // SAFETY: may raise, stopped here; the Hash is on the frame.
    unsafe {
        static NEW: OnceLock<(VALUE, ruby::ID)> = OnceLock::new();
        let (class, new) = match NEW.get() {
            Some(found) => *found,
            None => {
                // A look-up may wait for other Ractors: none of them waits for it.
                let found = (ruby::class(c"Fiber"), ruby::id("new"));
                *NEW.get_or_init(|| found)
            }
        };
        ruby::protect(|| match storage {
            None => rb_sys::rb_funcall_with_block(class, new, 0, std::ptr::null(), body),
            Some(storage) => {
                let options = rb_sys::rb_hash_new();
                rb_sys::rb_hash_aset(options, rb_sys::rb_id2sym(ruby::id("storage")), storage);
                let keywords = rb_sys::RB_PASS_KEYWORDS as c_int;
                rb_sys::rb_funcall_with_block_kw(class, new, 1, &options, body, keywords)
            }
        })
        .map_err(Raise::Jump)
    }
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("fiber", method!(fiber, -1))?;
    Ok(())
}
