//! Fibers of a machine: how they start, are scheduled, hand over and end.

use std::sync::atomic::Ordering;

use magnus::prelude::*;
use magnus::{method, Error, Module, RClass, Ruby};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{TaskId, Wake};

use crate::classes::queue;
use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::owner::Um;
use crate::machine::spun::{
    end, take_starting, ANY_LISTENERS, DONE, KILL, KILLED, LISTENERS, RESULT,
};
use crate::machine::{registry, Machine, Parts, Pending, Waiter};
use crate::ruby::arguments::{wrong_type, Arguments};
use crate::ruby::call::{call_super, catch_unwinding, keyword_given};
use crate::ruby::fiber::{self, Body};
use crate::ruby::this::This;
use crate::ruby::{
    array, block, block_given, call, classes, collections, inherits, is_a, is_frozen,
    keep_until_here, run_block, set_variable, truthy, values, variable, Outcome, Raise, Value, NIL,
    TRUE,
};

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
    if !block_given() {
        return Err(Raise::argument("no block given (spin)").into());
    }
    let class = arguments.optional(1).unwrap_or(NIL);
    let (block, fiber) = if class == NIL || class == classes::fiber() {
        fiber::new::<Spun>()?
    } else if is_a(class, classes::class()) && inherits(class, classes::fiber()) {
        let block = block()?;
        (block, fiber::new_of_class::<Spun>(class, block)?)
    } else {
        return Err(wrong_type(class, "klass", "Fiber or a subclass of it").into());
    };
    let value = arguments.optional(0).unwrap_or(NIL);
    let place = caller.machine.trace_place(block)?;
    let mut parts = caller.machine.parts();
    let task = parts.insert(fiber, true);
    let waiter = parts.waiter(task);
    waiter.spun = true;
    waiter.yielding = true;
    make_ready(&mut parts, task, Pending::Value(value));
    parts.trace_start(fiber, place, Some(task));
    Ok(fiber)
}

/// Has a fiber that this machine has not run yet be run with a value.
fn make_ready(parts: &mut Parts, task: TaskId, pending: Pending) {
    let waiter = parts.waiter(task);
    waiter.fresh = true;
    waiter.pending.push_back(pending);
    let wait = parts.driver.tasks.begin_wait(task);
    parts.driver.tasks.wake(wait, Wake::Interrupt);
}

/// A fiber that the machine has spun begins: its task, which waits no more.
fn begin(machine: &Machine) -> TaskId {
    let mut parts = machine.parts();
    let me = parts.fibers.current;
    parts.driver.tasks.end_wait(me);
    parts.waiter(me).yielding = false;
    me
}

/// The body of a spun fiber: its block, with its end attended to. One that a program has resumed by itself runs without a
/// machine.
struct Spun;

impl Body for Spun {
    fn run(block: Value, argument: Value) -> Outcome {
        let fiber = fiber::current();
        let um = This::<Um>::find(take_starting());
        let machine = um.as_ref().and_then(|um| um.find_machine());
        let first = machine.and_then(|machine| {
            let me = begin(machine);
            machine.take_pending(me)
        });
        let result = match first {
            Some(Raise::Unwind) => Ok(NIL),
            Some(raise) => Err(raise),
            None => registry::end_of_forker(fiber, catch_unwinding(block, &[argument])),
        };
        end(machine.map(|machine| &**machine), fiber, result)?;
        Ok(NIL)
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
    let fiber = read_fiber(arguments.get(0))?;
    if !block_given() {
        return Err(Raise::argument("no block given (run)").into());
    }
    end(None, fiber, run_block())?;
    let machine = caller.machine;
    let me = machine.current_task();
    loop {
        machine.switch_away(me)?;
    }
}

fn read_fiber(value: Value) -> Result<Value, Raise> {
    if fiber::is_fiber(value) {
        Ok(value)
    } else {
        Err(wrong_type(value, "fiber", "a Fiber"))
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
fn schedule(this: This<Um>, fiber: Value, value: Value) -> Result<This<Um>, Raise> {
    let fiber = read_fiber(fiber)?;
    let machine = this.machine()?;
    if machine.is_forked() {
        this.own()?;
    }
    if fiber::is_alive(fiber) {
        schedule_in(machine, fiber, value);
    }
    Ok(this)
}

fn schedule_in(machine: &Machine, fiber: Value, value: Value) {
    let pending = if is_a(value, classes::exception()) {
        Pending::Exception(value)
    } else {
        Pending::Value(value)
    };
    let known = machine.parts().find_waiting(fiber);
    let task = match known {
        Some(task) => task,
        None if fiber == fiber::current() => machine.add(fiber, false),
        None => {
            // It has never run here, or has switched away for good until now.
            let task = machine.add(fiber, false);
            make_ready(&mut machine.parts(), task, pending);
            machine.notify();
            return;
        }
    };
    let (state, is_yielding) = {
        let mut parts = machine.parts();
        (parts.driver.tasks.state(task), parts.waiter(task).yielding)
    };
    match state {
        // The wait that the value was for has ended by itself.
        Some(State::Ready(_)) if !pending.is_raised() && !is_yielding => {}
        Some(State::Waiting) => {
            machine.interrupt(task, pending);
            machine.notify();
        }
        _ => machine.parts().defer(task, pending),
    }
}

/// Hands over to the next runnable fiber and waits to be scheduled. The machine does not keep a fiber that
/// waits so: one that is scheduled never again, and that nothing refers to, is collected.
///
/// @method UringMachine#switch
/// @return [Object] the value it is scheduled with
/// @example
///   machine.switch #=> the value given to machine.schedule
fn switch_(caller: Caller, _: Arguments) -> Answer {
    Ok(caller.machine.switch_away(caller.me)?)
}

/// Hands over to the next runnable fiber and waits to be scheduled, as one of the machine's pending fibers.
///
/// @method UringMachine#yield
/// @return [Object] the value it is scheduled with
/// @example
///   machine.yield #=> the value given to machine.schedule
fn yield_fiber(caller: Caller, _: Arguments) -> Answer {
    Ok(caller.machine.await_schedule(caller.me)?)
}

/// Lets every other runnable fiber run once.
///
/// @method UringMachine#snooze
/// @return [nil]
/// @example
///   machine.snooze
fn snooze(caller: Caller, _: Arguments) -> Answer {
    if let Some(value) = take_value(&caller) {
        return Ok(value);
    }
    caller.machine.yield_now(caller.me)?;
    Ok(NIL)
}

/// A value the fiber was scheduled with while it ran.
fn take_value(caller: &Caller) -> Option<Value> {
    let mut parts = caller.machine.parts();
    let pending = &mut parts.waiter(caller.me).pending;
    match pending.front() {
        Some(Pending::Value(value)) => {
            let value = *value;
            pending.pop_front();
            Some(value)
        }
        _ => None,
    }
}

/// Ends the machine's sleep in the kernel. May be called from another thread.
///
/// @method UringMachine#wakeup
/// @return [nil]
/// @example
///   Thread.new { machine.wakeup }
fn wakeup(this: This<Um>) -> Result<(), Raise> {
    if let Some(waker) = this.machine()?.parts().driver.waker() {
        waker.wake();
    }
    Ok(())
}

/// The fibers that `spin` has made and that have not ended.
///
/// @method UringMachine#fiber_set
/// @return [Set<Fiber>] a set of the caller's own
/// @example
///   machine.fiber_set.size #=> 0
fn fiber_set(this: This<Um>) -> Outcome {
    collect(&this, |_, waiter| waiter.spun)
}

/// The fibers that wait for an operation to complete, or for time to pass.
///
/// @method UringMachine#pending_fibers
/// @return [Set<Fiber>] a set of the caller's own
/// @example
///   machine.pending_fibers.size #=> 0
fn pending_fibers(this: This<Um>) -> Outcome {
    collect(&this, |state, _| state == State::Waiting)
}

fn collect(um: &Um, wanted: impl Fn(State, &Waiter) -> bool) -> Outcome {
    let list = array()?;
    // A child of fork has none of its parent's.
    for fiber in um
        .machine()?
        .fibers_that(|state, waiter| waiter.fiber != NIL && wanted(state, waiter))
    {
        collections::push(list, fiber)?;
    }
    call(list, "to_set", &[])
}

/// Has the fiber pushed to a queue when it ends, or now if it has. For a fiber of `spin` or `Fiber.schedule`, of any machine.
///
/// @method Fiber#add_done_listener(queue)
/// @param queue [UringMachine::Queue]
/// @return [Fiber] self
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   fiber.add_done_listener(queue)
///   machine.shift(queue) #=> fiber
fn add_done_listener(fiber: Value, queue: Value) -> Outcome {
    queue::check(queue)?;
    // Without a call that gives up the lock between the look and the entry.
    if has_ended(fiber) {
        queue::push(queue, fiber);
        return Ok(fiber);
    }
    ANY_LISTENERS.store(true, Ordering::Relaxed);
    collections::push_to_variable(fiber, LISTENERS.id(), queue)?;
    Ok(fiber)
}

/// Of a fiber of `Fiber.schedule` it is kept if somebody was waiting for the fiber (`UM#join`) as it ended.
///
/// @method Fiber#result
/// @return [Object, nil] what the block of a spun fiber returned, or the exception it ended by
/// @example
///   fiber.result #=> 42
fn result(fiber: Value) -> Value {
    variable(fiber, RESULT.id())
}

/// @method Fiber#done?
/// @alias Fiber#done
/// @return [true, nil] whether a fiber has ended
/// @example
///   fiber.done? #=> true
fn is_done(fiber: Value) -> Value {
    if has_ended(fiber) {
        TRUE
    } else {
        NIL
    }
}

/// One that `run` or its program has marked as done need not be at its end.
fn has_ended(fiber: Value) -> bool {
    truthy(variable(fiber, DONE.id())) || !fiber::is_alive(fiber)
}

/// @method Fiber#done_listeners
/// @return [Array<UringMachine::Queue>, nil] the queues that are told when the fiber ends
/// @example
///   fiber.done_listeners #=> nil
fn done_listeners(fiber: Value) -> Value {
    variable(fiber, LISTENERS.id())
}

/// Notes that the fiber has ended. For programs that run their fibers themselves.
///
/// @method Fiber#mark_as_done
/// @return [true]
/// @example
///   fiber.mark_as_done
fn mark_as_done(fiber: Value) -> Outcome {
    set_variable(fiber, DONE.id(), TRUE)?;
    Ok(TRUE)
}

/// Sets the fiber's result. For programs that run their fibers themselves.
///
/// @method Fiber#set_result(value)
/// @param value [Object]
/// @return [Object] value
/// @example
///   fiber.set_result(42)
fn set_result(fiber: Value, value: Value) -> Outcome {
    set_variable(fiber, RESULT.id(), value)?;
    Ok(value)
}

/// Fiber#raise and Fiber#kill transfer to a fiber that waits in a machine: whoever called them would be switched
/// away from for good, were it not in the run queue.
fn call_aside(fiber: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    let go_on = || call_super(values(arguments), has_keywords);
    if fiber == fiber::current() {
        return go_on();
    }
    match registry::waited_in_by(fiber) {
        None => go_on(),
        Some((um, machine)) => {
            let outcome = machine.step_aside(go_on);
            // The fiber may have been the last that referred to its machine.
            keep_until_here(um);
            outcome
        }
    }
}

/// Fiber#kill: see lib/uringmachine/core_ext/thread.rb for whom it is noted.
fn kill_aside(fiber: Value, arguments: &[magnus::Value]) -> Outcome {
    if !is_frozen(fiber) {
        set_variable(fiber, KILLED.id(), TRUE)?;
    }
    call_aside(fiber, arguments)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "spin", 0..=2, spin);
    machine_method!(class, "run", 1..=1, run);
    machine_method!(class, "switch", 0..=0, switch_);
    machine_method!(class, "yield", 0..=0, yield_fiber);
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
    KILL.keep(kill);
    let module = ruby.module_new();
    module.define_method("raise", method!(call_aside, -1))?;
    module.define_method("kill", method!(kill_aside, -1))?;
    fiber.prepend_module(module)?;
    Ok(())
}
