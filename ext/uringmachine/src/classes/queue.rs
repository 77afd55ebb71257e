//! UM::Queue: values between fibers, of one machine or of several threads'.

use std::collections::VecDeque;
use std::ffi::c_void;

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::line::{self, Waiters};
use crate::machine::spun;
use crate::ruby::arguments::wrong_type;
use crate::ruby::typed_data::DataType;
use crate::ruby::{self, Raise, VALUE};

/// What a UM::Queue holds.
#[derive(Default)]
struct Queue {
    values: VecDeque<VALUE>,
    waiters: Waiters,
}

static TYPE: DataType = DataType::new::<Queue>(c"UM::Queue", mark, free);

unsafe extern "C" fn mark(data: *mut c_void) {
    // SAFETY: Ruby hands over the data of an object of this type.
    unsafe {
        let queue = data.cast::<Queue>();
        for value in &(*queue).values {
            rb_sys::rb_gc_mark(*value);
        }
        (*queue).waiters.mark();
    }
}

unsafe extern "C" fn free(data: *mut c_void) {
    // SAFETY: the object is dead.
    drop(unsafe { Box::from_raw(data.cast::<Queue>()) });
}

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let queue = Box::<Queue>::default();
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(queue).cast()) }
}

/// The data of a queue; anything else is a TypeError.
#[inline]
unsafe fn get(value: VALUE) -> Result<*mut Queue, Raise> {
    // SAFETY: a check of the type.
    match unsafe { TYPE.find(value) } {
        Some(data) => Ok(data.cast()),
        None => Err(wrong_type(value, "queue", "a UM::Queue")),
    }
}

/// Whether a value is a queue, else the error to raise.
pub unsafe fn check(value: VALUE) -> Result<(), Raise> {
    // SAFETY: a check of the type.
    unsafe { get(value).map(drop) }
}

/// Appends a value and wakes a fiber that waits for one.
pub unsafe fn push(queue: VALUE, value: VALUE) {
    // SAFETY: the GVL guards the queue; no reference to it is held across anything that runs Ruby.
    unsafe {
        if let Ok(queue) = get(queue) {
            (*queue).values.push_back(value);
            (*queue).waiters.wake_one();
        }
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
unsafe extern "C" fn push_(_this: VALUE, queue: VALUE, value: VALUE) -> VALUE {
    // SAFETY: as `push`.
    unsafe {
        ruby::method(|| {
            let data = get(queue)?;
            (*data).values.push_back(value);
            (*data).waiters.wake_one();
            Ok(queue)
        })
    }
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
unsafe extern "C" fn unshift(_this: VALUE, queue: VALUE, value: VALUE) -> VALUE {
    // SAFETY: as `push`.
    unsafe {
        ruby::method(|| {
            let data = get(queue)?;
            (*data).values.push_front(value);
            (*data).waiters.wake_one();
            Ok(queue)
        })
    }
}

/// Takes the value at the end of a queue; waits while there is none.
///
/// @method UringMachine#pop(queue)
/// @param queue [UringMachine::Queue]
/// @return [Object]
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   machine.pop(queue) #=> the newest value
unsafe extern "C" fn pop(this: VALUE, queue: VALUE) -> VALUE {
    // SAFETY: as `take`.
    unsafe { ruby::method(|| answer(take(this, queue, VecDeque::pop_back))) }
}

/// Takes the value at the head of a queue; waits while there is none.
///
/// @method UringMachine#shift(queue)
/// @param queue [UringMachine::Queue]
/// @return [Object]
/// @raise [TypeError] if queue is no UM::Queue
/// @example
///   machine.shift(queue) #=> the oldest value
unsafe extern "C" fn shift(this: VALUE, queue: VALUE) -> VALUE {
    // SAFETY: as `take`.
    unsafe { ruby::method(|| answer(take(this, queue, VecDeque::pop_front))) }
}

#[inline]
unsafe fn take(
    this: VALUE,
    queue: VALUE,
    from: impl Fn(&mut VecDeque<VALUE>) -> Option<VALUE>,
) -> Answer {
    // SAFETY: the queue is on the caller's frame; see `switch`.
    unsafe {
        let data = get(queue)?;
        if let Some(value) = from(&mut (*data).values) {
            return Ok(value);
        }
        let caller = Caller::new(this)?;
        let mut again = false;
        loop {
            let waited = line::wait(&caller, this, || &raw mut (*data).waiters, again, None);
            if let Err(failure) = waited {
                // It may have been woken for a value that it now leaves to another.
                if !(*data).values.is_empty() {
                    (*data).waiters.wake_one();
                }
                return Err(failure);
            }
            if let Some(value) = from(&mut (*data).values) {
                std::hint::black_box(queue);
                return Ok(value);
            }
            again = true;
        }
    }
}

/// @method UringMachine::Queue#count
/// @return [Integer] the values in the queue
/// @example
///   UM::Queue.new.count #=> 0
unsafe extern "C" fn count(queue: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::fixnum((*get(queue)?).values.len() as i64))) }
}

/// @method UringMachine::Queue#num_waiting
/// @return [Integer] the fibers that wait for a value
/// @example
///   UM::Queue.new.num_waiting #=> 0
unsafe extern "C" fn num_waiting(queue: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { ruby::method(|| Ok(ruby::fixnum((*get(queue)?).waiters.len() as i64))) }
}

/// Defines the class, and the machine's methods for it.
pub unsafe fn define(module: VALUE) {
    spun::PUSH.get_or_init(|| push);
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class_under(module, c"Queue".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        ruby::define_method(class, c"count", count as *const (), 0);
        ruby::define_method(class, c"num_waiting", num_waiting as *const (), 0);
        ruby::define_method(module, c"push", push_ as *const (), 2);
        ruby::define_method(module, c"unshift", unshift as *const (), 2);
        ruby::define_method(module, c"pop", pop as *const (), 1);
        ruby::define_method(module, c"shift", shift as *const (), 1);
    }
}
