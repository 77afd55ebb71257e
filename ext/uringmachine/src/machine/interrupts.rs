//! Whose an exception is: the thread's, the fiber's, or that of code that runs in the middle of either.
//!
//! An exception that is raised in a thread (Thread#raise, an exception out of a signal's handler) interrupts whichever
//! fiber computes. It is no failure of that fiber: it ends the fiber on its way to the thread's own program. So it is
//! marked where it begins.
//!
//! What a fiber is to raise is for its own waits, not for those of a finalizer or a handler that happens to run in it:
//! Ruby throws away what a finalizer raises. And Thread.handle_interrupt holds timeouts back, as where they are
//! exceptions of the thread.

use std::sync::atomic::{AtomicBool, Ordering};

use magnus::{prelude::*, Error, Ruby};

use super::{registry, Machine};
use crate::os::per_ractor::PerRactor;
use crate::ruby::trace::{self, Watcher};
use crate::ruby::{
    self, call, classes, collections, fiber, is_a, run_block, set_variable, symbol, sync, truthy,
    values, variable, version, Id, Name, Outcome, Raise, Shared, Value, NIL,
};

/// A Mutex that nobody else has, to be locked by the main thread: see [`in_handler`].
static MUTEX: Shared = Shared::new();

/// The main Ractor.
static RACTOR: Shared = Shared::new();

/// What is noted of an exception that was raised in a thread from outside, in variables that programs do not see: the
/// thread, and the fiber that it was raised in last on its way to the thread's program.
fn variables() -> [Id; 2] {
    static NAMES: [Name; 2] = [Name::new("__um_thread"), Name::new("__um_fiber")];
    [NAMES[0].id(), NAMES[1].id()]
}

fn mark_for(exception: Value, thread: Value, fiber: Value) {
    // A frozen one cannot be marked.
    if !ruby::is_frozen(exception) {
        for (variable, value) in variables().into_iter().zip([thread, fiber]) {
            let _ = set_variable(exception, variable, value);
        }
    }
}

/// Whether an exception was raised in this thread, and not by what the fiber does.
pub fn is_for_thread(exception: Value) -> bool {
    variable(exception, variables()[0]) == fiber::current_thread()
}

/// An exception is raised that may be the thread's: as it comes in, or by the fiber that it came to, which has rescued
/// it. If anybody else raises it, it is that one's failure. (The fibers of a program's own are a part of those that
/// resume them.)
fn follow(exception: Value, thread: Value) {
    let [of_thread, of_fiber] = variables();
    if variable(exception, of_thread) != thread {
        return;
    }
    let fiber = fiber::current();
    match variable(exception, of_fiber) {
        NIL if registry::has_started(fiber) || fiber::is_blocking(fiber) => {
            mark_for(exception, thread, fiber);
        }
        last if last == NIL || last == fiber => {}
        _ => mark_for(exception, NIL, NIL),
    }
}

/// Thread#raise: makes the exception, and marks it.
fn thread_raise(thread: Value, arguments: &[magnus::Value]) -> Outcome {
    let arguments = values(arguments);
    let has_keywords = ruby::call::keyword_given();
    // Until Ruby 4.0, which has a cause, keywords are an argument as any other.
    let is_named = version::has_cause() && has_keywords;
    let (positional, named) = arguments.split_at(arguments.len() - usize::from(is_named));
    // What Ruby does, or says of it, needs no exception of ours.
    let is_alive = truthy(call(thread, "alive?", &[])?);
    if !is_alive || (positional.is_empty() && is_named) {
        return ruby::call::call_super(arguments, has_keywords);
    }
    let exception = if positional.is_empty() {
        Raise::new(classes::runtime_error(), "").exception()?
    } else {
        ruby::call::make_exception(positional)?
    };
    mark_for(exception, thread, NIL);
    match named {
        [] => ruby::call::call_super(&[exception], false),
        named => ruby::call::call_super(&[exception, named[0]], true),
    }
}

/// Every exception that is raised passes here: one in a handler of the main thread is the thread's.
struct Raised;

impl Watcher for Raised {
    fn raised(exception: Value) {
        let thread = fiber::current_thread();
        if thread == fiber::main_thread() && in_handler() {
            mark_for(exception, thread, NIL);
        } else {
            follow(exception, thread);
        }
    }
}

/// Has the exceptions of this Ractor followed from now on, and those of handlers marked: see [`follow`].
pub fn watch() -> Result<(), Raise> {
    static WATCHED: PerRactor<AtomicBool> = PerRactor::new();
    if WATCHED.get().swap(true, Ordering::Relaxed) {
        return Ok(());
    }
    trace::watch::<Raised>()
}

/// Whether the process's main thread runs a signal's handler, or a finalizer between two steps of a program: Ruby refuses to lock
/// a Mutex there (thread_sync.c, do_mutex_lock), and tells of it in no other way.
fn in_handler() -> bool {
    // The Mutex is unlocked before anything else runs. Those of other Ractors, which run no handlers, would lock it at the
    // same time.
    fiber::current_ractor() == RACTOR.get() && refuses_to_lock(MUTEX.get())
}

fn refuses_to_lock(mutex: Value) -> bool {
    match sync::lock(mutex) {
        Ok(()) => {
            let _ = sync::unlock(mutex);
            false
        }
        Err(_) => true,
    }
}

/// Whether what runs is no part of the fiber it runs in: a handler, or a finalizer, also one that the fiber's own call of
/// the collector runs.
#[cold]
pub fn runs_aside() -> bool {
    const COLLECTORS: [(&[u8], &[u8]); 5] = [
        (b"start", b"GC.start"),
        (b"compact", b"GC.compact"),
        (
            b"verify_compaction_references",
            b"GC.verify_compaction_references",
        ),
        (b"garbage_collect", b"ObjectSpace.garbage_collect"),
        (b"garbage_collect", b"ObjectSpace#garbage_collect"),
    ];
    // A new Mutex, since each Ractor has a lock of its own.
    sync::mutex().is_ok_and(refuses_to_lock) || ruby::call::runs_within(&COLLECTORS)
}

/// Thread.handle_interrupt(mask) { }, as far as the fiber's timeouts go: Ruby's own is called by the block.
///
/// UM::FiberScheduler#masked(mask) { }
pub fn masked(machine: &Machine, mask: Value) -> Outcome {
    let me = machine.current_task();
    machine.parts().waiter(me).rare().masks.push(mask);
    let result = run_block();
    // The fiber may have another task by now, if no scheduler has started it.
    let me = machine.current_task();
    machine.parts().waiter(me).rare().masks.pop();
    let value = result?;
    machine.raise_pending(me)?;
    Ok(value)
}

/// Whether masks, the innermost last, hold an exception back: `:never` for the nearest of its ancestors that a mask
/// names (thread.c, rb_threadptr_pending_interrupt_check_mask). A wait is what `:on_blocking` lets it through to.
pub fn holds_back(masks: &[Value], exception: Value) -> bool {
    let class = if is_a(exception, classes::class()) {
        exception
    } else {
        ruby::class_of(exception)
    };
    for mask in masks.iter().rev() {
        let (mut nearest, mut timing_of_nearest) = (NIL, NIL);
        collections::each(*mask, |key, timing| {
            let is_ancestor = is_a(key, classes::module()) && ruby::inherits(class, key);
            if is_ancestor && (nearest == NIL || ruby::inherits(key, nearest)) {
                (nearest, timing_of_nearest) = (key, timing);
            }
        });
        if nearest != NIL {
            return timing_of_nearest == symbol("never");
        }
    }
    false
}

/// Defines what is prepended to Thread. Called once, when the extension is loaded.
pub fn define(ruby: &Ruby) -> Result<(), Error> {
    let make = || {
        ruby::call::TAG.keep(ruby::call::allocate(classes::object())?);
        MUTEX.keep(sync::mutex()?);
        RACTOR.keep(fiber::current_ractor());
        Ok(())
    };
    make().map_err(|raise: Raise| magnus::error::IntoError::into_error(raise, ruby))?;
    let module = ruby.module_new();
    module.define_method("raise", magnus::method!(thread_raise, -1))?;
    ruby.class_object()
        .const_get::<_, magnus::RClass>("Thread")?
        .prepend_module(module)
}
