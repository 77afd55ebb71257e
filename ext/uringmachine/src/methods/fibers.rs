//! Fibers of a machine: how they start, are scheduled, hand over and end.

use std::ffi::c_int;
use std::sync::atomic::Ordering;

use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Wake;

use crate::classes::queue;
use crate::machine::caller::{method, Caller};
use crate::machine::spun::{
    done_variable, end, listeners_variable, result_variable, ANY_LISTENERS, KILL,
};
use crate::machine::{self, interrupts, owner, registry, switch, Pending, Resumption};
use crate::ruby::{self, define_all, Outcome, Raise, NIL, TRUE, VALUE};

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
unsafe extern "C" fn spin(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        method(argc, argv, this, 0..=2, |caller, arguments| {
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
            let wait = (*core).machine.tasks.begin_wait(task);
            (*core).machine.tasks.wake(wait, Wake::Interrupt);
            Ok(fiber)
        })
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
            (*core).machine.tasks.end_wait(me);
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
unsafe extern "C" fn run(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        method(argc, argv, this, 1..=1, |caller, arguments| {
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
        })
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
unsafe extern "C" fn schedule(this: VALUE, fiber: VALUE, value: VALUE) -> VALUE {
    // SAFETY: the GVL, which is held, guards a core's tasks.
    unsafe {
        ruby::method(|| {
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
                    let wait = (*core).machine.tasks.begin_wait(task);
                    (*core).machine.tasks.wake(wait, Wake::Interrupt);
                    (*core).notify();
                    return Ok(this);
                }
            };
            let is_value = matches!(pending, Pending::Value(_));
            match (*core).machine.tasks.state(task) {
                // The wait that the value was for has ended by itself.
                Some(State::Ready(_)) if is_value && !(*core).waiter(task).yielding => {}
                Some(State::Waiting) => {
                    (*core).interrupt(task, pending);
                    (*core).notify();
                }
                _ => (*core).waiter(task).pending.push_back(pending),
            }
            Ok(this)
        })
    }
}

/// Hands over to the next runnable fiber and waits to be scheduled. The machine does not keep a fiber that
/// waits so: one that is scheduled never again, and that nothing refers to, is collected.
///
/// @method UringMachine#switch
/// @return [Object] the value it is scheduled with
/// @example
///   machine.switch #=> the value given to machine.schedule
unsafe extern "C" fn switch_(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        method(argc, argv, this, 0..=0, |caller, _| {
            Ok(switch::switch_away(caller.core, caller.me)?)
        })
    }
}

/// Hands over to the next runnable fiber and waits to be scheduled, as one of the machine's pending fibers.
///
/// @method UringMachine#yield
/// @return [Object] the value it is scheduled with
/// @example
///   machine.yield #=> the value given to machine.schedule
unsafe extern "C" fn yield_(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        method(argc, argv, this, 0..=0, |caller, _| {
            Ok(switch::await_schedule(caller.core, caller.me)?)
        })
    }
}

/// Lets every other runnable fiber run once.
///
/// @method UringMachine#snooze
/// @return [nil]
/// @example
///   machine.snooze
unsafe extern "C" fn snooze(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        method(argc, argv, this, 0..=0, |caller, _| {
            if let Some(Resumption::Value(value)) = peek_value(&caller) {
                return Ok(value);
            }
            switch::yield_now(caller.core, caller.me)?;
            Ok(NIL)
        })
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
unsafe extern "C" fn wakeup(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            if let Some(waker) = (*owner::core(this)?).machine.waker() {
                waker.wake();
            }
            Ok(NIL)
        })
    }
}

/// The fibers that `spin` has made and that have not ended.
///
/// @method UringMachine#fiber_set
/// @return [Set<Fiber>] a set of the caller's own
/// @example
///   machine.fiber_set.size #=> 0
unsafe extern "C" fn fiber_set(this: VALUE) -> VALUE {
    // SAFETY: see `collect`.
    unsafe { collect(this, |_, waiter| waiter.spun) }
}

/// The fibers that wait for an operation to complete, or for time to pass.
///
/// @method UringMachine#pending_fibers
/// @return [Set<Fiber>] a set of the caller's own
/// @example
///   machine.pending_fibers.size #=> 0
unsafe extern "C" fn pending_fibers(this: VALUE) -> VALUE {
    // SAFETY: see `collect`.
    unsafe { collect(this, |state, _| state == State::Waiting) }
}

unsafe fn collect(this: VALUE, wanted: impl Fn(State, &machine::Waiter) -> bool) -> VALUE {
    // SAFETY: the type is checked; the list keeps the fibers while the set is made.
    unsafe {
        ruby::method(|| {
            let core = owner::core(this)?;
            let list = rb_sys::rb_ary_new();
            let fibers: Vec<VALUE> = (*core)
                .machine
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
        })
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
unsafe extern "C" fn add_done_listener(fiber: VALUE, queue: VALUE) -> VALUE {
    // SAFETY: without a call that gives up the GVL between the look and the entry.
    unsafe {
        ruby::method(|| {
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
        })
    }
}

/// @method Fiber#result
/// @return [Object, nil] what the block of a spun fiber returned, or the exception it ended by
/// @example
///   fiber.result #=> 42
unsafe extern "C" fn result(fiber: VALUE) -> VALUE {
    // SAFETY: a plain accessor.
    unsafe { rb_sys::rb_attr_get(fiber, result_variable()) }
}

/// @method Fiber#done?
/// @alias Fiber#done
/// @return [true, nil] whether a spun fiber has ended
/// @example
///   fiber.done? #=> true
unsafe extern "C" fn is_done(fiber: VALUE) -> VALUE {
    // SAFETY: a plain accessor.
    unsafe { rb_sys::rb_attr_get(fiber, done_variable()) }
}

/// @method Fiber#done_listeners
/// @return [Array<UringMachine::Queue>, nil] the queues that are told when the fiber ends
/// @example
///   fiber.done_listeners #=> nil
unsafe extern "C" fn done_listeners(fiber: VALUE) -> VALUE {
    // SAFETY: a plain accessor.
    unsafe { rb_sys::rb_attr_get(fiber, listeners_variable()) }
}

/// Notes that the fiber has ended. For programs that run their fibers themselves.
///
/// @method Fiber#mark_as_done
/// @return [true]
/// @example
///   fiber.mark_as_done
unsafe extern "C" fn mark_as_done(fiber: VALUE) -> VALUE {
    // SAFETY: an instance variable of a fiber, which is never frozen by Ruby; else FrozenError.
    unsafe { rb_sys::rb_ivar_set(fiber, done_variable(), TRUE) }
}

/// Sets the fiber's result. For programs that run their fibers themselves.
///
/// @method Fiber#set_result(value)
/// @param value [Object]
/// @return [Object] value
/// @example
///   fiber.set_result(42)
unsafe extern "C" fn set_result(fiber: VALUE, value: VALUE) -> VALUE {
    // SAFETY: as above.
    unsafe { rb_sys::rb_ivar_set(fiber, result_variable(), value) }
}

/// Fiber#raise and Fiber#kill transfer to a fiber that waits in a machine: whoever called them would be switched
/// away from for good, were it not in the run queue.
unsafe extern "C" fn call_aside(argc: c_int, argv: *const VALUE, fiber: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments, and keywords are passed on; see `switch`.
    unsafe {
        let (machine, core) = match registry::waited_in_by(fiber) {
            Some(found) if fiber != ruby::rb_fiber_current() => found,
            _ => return rb_sys::rb_call_super(argc, argv),
        };
        ruby::method(|| {
            let outcome = switch::step_aside(core, || rb_sys::rb_call_super(argc, argv));
            // The fiber may have been the last that referred to its machine.
            std::hint::black_box(machine);
            outcome
        })
    }
}

/// Defines the methods.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions are methods that take what their arity says.
    unsafe {
        define_all(
            class,
            &[
                (c"spin", spin),
                (c"run", run),
                (c"switch", switch_),
                (c"yield", yield_),
                (c"snooze", snooze),
            ],
        );
        ruby::define_method(class, c"schedule", schedule as *const (), 2);
        ruby::define_method(class, c"wakeup", wakeup as *const (), 0);
        ruby::define_method(class, c"fiber_set", fiber_set as *const (), 0);
        ruby::define_method(class, c"pending_fibers", pending_fibers as *const (), 0);

        // Included, not defined on Fiber itself: what a program has defined there stays.
        let module = rb_sys::rb_define_module_under(class, c"FiberExtensions".as_ptr());
        let define = |name, function, arity| ruby::define_method(module, name, function, arity);
        define(c"add_done_listener", add_done_listener as *const (), 1);
        define(c"result", result as *const (), 0);
        define(c"done?", is_done as *const (), 0);
        define(c"done", is_done as *const (), 0);
        define(c"done_listeners", done_listeners as *const (), 0);
        define(c"mark_as_done", mark_as_done as *const (), 0);
        define(c"set_result", set_result as *const (), 1);
        rb_sys::rb_include_module(ruby::class(c"Fiber"), module);

        let name = rb_sys::rb_id2sym(ruby::id("kill"));
        let kill = ruby::funcall(ruby::class(c"Fiber"), ruby::id("instance_method"), &[name]);
        rb_sys::rb_gc_register_mark_object(kill);
        KILL.store(kill, Ordering::Relaxed);
        let module = rb_sys::rb_module_new();
        ruby::define_method(module, c"raise", call_aside as *const (), -1);
        ruby::define_method(module, c"kill", call_aside as *const (), -1);
        rb_sys::rb_prepend_module(ruby::class(c"Fiber"), module);
    }
}
