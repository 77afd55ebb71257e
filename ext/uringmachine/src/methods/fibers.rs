//! Fibers of a machine: how they start, are scheduled, hand over and end.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Ruby, Value};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Wake;

use crate::classes::queue;
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::spun::{
    done_variable, end, listeners_variable, result_variable, ANY_LISTENERS, KILL,
};
use crate::machine::{self, interrupts, owner, registry, switch, Pending, Resumption};
use crate::ruby::arguments::Arguments;
use crate::ruby::method::{as_value, settle};
use crate::ruby::{self, Outcome, Raise, NIL, TRUE, VALUE};

/// Makes a fiber of this machine, to be run when the current one waits or hands over.
///
/// What the block returns, or raises, is the fiber's `result`. An exception is also reported to $stderr as
/// a thread's is (Thread.report_on_exception), unless somebody waits for the fiber or it is a
/// UM::Terminate. `exit`, a signal and NoMemoryError go on to the root fiber.
///
/// @method UringMachine#spin(value = nil, klass = Fiber, &block)
/// @param value [Object] what the block is given
/// @param klass [Class] Fiber, or a subclass
/// @yieldparam value [Object]
/// @return [Fiber]
/// @raise [ArgumentError] without a block
/// @raise [TypeError] if klass is not a class of fibers
/// @example
///   fiber = machine.spin { machine.sleep(0.01); :done }
///   machine.join(fiber) #=> :done
fn spin(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        if rb_sys::rb_block_given_p() == 0 {
            return Err(Raise::argument("no block given (spin)").into());
        }
        let block = rb_sys::rb_block_proc();
        let class = arguments.optional(1).unwrap_or(NIL);
        let fiber_class = ruby::class(c"Fiber");
        let fiber = if class == NIL || class == fiber_class {
            ruby::rb_fiber_new(run_spun, block)
        } else {
            if !ruby::is_a(class, rb_sys::rb_cClass)
                || rb_sys::rb_class_inherited_p(class, fiber_class) != TRUE
            {
                return Err(crate::ruby::arguments::wrong_type(
                    class,
                    "klass",
                    "Fiber or a subclass of it",
                )
                .into());
            }
            new_of_class(class, block)?
        };
        let value = arguments.optional(0).unwrap_or(NIL);
        let core = caller.core;
        let task = (*core).add(fiber, true);
        let waiter = (*core).waiter(task);
        waiter.spun = true;
        waiter.fresh = true;
        waiter.yielding = true;
        waiter.pending.push_back(Pending::Value(value));
        let wait = (*core).driver.tasks.begin_wait(task);
        (*core).driver.tasks.wake(wait, Wake::Interrupt);
        Ok(fiber)
    }
}

/// `klass.new(blocking: false) { … }`
unsafe fn new_of_class(class: VALUE, block: VALUE) -> Outcome {
    // SAFETY: what may raise is protected.
    unsafe {
        ruby::protect(|| {
            let options = rb_sys::rb_hash_new();
            let key = rb_sys::rb_id2sym(ruby::id("blocking"));
            rb_sys::rb_hash_aset(options, key, ruby::FALSE);
            rb_sys::rb_block_call_kw(
                class,
                ruby::id("new"),
                1,
                &options,
                Some(run_spun),
                block,
                rb_sys::RB_PASS_KEYWORDS as c_int,
            )
        })
        .map_err(Raise::Jump)
    }
}

/// The body of a spun fiber: `block` with its end attended to.
unsafe extern "C" fn run_spun(
    first: VALUE,
    block: VALUE,
    argc: c_int,
    argv: *const VALUE,
    _none: VALUE,
) -> VALUE {
    // SAFETY: the machine that spun the fiber marks itself while its fibers wait; a fiber that a
    // program has resumed by itself runs without one.
    unsafe {
        let core = machine::take_starting();
        let fiber = ruby::rb_fiber_current();
        let value = if argc > 0 { *argv } else { first };
        let first = if core.is_null() {
            None
        } else {
            let me = (*core).current;
            (*core).driver.tasks.end_wait(me);
            (*core).waiter(me).yielding = false;
            (*core).take_pending(me)
        };
        let result = match first {
            Some(Raise::Unwind) => Ok(NIL),
            Some(raise) => Err(raise),
            None => {
                let arguments = [value];
                let result = ruby::protect(|| {
                    interrupts::catch_unwinding(|| {
                        rb_sys::rb_proc_call_with_block(block, 1, arguments.as_ptr(), NIL)
                    })
                });
                registry::end_of_forker(fiber, &result);
                result.map_err(|state| switch::unwinding(state))
            }
        };
        match end(core, fiber, result) {
            Ok(()) => NIL,
            Err(raise) => raise.leave(),
        }
    }
}

/// Runs a block in the current fiber as that of `fiber`, whose result it sets, then hands over for good.
/// For programs that make their fibers themselves; `spin` does all of it.
///
/// @method UringMachine#run(fiber, &block)
/// @param fiber [Fiber] whose result is set
/// @return [void] it does not return
/// @raise [TypeError] if fiber is no fiber
/// @example
///   fiber = Fiber.new { machine.run(fiber) { 42 } }
///   machine.schedule(fiber, nil)
///   machine.join(fiber) #=> 42
fn run(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        let fiber = read_fiber(arguments.get(0))?;
        if rb_sys::rb_block_given_p() == 0 {
            return Err(Raise::argument("no block given (run)").into());
        }
        let result =
            ruby::protect(|| rb_sys::rb_yield(NIL)).map_err(|state| switch::unwinding(state));
        end(std::ptr::null_mut(), fiber, result)?;
        let me = (*caller.core).current_task();
        loop {
            switch::switch_away(caller.core, me)?;
        }
    }
}

fn read_fiber(value: VALUE) -> Result<VALUE, Raise> {
    // SAFETY: a type check.
    if unsafe { ruby::rb_obj_is_fiber(value) } == TRUE {
        Ok(value)
    } else {
        Err(crate::ruby::arguments::wrong_type(
            value, "fiber", "a Fiber",
        ))
    }
}

/// Makes a fiber go on, with a value. May be called from another thread.
///
/// A fiber in `yield` or `switch` is given the value. One that waits for an operation, sleeps or waits for a
/// queue or a mutex has that ended: the call returns the value, or raises it if it is an exception. An
/// operation that has already succeeded keeps its result. A fiber that does not wait now is given the value
/// by its next `yield` or `switch`, and raises an exception at its next wait. A fiber that has ended is left
/// alone.
///
/// @method UringMachine#schedule(fiber, value)
/// @param fiber [Fiber]
/// @param value [Object] an Exception is raised
/// @return [UringMachine] self
/// @raise [TypeError] if fiber is no fiber
/// @example
///   machine.schedule(fiber, RuntimeError.new("Cancel!"))
fn schedule(ruby: &Ruby, this: Value, fiber: Value, value: Value) -> Result<Value, Error> {
    let (this, fiber, value) = (this.as_raw(), fiber.as_raw(), value.as_raw());
    settle(ruby, || {
        // SAFETY: the GVL, which is held, guards a core's tasks.
        unsafe {
            let fiber = read_fiber(fiber)?;
            let core = owner::core(this)?;
            if (*core).is_forked() {
                owner::own_core(this)?;
            }
            if !ruby::truthy(ruby::rb_fiber_alive_p(fiber)) {
                return Ok(this);
            }
            let pending = if ruby::is_a(value, rb_sys::rb_eException) {
                Pending::Exception(value)
            } else {
                Pending::Value(value)
            };
            let task = match (*core).find_waiting(fiber) {
                Some(task) => task,
                None if fiber == ruby::rb_fiber_current() => (*core).add(fiber, false),
                None => {
                    // It has never run here, or has switched away for good until now.
                    let task = (*core).add(fiber, false);
                    let waiter = (*core).waiter(task);
                    waiter.fresh = true;
                    waiter.pending.push_back(pending);
                    let wait = (*core).driver.tasks.begin_wait(task);
                    (*core).driver.tasks.wake(wait, Wake::Interrupt);
                    (*core).notify();
                    return Ok(this);
                }
            };
            let is_value = matches!(pending, Pending::Value(_));
            match (*core).driver.tasks.state(task) {
                // The wait that the value was for has ended by itself.
                Some(State::Ready(_)) if is_value && !(*core).waiter(task).yielding => {}
                Some(State::Waiting) => {
                    (*core).interrupt(task, pending);
                    (*core).notify();
                }
                _ => (*core).waiter(task).pending.push_back(pending),
            }
            Ok(this)
        }
    })
}

/// Hands over to the next runnable fiber and waits to be scheduled. The machine does not keep a fiber that
/// waits so: one that is scheduled never again, and that nothing refers to, is collected.
///
/// @method UringMachine#switch
/// @return [Object] the value it is scheduled with
/// @example
///   machine.switch #=> the value given to machine.schedule
fn switch_(caller: Caller, _: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe { Ok(switch::switch_away(caller.core, caller.me)?) }
}

/// Hands over to the next runnable fiber and waits to be scheduled, as one of the machine's pending fibers.
///
/// @method UringMachine#yield
/// @return [Object] the value it is scheduled with
/// @example
///   machine.yield #=> the value given to machine.schedule
fn yield_(caller: Caller, _: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe { Ok(switch::await_schedule(caller.core, caller.me)?) }
}

/// Lets every other runnable fiber run once.
///
/// @method UringMachine#snooze
/// @return [nil]
/// @example
///   machine.snooze
fn snooze(caller: Caller, _: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        if let Some(Resumption::Value(value)) = peek_value(&caller) {
            return Ok(value);
        }
        switch::yield_now(caller.core, caller.me)?;
        Ok(NIL)
    }
}

/// A value the fiber was scheduled with while it ran.
unsafe fn peek_value(caller: &Caller) -> Option<Resumption> {
    // SAFETY: the core is alive while one of its fibers runs.
    unsafe {
        let waiter = (*caller.core).waiter(caller.me);
        match waiter.pending.front() {
            Some(Pending::Value(value)) => {
                let value = *value;
                waiter.pending.pop_front();
                Some(Resumption::Value(value))
            }
            _ => None,
        }
    }
}

/// Ends the machine's sleep in the kernel. May be called from another thread.
///
/// @method UringMachine#wakeup
/// @return [nil]
/// @example
///   Thread.new { machine.wakeup }
fn wakeup(ruby: &Ruby, this: Value) -> Result<Value, Error> {
    let this = this.as_raw();
    settle(ruby, || {
        // SAFETY: the type is checked.
        unsafe {
            if let Some(waker) = (*owner::core(this)?).driver.waker() {
                waker.wake();
            }
            Ok(NIL)
        }
    })
}

/// The fibers that `spin` has made and that have not ended.
///
/// @method UringMachine#fiber_set
/// @return [Set<Fiber>] a set of the caller's own
/// @example
///   machine.fiber_set.size #=> 0
fn fiber_set(ruby: &Ruby, this: Value) -> Result<Value, Error> {
    // SAFETY: see `collect`.
    settle(ruby, || unsafe {
        collect(this.as_raw(), |_, waiter| waiter.spun)
    })
}

/// The fibers that wait for an operation to complete, or for time to pass.
///
/// @method UringMachine#pending_fibers
/// @return [Set<Fiber>] a set of the caller's own
/// @example
///   machine.pending_fibers.size #=> 0
fn pending_fibers(ruby: &Ruby, this: Value) -> Result<Value, Error> {
    // SAFETY: see `collect`.
    settle(ruby, || unsafe {
        collect(this.as_raw(), |state, _| state == State::Waiting)
    })
}

unsafe fn collect(this: VALUE, wanted: impl Fn(State, &machine::Waiter) -> bool) -> Outcome {
    // SAFETY: the type is checked; the list keeps the fibers while the set is made.
    unsafe {
        let core = owner::core(this)?;
        let list = rb_sys::rb_ary_new();
        let fibers: Vec<VALUE> = (*core)
            .driver
            .tasks
            .iter()
            // A child of fork has none of its parent's.
            .filter(|(_, state, waiter)| waiter.fiber != NIL && wanted(*state, waiter))
            .map(|(_, _, waiter)| waiter.fiber)
            .collect();
        ruby::protect(|| {
            for fiber in &fibers {
                rb_sys::rb_ary_push(list, *fiber);
            }
            ruby::funcall(list, ruby::id("to_set"), &[])
        })
        .map_err(Raise::Jump)
    }
}

/// Has the fiber pushed to a queue when it ends, or now if it has. For a fiber of `spin`, of any machine.
///
/// @method Fiber#add_done_listener(queue)
/// @param queue [UringMachine::Queue]
/// @return [Fiber] self
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   fiber.add_done_listener(queue)
///   machine.shift(queue) #=> fiber
fn add_done_listener(ruby: &Ruby, fiber: Value, queue: Value) -> Result<Value, Error> {
    let (fiber, queue) = (fiber.as_raw(), queue.as_raw());
    settle(ruby, || {
        // SAFETY: without a call that gives up the GVL between the look and the entry.
        unsafe {
            queue::check(queue)?;
            if ruby::truthy(rb_sys::rb_attr_get(fiber, done_variable()))
                || !ruby::truthy(ruby::rb_fiber_alive_p(fiber))
            {
                queue::push(queue, fiber);
                return Ok(fiber);
            }
            ANY_LISTENERS.store(true, Ordering::Relaxed);
            let variable = listeners_variable();
            let mut listeners = rb_sys::rb_attr_get(fiber, variable);
            if listeners == NIL {
                listeners = rb_sys::rb_ary_new();
                rb_sys::rb_ivar_set(fiber, variable, listeners);
            }
            rb_sys::rb_ary_push(listeners, queue);
            Ok(fiber)
        }
    })
}

/// @method Fiber#result
/// @return [Object, nil] what the block of a spun fiber returned, or the exception it ended by
/// @example
///   fiber.result #=> 42
fn result(fiber: Value) -> Value {
    let fiber = fiber.as_raw();
    as_value({
        // SAFETY: a plain accessor.
        unsafe { rb_sys::rb_attr_get(fiber, result_variable()) }
    })
}

/// @method Fiber#done?
/// @alias Fiber#done
/// @return [true, nil] whether a spun fiber has ended
/// @example
///   fiber.done? #=> true
fn is_done(fiber: Value) -> Value {
    let fiber = fiber.as_raw();
    as_value({
        // SAFETY: a plain accessor.
        unsafe { rb_sys::rb_attr_get(fiber, done_variable()) }
    })
}

/// @method Fiber#done_listeners
/// @return [Array<UringMachine::Queue>, nil] the queues that are told when the fiber ends
/// @example
///   fiber.done_listeners #=> nil
fn done_listeners(fiber: Value) -> Value {
    let fiber = fiber.as_raw();
    as_value({
        // SAFETY: a plain accessor.
        unsafe { rb_sys::rb_attr_get(fiber, listeners_variable()) }
    })
}

/// Notes that the fiber has ended. For programs that run their fibers themselves.
///
/// @method Fiber#mark_as_done
/// @return [true]
/// @example
///   fiber.mark_as_done
fn mark_as_done(fiber: Value) -> Value {
    let fiber = fiber.as_raw();
    as_value({
        // SAFETY: an instance variable of a fiber, which is never frozen by Ruby; else FrozenError.
        unsafe { rb_sys::rb_ivar_set(fiber, done_variable(), TRUE) }
    })
}

/// Sets the fiber's result. For programs that run their fibers themselves.
///
/// @method Fiber#set_result(value)
/// @param value [Object]
/// @return [Object] value
/// @example
///   fiber.set_result(42)
fn set_result(fiber: Value, value: Value) -> Value {
    let (fiber, value) = (fiber.as_raw(), value.as_raw());
    as_value({
        // SAFETY: as above.
        unsafe { rb_sys::rb_ivar_set(fiber, result_variable(), value) }
    })
}

/// Fiber#raise and Fiber#kill transfer to a fiber that waits in a machine: whoever called them would be switched
/// away from for good, were it not in the run queue.
unsafe extern "C" fn call_aside(argc: c_int, argv: *const Value, fiber: Value) -> Value {
    let (argv, fiber) = (argv.cast::<VALUE>(), fiber.as_raw());
    // SAFETY: Ruby passes `argc` arguments, and keywords are passed on; see `switch`.
    unsafe {
        let (machine, core) = match registry::waited_in_by(fiber) {
            Some(found) if fiber != ruby::rb_fiber_current() => found,
            _ => return as_value(rb_sys::rb_call_super(argc, argv)),
        };
        as_value(ruby::method(|| {
            let outcome = switch::step_aside(core, || rb_sys::rb_call_super(argc, argv));
            // The fiber may have been the last that referred to its machine.
            std::hint::black_box(machine);
            outcome
        }))
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "spin", 0..=2, spin);
    machine_method!(class, "run", 1..=1, run);
    machine_method!(class, "switch", 0..=0, switch_);
    machine_method!(class, "yield", 0..=0, yield_);
    machine_method!(class, "snooze", 0..=0, snooze);
    class.define_method("schedule", method!(schedule, 2))?;
    class.define_method("wakeup", method!(wakeup, 0))?;
    class.define_method("fiber_set", method!(fiber_set, 0))?;
    class.define_method("pending_fibers", method!(pending_fibers, 0))?;

    // Included, not defined on Fiber itself: what a program has defined there stays.
    let module = class.define_module("FiberExtensions")?;
    module.define_method("add_done_listener", method!(add_done_listener, 1))?;
    module.define_method("result", method!(result, 0))?;
    module.define_method("done?", method!(is_done, 0))?;
    module.define_method("done", method!(is_done, 0))?;
    module.define_method("done_listeners", method!(done_listeners, 0))?;
    module.define_method("mark_as_done", method!(mark_as_done, 0))?;
    module.define_method("set_result", method!(set_result, 1))?;
    let ruby = Ruby::get_with(class);
    let fiber: RClass = ruby.class_object().const_get("Fiber")?;
    fiber.include_module(module)?;

    let kill: Value = fiber.funcall("instance_method", (ruby.to_symbol("kill"),))?;
    ruby.gc_register_mark_object(kill);
    KILL.store(kill.as_raw(), Ordering::Relaxed);
    let module = ruby.module_new();
    for name in ["raise", "kill"] {
        let function = call_aside as unsafe extern "C" fn(c_int, *const Value, Value) -> Value;
        module.define_method(name, function)?;
    }
    fiber.prepend_module(module)?;
    Ok(())
}
