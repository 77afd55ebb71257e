//! UM::Queue: values between fibers, of one machine or of several threads'.

use std::cell::RefCell;
use std::collections::VecDeque;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::line::Line;
use crate::machine::owner::Um;
use crate::machine::spun;
use crate::ruby::arguments::wrong_type;
use crate::ruby::this::This;
use crate::ruby::{Outcome, Raise, Value};

/// What a UM::Queue holds. Nothing that runs Ruby, or allocates, is called while either is borrowed.
#[derive(Default, TypedData)]
#[magnus(class = "UringMachine::Queue", mark, size, free_immediately)]
pub struct Queue {
    values: RefCell<VecDeque<Value>>,
    line: Line,
}

impl DataTypeFunctions for Queue {
    fn mark(&self, marker: &Marker) {
        for value in self.values.borrow().iter() {
            marker.mark(value.to_magnus());
        }
        self.line.mark();
    }
}

impl Queue {
    fn push(&self, value: Value) {
        self.values.borrow_mut().push_back(value);
        self.line.wake_one();
    }

    fn unshift(&self, value: Value) {
        self.values.borrow_mut().push_front(value);
        self.line.wake_one();
    }
}

fn find(value: Value) -> Result<This<Queue>, Raise> {
    This::find(value).ok_or_else(|| wrong_type(value, "queue", "a UM::Queue"))
}

/// Whether a value is a queue, else the error to raise.
pub fn check(value: Value) -> Result<(), Raise> {
    find(value).map(drop)
}

/// Appends a value and wakes a fiber that waits for one.
pub fn push(queue: Value, value: Value) {
    if let Ok(queue) = find(queue) {
        queue.push(value);
    }
}

/// Adds a value to the end of a queue. Does not wait; any thread's machine may be used.
///
/// @method UringMachine#push(queue, value)
/// @param queue [UringMachine::Queue]
/// @param value [Object]
/// @return [UringMachine::Queue] queue
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   machine.push(queue, :job)
fn push_(_machine: Value, queue: This<Queue>, value: Value) -> This<Queue> {
    queue.push(value);
    queue
}

/// Adds a value to the head of a queue. Does not wait.
///
/// @method UringMachine#unshift(queue, value)
/// @param queue [UringMachine::Queue]
/// @param value [Object]
/// @return [UringMachine::Queue] queue
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   machine.unshift(queue, :urgent)
fn unshift(_machine: Value, queue: This<Queue>, value: Value) -> This<Queue> {
    queue.unshift(value);
    queue
}

/// Takes the value at the end of a queue; waits while there is none.
///
/// @method UringMachine#pop(queue)
/// @param queue [UringMachine::Queue]
/// @return [Object]
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   machine.pop(queue) #=> the newest value
fn pop(machine: This<Um>, queue: This<Queue>) -> Outcome {
    take(machine, queue, VecDeque::pop_back)
}

/// Takes the value at the head of a queue; waits while there is none.
///
/// @method UringMachine#shift(queue)
/// @param queue [UringMachine::Queue]
/// @return [Object]
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   machine.shift(queue) #=> the oldest value
fn shift(machine: This<Um>, queue: This<Queue>) -> Outcome {
    take(machine, queue, VecDeque::pop_front)
}

#[inline]
fn take(
    machine: This<Um>,
    queue: This<Queue>,
    from: impl Fn(&mut VecDeque<Value>) -> Option<Value>,
) -> Outcome {
    if let Some(value) = from(&mut queue.values.borrow_mut()) {
        return Ok(value);
    }
    answer(wait_for_one(&machine, queue, from))
}

fn wait_for_one(
    um: &Um,
    queue: This<Queue>,
    from: impl Fn(&mut VecDeque<Value>) -> Option<Value>,
) -> Answer {
    let caller = Caller::new(um)?;
    let mut again = false;
    loop {
        if let Err(failure) = queue.line.wait(&caller, "UM::Queue", again, None) {
            // It may have been woken for a value that it now leaves to another.
            let has_any = !queue.values.borrow().is_empty();
            if has_any {
                queue.line.wake_one();
            }
            return Err(failure);
        }
        let value = from(&mut queue.values.borrow_mut());
        if let Some(value) = value {
            queue.keep();
            return Ok(value);
        }
        again = true;
    }
}

/// @method UringMachine::Queue#count
/// @return [Integer] the values in the queue
/// @example
///   UM::Queue.new.count #=> 0
fn count(queue: This<Queue>) -> usize {
    queue.values.borrow().len()
}

/// @method UringMachine::Queue#num_waiting
/// @return [Integer] the fibers that wait for a value
/// @example
///   UM::Queue.new.num_waiting #=> 0
fn num_waiting(queue: This<Queue>) -> usize {
    queue.line.len()
}

/// Defines the class, and the machine's methods for it.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    spun::PUSH.get_or_init(|| push);
    let class = module.define_class("Queue", ruby.class_object())?;
    class.define_alloc_func::<Queue>();
    class.define_method("count", method!(count, 0))?;
    class.define_method("num_waiting", method!(num_waiting, 0))?;
    module.define_method("push", method!(push_, 2))?;
    module.define_method("unshift", method!(unshift, 2))?;
    module.define_method("pop", method!(pop, 1))?;
    module.define_method("shift", method!(shift, 1))?;
    Ok(())
}
