//! Fibers and threads.

use std::ffi::{c_int, c_void};

use rb_sys::VALUE;

use super::call::answer;
use super::{is_a, may_raise, may_raise_for, truthy, Outcome, Raise, Value, NIL, TRUE};

/// The fiber that runs.
#[inline]
pub fn current() -> Value {
    // SAFETY: a plain accessor.
    Value::of(unsafe { super::rb_fiber_current() })
}

/// Whether an object is a fiber.
pub fn is_fiber(object: Value) -> bool {
    // SAFETY: a type check.
    unsafe { super::rb_obj_is_fiber(object.raw()) == TRUE.raw() }
}

/// Whether a fiber has not ended.
pub fn is_alive(fiber: Value) -> bool {
    // SAFETY: the type is checked; then a plain accessor.
    is_fiber(fiber) && unsafe { truthy(Value::of(super::rb_fiber_alive_p(fiber.raw()))) }
}

/// Whether a fiber is a blocking one, as the root fiber of a thread is.
pub fn is_blocking(fiber: Value) -> bool {
    is_fiber(fiber) && super::call(fiber, "blocking?", &[]).is_ok_and(truthy)
}

/// What a fiber of ours runs.
pub trait Body {
    /// `data` is what the fiber was made with, `argument` what it was switched to with first.
    fn run(data: Value, argument: Value) -> Outcome;
}

unsafe extern "C" fn run<B: Body>(
    first: VALUE,
    data: VALUE,
    argc: c_int,
    argv: *const VALUE,
    _block: VALUE,
) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    let argument = if argc > 0 { unsafe { *argv } } else { first };
    answer(|| B::run(Value::of(data), Value::of(argument)))
}

/// A new fiber that runs `B` with the block of the method that runs, which there is: the block, and the fiber.
pub fn new<B: Body>() -> Result<(Value, Value), Raise> {
    // SAFETY: the fiber keeps its data.
    may_raise_for(|| unsafe {
        let block = rb_sys::rb_block_proc();
        (
            Value::of(block),
            Value::of(super::rb_fiber_new(run::<B>, block)),
        )
    })
}

/// `Fiber.new`, or that of a program, with a Proc as the block, beside the block of the method that runs, which there is:
/// that block, and the fiber.
pub fn new_by_ruby(
    new: super::Id,
    keywords: Option<Value>,
    body: Value,
) -> Result<(Value, Value), Raise> {
    let (class, body) = (super::classes::fiber().raw(), body.raw());
    let options = keywords.map(Value::raw);
    // SAFETY: the Hash is on this frame.
    may_raise_for(|| unsafe {
        let block = rb_sys::rb_block_proc();
        let fiber = match &options {
            None => rb_sys::rb_funcall_with_block(class, new, 0, std::ptr::null(), body),
            Some(options) => rb_sys::rb_funcall_with_block_kw(
                class,
                new,
                1,
                options,
                body,
                rb_sys::RB_PASS_KEYWORDS as c_int,
            ),
        };
        (Value::of(block), Value::of(fiber))
    })
}

/// As [`new`], of a subclass of Fiber: `class.new(blocking: false) { … }`
pub fn new_of_class<B: Body>(class: Value, data: Value) -> Outcome {
    let options = super::options(&[("blocking", super::FALSE)])?.raw();
    let (new, keywords) = (super::id("new"), rb_sys::RB_PASS_KEYWORDS as c_int);
    // SAFETY: the options are on this frame; the block keeps the data.
    may_raise(|| unsafe {
        rb_sys::rb_block_call_kw(
            class.raw(),
            new,
            1,
            &options,
            Some(run::<B>),
            data.raw(),
            keywords,
        )
    })
}

/// A Proc that runs `B`, to be the block of many fibers: `data` is what it is called with.
pub fn body<B: Body>() -> Outcome {
    unsafe extern "C" fn call<B: Body>(
        data: VALUE,
        _nothing: VALUE,
        _argc: c_int,
        _argv: *const VALUE,
        _block: VALUE,
    ) -> VALUE {
        answer(|| B::run(Value::of(data), NIL))
    }
    // SAFETY: a new Proc.
    may_raise(|| unsafe { rb_sys::rb_proc_new(Some(call::<B>), NIL.raw()) })
}

/// Switches to a fiber, with what its own switch away returns.
///
/// When control comes back, Ruby looks at the fiber that was switched to, to give its stack back if it has ended
/// (cont.c, fiber_switch): it may have been collected by then, unless this frame keeps it.
#[inline]
pub fn transfer(fiber: Value, arguments: &[Value]) -> Outcome {
    let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
    // SAFETY: the slice is valid for the call; the fiber stays on this frame until it is over.
    let value = may_raise(|| unsafe { super::rb_fiber_transfer(fiber.raw(), count, list) });
    super::keep_until_here(fiber);
    value
}

/// Fiber#raise. Keeps the fiber, as [`transfer`].
pub fn raise_in(fiber: Value, exception: Value) -> Outcome {
    let arguments = [exception.raw()];
    // SAFETY: as `transfer`.
    let value = may_raise(|| unsafe { super::rb_fiber_raise(fiber.raw(), 1, arguments.as_ptr()) });
    super::keep_until_here(fiber);
    value
}

/// The thread that runs.
#[inline]
pub fn current_thread() -> Value {
    // SAFETY: a plain accessor.
    Value::of(unsafe { super::rb_thread_current() })
}

/// The main thread of the Ractor.
pub fn main_thread() -> Value {
    // SAFETY: a plain accessor.
    Value::of(unsafe { rb_sys::rb_thread_main() })
}

/// Ractor.current.
pub fn current_ractor() -> Value {
    // SAFETY: a constant of Ruby's.
    let class = Value::of(unsafe { super::rb_cRactor });
    super::call(class, "current", &[]).unwrap_or(NIL)
}

/// Whether a thread has not ended.
pub fn is_thread_alive(thread: Value) -> bool {
    super::call(thread, "alive?", &[]).is_ok_and(truthy)
}

/// Whether an interrupt waits for a thread: a signal, an exception from another thread, its end.
#[inline]
pub fn is_interrupted(thread: Value) -> bool {
    // SAFETY: a thread of Ruby's.
    is_thread(thread) && unsafe { super::rb_thread_interrupted(thread.raw()) != 0 }
}

#[inline]
fn is_thread(object: Value) -> bool {
    is_a(object, super::classes::thread())
}

/// Does what interrupts the thread.
///
/// # Errors
/// What an interrupt raises, or its unwinding.
pub fn check_interrupts() -> Result<(), Raise> {
    // SAFETY: handlers and switches run.
    may_raise_for(|| unsafe { super::rb_thread_check_ints() })
}

/// Interrupts a thread as a signal does, if it has not ended.
pub fn wake_thread(thread: Value) {
    if is_thread(thread) {
        // SAFETY: a thread of Ruby's; it does not raise for one that has ended.
        unsafe { super::rb_thread_wakeup_alive(thread.raw()) };
    }
}

/// Gives the thread that runs a native thread of its own, for good.
pub fn lock_native_thread() {
    // SAFETY: a thread of Ruby's runs.
    unsafe { super::rb_thread_lock_native_thread() };
}

/// What is done at the end of a thread.
pub trait AtEnd {
    /// Runs in that thread, after all of its program; it raises nothing.
    fn run();
}

/// Has `A` run at the end of a thread. Once, however often it is asked for.
pub fn at_end_of<A: AtEnd>(thread: Value) {
    unsafe extern "C" fn ended<A: AtEnd>(_: u32, _: VALUE, _: VALUE, _: super::Id, _: VALUE) {
        A::run();
    }
    // SAFETY: a thread of Ruby's; the function raises nothing.
    unsafe {
        let (function, events) = (ended::<A>, super::EVENT_THREAD_END);
        super::rb_thread_remove_event_hook(thread.raw(), function);
        super::rb_thread_add_event_hook(thread.raw(), function, events, NIL.raw());
    }
}

/// Starts a thread of Ruby's that runs `body` with what it is given.
pub fn start_thread<T: Send + 'static>(data: Box<T>, body: fn(Box<T>) -> Outcome) -> Outcome {
    struct Start<T> {
        data: Box<T>,
        body: fn(Box<T>) -> Outcome,
    }
    unsafe extern "C" fn run<T>(start: *mut c_void) -> VALUE {
        // SAFETY: the Box below, given away.
        let start = unsafe { Box::from_raw(start.cast::<Start<T>>()) };
        let Start { data, body } = *start;
        answer(|| body(data))
    }
    let start = Box::into_raw(Box::new(Start { data, body }));
    // SAFETY: `run` is given the Box, if there is a thread.
    let started = may_raise(|| unsafe { super::rb_thread_create(run::<T>, start.cast()) });
    if started.is_err() {
        // SAFETY: no thread has it.
        drop(unsafe { Box::from_raw(start) });
    }
    started
}

/// The scheduler of the thread that runs, or nil.
pub fn scheduler() -> Value {
    // SAFETY: a plain accessor.
    Value::of(unsafe { super::rb_fiber_scheduler_get() })
}

/// The scheduler of the fiber that runs, nil in one that blocks.
#[inline]
pub fn current_scheduler() -> Value {
    // SAFETY: a plain accessor.
    Value::of(unsafe { super::rb_fiber_scheduler_current() })
}

/// Fiber.set_scheduler.
pub fn set_scheduler(scheduler: Value) -> Outcome {
    // SAFETY: Ruby looks whether it is one.
    may_raise(|| unsafe { super::rb_fiber_scheduler_set(scheduler.raw()) })
}

/// Ends the process as the end of the main program does, by what its fiber has ended by.
pub fn stop_process(ended: Outcome) -> ! {
    unsafe extern "C" fn end(ended: VALUE) -> VALUE {
        // SAFETY: the address of the outcome below.
        match unsafe { (*(ended as *mut Option<Outcome>)).take() } {
            Some(ended) => answer(|| ended),
            None => NIL.raw(),
        }
    }
    let (mut ended, mut state) = (Some(ended), 0);
    // SAFETY: the outcome outlives the call. What it raises is left as it is: Ruby ends by that, as by what the main
    // program has ended by. Nothing of the frames below is needed any more.
    unsafe {
        rb_sys::rb_protect(Some(end), &raw mut ended as VALUE, &mut state);
        super::ruby_stop(state)
    }
}
