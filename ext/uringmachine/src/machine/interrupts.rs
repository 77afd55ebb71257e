//! Whose an exception is: the thread's, the fiber's, or that of code that runs in the middle of either.
//!
//! An exception that is raised in a thread (Thread#raise, an exception out of a signal's handler) interrupts whichever
//! fiber computes. It is no failure of that fiber: it ends the fiber on its way to the thread's own program. So it is
//! marked where it begins.
//!
//! What a fiber is to raise is for its own waits, not for those of a finalizer or a handler that happens to run in it:
//! Ruby throws away what a finalizer raises. And Thread.handle_interrupt holds timeouts back, as where they are
//! exceptions of the thread.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use crate::machine::{registry, Core};
use crate::os::per_ractor::PerRactor;
use crate::ruby::{self, version, Raise, NIL, TRUE, VALUE};

/// A Mutex that nobody else has, to be locked by the main thread: see [`in_handler`].
static MUTEX: AtomicU64 = AtomicU64::new(0);

/// The main Ractor.
static RACTOR: AtomicU64 = AtomicU64::new(0);

/// Calls `body` so that an unwinding ends here: the value is `NIL` then. May longjmp otherwise.
///
/// # Safety
/// `body` holds nothing that needs dropping across what may longjmp.
pub unsafe fn catch_unwinding<F: FnOnce() -> VALUE>(body: F) -> VALUE {
    unsafe extern "C" fn call<F: FnOnce() -> VALUE>(
        _tag: VALUE,
        body: VALUE,
        _argc: c_int,
        _argv: *const VALUE,
        _block: VALUE,
    ) -> VALUE {
        // SAFETY: the address of the Option below, which outlives the call.
        match unsafe { &mut *(body as *mut Option<F>) }.take() {
            Some(body) => body(),
            None => NIL,
        }
    }
    let mut body = Some(body);
    // SAFETY: `call::<F>` is given the address of a live Option<F>.
    unsafe { rb_sys::rb_catch_obj(ruby::tag(), Some(call::<F>), (&raw mut body) as VALUE) }
}

/// What is noted of an exception that was raised in a thread from outside, in variables that programs do not see: the
/// thread, and the fiber that it was raised in last on its way to the thread's program.
fn variables() -> [ruby::ID; 2] {
    static NAMES: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    let [thread, fiber] = [0, 1].map(|place| NAMES[place].load(Ordering::Relaxed) as ruby::ID);
    if fiber != 0 {
        return [thread, fiber];
    }
    let names = ["__um_thread", "__um_fiber"].map(ruby::id);
    for (place, name) in names.into_iter().enumerate() {
        NAMES[place].store(name as usize, Ordering::Relaxed);
    }
    names
}

unsafe fn mark_for(exception: VALUE, thread: VALUE, fiber: VALUE) {
    // SAFETY: an exception; a frozen one cannot be marked.
    unsafe {
        if !ruby::is_frozen(exception) {
            for (variable, value) in variables().into_iter().zip([thread, fiber]) {
                rb_sys::rb_ivar_set(exception, variable, value);
            }
        }
    }
}

/// Whether an exception was raised in this thread, and not by what the fiber does.
pub unsafe fn is_for_thread(exception: VALUE) -> bool {
    // SAFETY: plain accessors.
    unsafe { rb_sys::rb_attr_get(exception, variables()[0]) == ruby::rb_thread_current() }
}

/// An exception is raised that may be the thread's: as it comes in, or by the fiber that it came to, which has rescued
/// it. If anybody else raises it, it is that one's failure. (The fibers of a program's own are a part of those that
/// resume them.)
unsafe fn follow(exception: VALUE, thread: VALUE) {
    // SAFETY: plain accessors.
    unsafe {
        let [of_thread, of_fiber] = variables();
        if rb_sys::rb_attr_get(exception, of_thread) != thread {
            return;
        }
        let fiber = ruby::rb_fiber_current();
        match rb_sys::rb_attr_get(exception, of_fiber) {
            NIL if registry::has_started(fiber) || ruby::is_blocking_fiber(fiber) => {
                mark_for(exception, thread, fiber);
            }
            last if last == NIL || last == fiber => {}
            _ => mark_for(exception, NIL, NIL),
        }
    }
}

/// Thread#raise: makes the exception, and marks it.
unsafe extern "C" fn thread_raise(argc: c_int, argv: *const VALUE, thread: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments, the last of them the keywords if there are any; what may raise has
    // nothing here to drop.
    unsafe {
        let keywords = rb_sys::rb_keyword_given_p();
        // Until Ruby 4.0, which has a cause, keywords are an argument as any other.
        let named = if version::has_cause() { keywords } else { 0 };
        let positional = argc - named;
        // What Ruby does, or says of it, needs no exception of ours.
        let is_alive = ruby::truthy(ruby::funcall(thread, ruby::id("alive?"), &[]));
        if !is_alive || (positional == 0 && named != 0) {
            return rb_sys::rb_call_super_kw(argc, argv, keywords);
        }
        let exception = if positional == 0 {
            rb_sys::rb_exc_new(rb_sys::rb_eRuntimeError, std::ptr::null(), 0)
        } else {
            ruby::rb_make_exception(positional, argv)
        };
        mark_for(exception, thread, NIL);
        let mut arguments = [exception, NIL];
        if named != 0 {
            arguments[1] = *argv.offset(positional as isize);
        }
        rb_sys::rb_call_super_kw(1 + named, arguments.as_ptr(), named)
    }
}

/// Every exception that is raised passes here: one in a handler of the main thread is the thread's.
unsafe extern "C" fn raised(event: VALUE, _data: *mut c_void) {
    // SAFETY: called with a raise event, on the thread that raises.
    unsafe {
        let argument = rb_sys::rb_tracearg_from_tracepoint(event);
        let exception = rb_sys::rb_tracearg_raised_exception(argument);
        let thread = ruby::rb_thread_current();
        if thread == rb_sys::rb_thread_main() && in_handler() {
            mark_for(exception, thread, NIL);
        } else {
            follow(exception, thread);
        }
    }
}

/// Has the exceptions of this Ractor followed from now on, and those of handlers marked: see [`follow`]. May longjmp.
pub unsafe fn watch() {
    static WATCHED: PerRactor<AtomicBool> = PerRactor::new();
    // SAFETY: a trace of raise events, kept for ever; may raise for want of memory, with nothing here to drop.
    unsafe {
        if !is_first(&WATCHED) {
            return;
        }
        let watch = rb_sys::rb_tracepoint_new(
            NIL,
            rb_sys::RUBY_EVENT_RAISE,
            Some(raised),
            std::ptr::null_mut(),
        );
        rb_sys::rb_gc_register_mark_object(watch);
        rb_sys::rb_tracepoint_enable(watch);
    }
}

/// Whether this is the first call in this Ractor. What it shares is dropped before Ruby is called.
unsafe fn is_first(done: &PerRactor<AtomicBool>) -> bool {
    // SAFETY: a thread of Ruby's, with the GVL.
    !unsafe { done.get() }.swap(true, Ordering::Relaxed)
}

/// Whether the process's main thread runs a signal's handler, or a finalizer between two steps of a program: Ruby refuses to lock
/// a Mutex there (thread_sync.c, do_mutex_lock), and tells of it in no other way.
unsafe fn in_handler() -> bool {
    // SAFETY: the Mutex is this function's own, and is unlocked before anything else runs. Those of other Ractors, which
    // run no handlers, would lock it at the same time.
    unsafe {
        ruby::current_ractor() == RACTOR.load(Ordering::Relaxed)
            && refuses_to_lock(MUTEX.load(Ordering::Relaxed))
    }
}

unsafe fn refuses_to_lock(mutex: VALUE) -> bool {
    // SAFETY: a Mutex that nobody else has; what is raised is stopped, and what was being raised is put back.
    unsafe {
        let error = ruby::current_error();
        match ruby::protect(|| rb_sys::rb_mutex_lock(mutex)) {
            Ok(_) => {
                rb_sys::rb_mutex_unlock(mutex);
                false
            }
            Err(_) => {
                ruby::put_error_back(error);
                true
            }
        }
    }
}

/// Whether what runs is no part of the fiber it runs in: a handler, or a finalizer, also one that the fiber's own call of
/// the collector runs.
#[cold]
pub unsafe fn runs_aside() -> bool {
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
    // SAFETY: plain calls; a new Mutex, since each Ractor has a lock of its own.
    unsafe { refuses_to_lock(rb_sys::rb_mutex_new()) || ruby::runs_within(&COLLECTORS) }
}

/// Thread.handle_interrupt(mask) { }, as far as the fiber's timeouts go: Ruby's own is called by the block.
///
/// UM::FiberScheduler#masked(mask) { }
pub unsafe fn masked(core: *mut Core, mask: VALUE) -> ruby::Outcome {
    // SAFETY: the core is alive while a method of its scheduler runs; what raises is protected.
    unsafe {
        let me = (*core).current_task();
        (*core).waiter(me).rare().masks.push(mask);
        let result = ruby::protect(|| rb_sys::rb_yield(NIL));
        // The fiber may have another task by now, if no scheduler has started it.
        let me = (*core).current_task();
        (*core).waiter(me).rare().masks.pop();
        let value = result.map_err(Raise::Jump)?;
        match (*core).take_pending(me) {
            Some(raise) => Err(raise),
            None => Ok(value),
        }
    }
}

/// Whether masks, the innermost last, hold an exception back: `:never` for the nearest of its ancestors that a mask
/// names (thread.c, rb_threadptr_pending_interrupt_check_mask). A wait is what `:on_blocking` lets it through to.
pub unsafe fn holds_back(masks: &[VALUE], exception: VALUE) -> bool {
    struct Search {
        class: VALUE,
        nearest: VALUE,
        timing: VALUE,
    }
    unsafe extern "C" fn look(key: VALUE, timing: VALUE, search: VALUE) -> c_int {
        // SAFETY: the address of the Search below; classes and modules are compared.
        unsafe {
            let search = &mut *(search as *mut Search);
            let is_module = ruby::is_a(key, rb_sys::rb_cModule);
            if is_module && rb_sys::rb_class_inherited_p(search.class, key) == TRUE {
                let nearer = search.nearest == NIL
                    || rb_sys::rb_class_inherited_p(key, search.nearest) == TRUE;
                if nearer {
                    (search.nearest, search.timing) = (key, timing);
                }
            }
        }
        rb_sys::st_retval::ST_CONTINUE as c_int
    }
    // SAFETY: the masks are Hashes, which Ruby has checked; nothing of a program's runs.
    unsafe {
        let class = if ruby::is_a(exception, rb_sys::rb_cClass) {
            exception
        } else {
            rb_sys::rb_obj_class(exception)
        };
        for mask in masks.iter().rev() {
            let mut search = Search {
                class,
                nearest: NIL,
                timing: NIL,
            };
            rb_sys::rb_hash_foreach(*mask, Some(look), (&raw mut search) as VALUE);
            if search.nearest != NIL {
                return search.timing == rb_sys::rb_id2sym(ruby::id("never"));
            }
        }
        false
    }
}

/// Defines what is prepended to Thread. Called once, when the extension is loaded.
pub unsafe fn define() {
    // SAFETY: the function takes what its arity says.
    unsafe {
        let tag = rb_sys::rb_obj_alloc(rb_sys::rb_cObject);
        rb_sys::rb_gc_register_mark_object(tag);
        ruby::TAG.store(tag, Ordering::Relaxed);
        let mutex = rb_sys::rb_mutex_new();
        rb_sys::rb_gc_register_mark_object(mutex);
        MUTEX.store(mutex, Ordering::Relaxed);
        let ractor = ruby::current_ractor();
        rb_sys::rb_gc_register_mark_object(ractor);
        RACTOR.store(ractor, Ordering::Relaxed);
        let module = rb_sys::rb_module_new();
        ruby::define_method(module, c"raise", thread_raise as *const (), -1);
        rb_sys::rb_prepend_module(rb_sys::rb_cThread, module);
    }
}
