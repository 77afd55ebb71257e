//! Blocking operations on Ruby threads, shared by the schedulers of a Ractor.
//!
//! Ruby 4.0 hands over an operation that runs without the GVL, so a worker runs one after the other
//! without ever taking it. Ruby 3.4 hands over a Proc, which a worker calls with the GVL.
//!
//! The operation lies on the stack of the fiber that waits: the fiber leaves only when a worker is done
//! with it, or never began. What a program raises in a worker, or kills it by, waits for the end of the
//! worker's job: the answer is the fiber's, not the worker's.

use std::ffi::{c_int, c_void};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use uringmachine_runtime::TaskId;

use crate::machine::{switch, Core};
use crate::off_thread::quick_open;
use crate::off_thread::threads::{self, End, Job, Leaving, Place, Pool, Turn};
use crate::os::per_ractor::PerRactor;
use crate::ruby::{self, BlockingOperation, BlockingOperations, Outcome, Raise, NIL, TRUE, VALUE};

/// What a worker is to run.
enum Work {
    /// Ruby 4.0.
    Operation(*mut BlockingOperation),
    /// Ruby 3.4. The fiber that waits keeps it alive.
    Callable(VALUE, Arc<AtomicU64>),
}

// SAFETY: the operation stays alive until the job is over, and Ruby runs it on any of its threads.
unsafe impl Send for Work {}

/// An operation may use objects, so it is for threads of its own Ractor.
static POOL: PerRactor<Pool<Work>> = PerRactor::new();

fn operations() -> Option<BlockingOperations> {
    static FOUND: OnceLock<Option<BlockingOperations>> = OnceLock::new();
    *FOUND.get_or_init(BlockingOperations::find)
}

/// Runs an operation on a worker and waits for its end, or leaves it to Ruby if it is sure to be quick.
pub unsafe fn wait(core: *mut Core, me: TaskId, operation: VALUE) -> Outcome {
    // SAFETY: see `switch`; what this frame owns is dropped, since the waits are protected.
    unsafe {
        let Some(api) = operations() else {
            return call(core, me, operation);
        };
        if let Some(raise) = (*core).take_pending(me) {
            return Err(raise);
        }
        let operation = (api.extract)(operation);
        if quick_open::is_quick(operation) {
            return Ok(NIL);
        }
        let mut cancel = || {
            (api.cancel)(operation);
            false
        };
        let leaving = Leaving::AfterInterrupting(&mut cancel);
        threads::run(&POOL.get(), core, me, Work::Operation(operation), leaving)?;
        Ok(TRUE)
    }
}

/// Has a worker call a 3.4 Proc, whatever is to be raised meanwhile: that is raised at the fiber's next wait.
pub unsafe fn finish(core: *mut Core, me: TaskId, callable: VALUE) -> Outcome {
    let work = Work::Callable(callable, Arc::default());
    // SAFETY: the caller's promise.
    unsafe { threads::run(&POOL.get(), core, me, work, Leaving::Never)? };
    Ok(TRUE)
}

/// Has a worker call a 3.4 Proc. One that is to end early is interrupted as by a signal: Ruby's own code
/// looks why, and comes here again.
unsafe fn call(core: *mut Core, me: TaskId, callable: VALUE) -> Outcome {
    let worker = Arc::new(AtomicU64::new(0));
    let work = Work::Callable(callable, Arc::clone(&worker));
    let mut interrupt = || {
        let thread = worker.load(Ordering::Acquire);
        if thread != 0 {
            // SAFETY: a worker is not collected while it runs.
            unsafe { ruby::rb_thread_wakeup_alive(thread) };
        }
        true
    };
    let leaving = Leaving::AfterInterrupting(&mut interrupt);
    // SAFETY: the caller's promise.
    unsafe { threads::run(&POOL.get(), core, me, work, leaving)? };
    Ok(TRUE)
}

impl threads::Work for Work {
    fn start_thread(pool: &Arc<Pool<Self>>) -> Result<(), Raise> {
        let data = Arc::into_raw(Arc::clone(pool)).cast_mut();
        // SAFETY: a fiber starts it, with the GVL; the pool is given to the worker, if there is one.
        unsafe {
            let started = ruby::protect(|| ruby::rb_thread_create(worker, data.cast()));
            started.map(drop).map_err(|state| {
                drop(Arc::from_raw(data));
                switch::unwinding(state)
            })
        }
    }
}

/// A worker, and what its turn brought.
struct Worker {
    pool: Arc<Pool<Work>>,
    place: Place,
    callable: Option<Job<Work>>,
    /// Written by the unblock function: Ruby wants the thread.
    interrupted: AtomicBool,
    idle: bool,
}

/// The body of a worker thread.
unsafe extern "C" fn worker(pool: *mut c_void) -> VALUE {
    // SAFETY: a Ruby thread with the GVL, which is given a pool. Everything droppable is gone when Ruby
    // unwinds: `work` is protected.
    unsafe {
        let mut worker = Worker {
            pool: Arc::from_raw(pool.cast::<Pool<Work>>()),
            place: Place::Fresh,
            callable: None,
            interrupted: AtomicBool::new(false),
            idle: false,
        };
        let result = work(&mut worker);
        worker.pool.leave(worker.place);
        drop(worker);
        if let Err(state) = result {
            Raise::Jump(state).leave();
        }
        NIL
    }
}

/// Works until nobody needs the worker, or somebody wants it to end. Whatever is raised in the thread, a kill
/// too, waits for the end of the block (Thread.handle_interrupt).
unsafe fn work(worker: &mut Worker) -> Result<(), c_int> {
    // SAFETY: the worker outlives the call; the Hash is on the frame.
    unsafe {
        ruby::protect(|| {
            let never = rb_sys::rb_hash_new();
            let symbol = rb_sys::rb_id2sym(ruby::id("never"));
            rb_sys::rb_hash_aset(never, rb_sys::rb_cObject, symbol);
            rb_sys::rb_block_call(
                rb_sys::rb_cThread,
                ruby::id("handle_interrupt"),
                1,
                &never,
                Some(work_masked),
                std::ptr::from_mut(worker) as VALUE,
            )
        })
        .map(drop)
    }
}

unsafe extern "C" fn work_masked(
    _nothing: VALUE,
    worker: VALUE,
    _argc: c_int,
    _argv: *const VALUE,
    _block: VALUE,
) -> VALUE {
    // SAFETY: `work` passes the address of its worker.
    unsafe {
        let worker = &mut *(worker as *mut Worker);
        let thread = ruby::rb_thread_current();
        let named = ruby::protect(|| {
            let name = rb_sys::rb_str_new_cstr(c"um-worker".as_ptr());
            ruby::funcall(thread, ruby::id("name="), &[name]);
            ruby::funcall(thread, ruby::id("report_on_exception="), &[ruby::FALSE])
        });
        if named.is_err() {
            ruby::take_exception();
        }
        let is_wanted = ruby::id("pending_interrupt?");
        loop {
            let data: *mut c_void = std::ptr::from_mut(worker).cast();
            worker.interrupted = AtomicBool::new(false);
            let (function, unblock) = (take_turn, Some(interrupt_turn as ruby::UnblockFn));
            ruby::rb_nogvl(function, data, unblock, data, ruby::NOGVL_INTR_FAIL);
            if let Some(job) = worker.callable.take() {
                worker.pool.begin(&mut worker.place);
                call_here(&job, thread);
            }
            let wanted = ruby::protect(|| ruby::funcall(thread, is_wanted, &[]));
            if worker.idle || wanted != Ok(ruby::FALSE) {
                return NIL;
            }
            // What is no exception: a signal's tick, finalizers.
            if ruby::protect(|| {
                ruby::rb_thread_check_ints();
                NIL
            })
            .is_err()
            {
                ruby::take_exception();
            }
        }
    }
}

/// Calls a 3.4 Proc, on this thread, with the GVL until it gives it up itself.
unsafe fn call_here(job: &Job<Work>, thread: VALUE) {
    let Work::Callable(callable, worker) = &job.work else {
        return;
    };
    // SAFETY: the fiber that waits keeps the Proc and what it points to.
    unsafe {
        worker.store(thread, Ordering::Release);
        let result = ruby::protect(|| ruby::funcall(*callable, ruby::id("call"), &[]));
        worker.store(0, Ordering::Release);
        match result {
            Ok(_) => job.ticket.finish(End::Done),
            Err(_) => {
                ruby::take_exception();
                job.ticket.finish(End::Cut);
            }
        }
    }
}

/// Without the GVL: waits for jobs, and runs operations until there is none.
unsafe extern "C" fn take_turn(data: *mut c_void) -> *mut c_void {
    // SAFETY: `data` is the Worker on the thread's own frame.
    let worker = unsafe { &mut *data.cast::<Worker>() };
    loop {
        match worker.pool.take(&mut worker.place, &worker.interrupted) {
            Turn::Interrupted => break,
            Turn::Idle => {
                worker.idle = true;
                break;
            }
            Turn::Job(job) => {
                let (Work::Operation(operation), Some(api)) = (&job.work, operations()) else {
                    worker.callable = Some(job);
                    break;
                };
                worker.pool.begin(&mut worker.place);
                // SAFETY: the operation is alive until the job is over; this is a Ruby thread.
                let done = unsafe { quick_open::execute(api, *operation) };
                job.ticket.finish(if done { End::Done } else { End::Cut });
                if !done {
                    // Ruby goes on interrupting the thread until it is back in Ruby.
                    break;
                }
            }
        }
    }
    std::ptr::null_mut()
}

/// The unblock function of a worker.
unsafe extern "C" fn interrupt_turn(data: *mut c_void) {
    // SAFETY: Ruby calls this only while `take_turn` runs on that data; the two fields are written by
    // nobody meanwhile but for atomics.
    unsafe {
        let worker = data.cast::<Worker>();
        (*worker).interrupted.store(true, Ordering::Release);
        (*worker).pool.wake_threads();
    }
}
