//! Blocking operations on a pool of Ruby threads, shared by every scheduler of the process.
//!
//! Ruby 4.0 hands over an operation that runs without the GVL, so a worker runs one after the other
//! without ever taking it. Ruby 3.4 hands over a Proc, which a worker calls with the GVL.
//!
//! The operation lies on the stack of the fiber that waits: the fiber leaves only when a worker is done
//! with it, or never began.

use std::collections::VecDeque;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use uringmachine_runtime::waker::Waker;
use uringmachine_runtime::{TaskId, WaitId};

use crate::core::{Core, Pending};
use crate::forks::PerProcess;
use crate::opening;
use crate::switch;
use crate::sys::{self, BlockingOperation, BlockingOperations, Outcome, Raise, NIL, TRUE, VALUE};

/// The most workers; operations beyond wait for one.
const MOST_WORKERS: usize = 8;
/// How long a worker waits for more before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// What a worker is to run.
#[derive(Clone, Copy)]
enum Work {
    /// Ruby 4.0.
    Operation(*mut BlockingOperation),
    /// Ruby 3.4. The fiber that waits keeps it alive.
    Callable(VALUE),
}

#[derive(Clone)]
struct Job {
    work: Work,
    state: Arc<JobState>,
    waker: Waker,
}

// SAFETY: the operation stays alive until the job is over, and Ruby runs it on any of its threads.
unsafe impl Send for Job {}

struct JobState {
    /// The wait to complete: it changes when the fiber has to wait anew.
    wait: Mutex<WaitId>,
    over: AtomicBool,
    /// The thread that runs a callable, to be interrupted.
    worker: AtomicU64,
}

#[derive(Default)]
struct Pool {
    jobs: VecDeque<Job>,
    workers: usize,
    idle: usize,
}

/// A child of fork has none of its parent's workers.
static POOL: PerProcess<(Mutex<Pool>, Condvar)> = PerProcess::new();

fn pool() -> MutexGuard<'static, Pool> {
    lock(&POOL.get().0)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn operations() -> Option<BlockingOperations> {
    static FOUND: OnceLock<Option<BlockingOperations>> = OnceLock::new();
    *FOUND.get_or_init(BlockingOperations::find)
}

/// Runs an operation on a worker and waits for its end, or leaves it to Ruby if it is sure to be quick.
pub unsafe fn wait(core: *mut Core, me: TaskId, operation: VALUE) -> Outcome {
    // SAFETY: see `switch`; the job on this frame is dropped, since the waits are protected.
    unsafe {
        if let Some(raise) = (*core).take_pending(me) {
            return Err(raise);
        }
        let work = match operations() {
            Some(api) => {
                let operation = (api.extract)(operation);
                if opening::is_quick(operation) {
                    return Ok(NIL);
                }
                Work::Operation(operation)
            }
            None => Work::Callable(operation),
        };
        let Some(waker) = (*core).machine.waker().cloned() else {
            return Err(Raise::errno(libc::EBADF));
        };
        let wait_id = (*core).machine.tasks.begin_wait(me);
        let job = Job {
            work,
            state: Arc::new(JobState {
                wait: Mutex::new(wait_id),
                over: AtomicBool::new(false),
                worker: AtomicU64::new(0),
            }),
            waker,
        };
        if enqueue(job.clone()) {
            if let Err(state) = start_worker() {
                if withdraw(&job) {
                    (*core).finish_wait(me);
                    return Err(Raise::Jump(state));
                }
            }
        }
        let mut raise = None;
        loop {
            let result = switch::wait(core, me, None);
            if let Err(state) = result {
                // The first is raised; one that comes while the operation is being ended waits.
                let next = switch::unwinding(state);
                raise = match (raise.take(), next) {
                    (Some(Raise::Exception(first)), Raise::Exception(second)) => {
                        let pending = &mut (*core).waiter(me).pending;
                        pending.push_front(Pending::Exception(second));
                        Some(Raise::Exception(first))
                    }
                    (_, next) => Some(next),
                };
            } else if raise.is_none() && !job.state.over.load(Ordering::Acquire) {
                raise = (*core).take_pending(me);
            }
            // A child of fork has nobody to run it.
            let forked = (*core).is_forked();
            if forked || job.state.over.load(Ordering::Acquire) || withdraw(&job) {
                break;
            }
            let again = (*core).machine.tasks.begin_wait(me);
            *lock(&job.state.wait) = again;
            (*core).waiter(me).draining = true;
            cancel(&job);
            if job.state.over.load(Ordering::Acquire) {
                break;
            }
        }
        (*core).waiter(me).draining = false;
        (*core).finish_wait(me);
        match raise {
            Some(raise) => Err(raise),
            None => Ok(TRUE),
        }
    }
}

/// Queues a job; says whether another worker is needed.
fn enqueue(job: Job) -> bool {
    let mut pool = pool();
    pool.jobs.push_back(job);
    if pool.idle >= pool.jobs.len() || pool.workers >= MOST_WORKERS {
        POOL.get().1.notify_one();
        return false;
    }
    pool.workers += 1;
    true
}

/// Takes a job back that no worker has begun.
fn withdraw(job: &Job) -> bool {
    let mut pool = pool();
    let before = pool.jobs.len();
    pool.jobs
        .retain(|queued| !Arc::ptr_eq(&queued.state, &job.state));
    pool.jobs.len() < before
}

/// Interrupts a job that a worker has begun. The worker still ends it.
unsafe fn cancel(job: &Job) {
    // SAFETY: the operation is alive while the job is not over; the worker's thread object is kept by
    // Ruby while it runs.
    unsafe {
        match (job.work, operations()) {
            (Work::Operation(operation), Some(api)) => {
                (api.cancel)(operation);
            }
            _ => {
                let worker = job.state.worker.load(Ordering::Acquire);
                if worker != 0 {
                    let interrupt = sys::id("raise");
                    let arguments = [rb_sys::rb_eInterrupt];
                    let _ = sys::protect(|| sys::funcall(worker, interrupt, &arguments));
                    sys::take_exception();
                }
            }
        }
    }
}

unsafe fn start_worker() -> Result<(), std::ffi::c_int> {
    // SAFETY: the worker is given nothing; the options are set before it can be seen by a program.
    unsafe {
        let started = sys::protect(|| {
            let thread = sys::rb_thread_create(worker, std::ptr::null_mut());
            sys::funcall(
                thread,
                sys::id("name="),
                &[rb_sys::rb_str_new_cstr(c"um-worker".as_ptr())],
            );
            sys::funcall(thread, sys::id("report_on_exception="), &[sys::FALSE]);
            thread
        });
        if started.is_err() {
            pool().workers -= 1;
        }
        started.map(drop)
    }
}

/// What a worker's wait brought.
struct Turn {
    api: Option<BlockingOperations>,
    callable: Option<Job>,
    /// Written by the unblock function: Ruby wants the thread.
    interrupted: AtomicBool,
    idle: bool,
}

/// The body of a worker thread.
unsafe extern "C" fn worker(_: *mut c_void) -> VALUE {
    // SAFETY: a Ruby thread with the GVL. Everything droppable is inside `work_until_ended`, which is
    // protected where Ruby may unwind.
    unsafe {
        let result = work_until_ended();
        pool().workers -= 1;
        if let Err(state) = result {
            Raise::Jump(state).leave();
        }
        NIL
    }
}

unsafe fn work_until_ended() -> Result<(), std::ffi::c_int> {
    // SAFETY: as above.
    unsafe {
        loop {
            let mut turn = Turn {
                api: operations(),
                callable: None,
                interrupted: AtomicBool::new(false),
                idle: false,
            };
            let data: *mut c_void = (&raw mut turn).cast();
            sys::rb_nogvl(
                take_turn,
                data,
                Some(interrupt_turn),
                data,
                sys::NOGVL_INTR_FAIL,
            );
            if let Some(job) = turn.callable.take() {
                call(&job)?;
            }
            sys::protect(|| {
                sys::rb_thread_check_ints();
                NIL
            })?;
            if turn.idle {
                return Ok(());
            }
        }
    }
}

/// Calls a 3.4 Proc, on this thread, with the GVL until it gives it up itself.
unsafe fn call(job: &Job) -> Result<(), std::ffi::c_int> {
    let Work::Callable(callable) = job.work else {
        return Ok(());
    };
    // SAFETY: the fiber that waits keeps the Proc and what it points to.
    unsafe {
        let thread = sys::rb_thread_current();
        job.state.worker.store(thread, Ordering::Release);
        let result = sys::protect(|| sys::funcall(callable, sys::id("call"), &[]));
        job.state.worker.store(0, Ordering::Release);
        finish(job);
        match result {
            Ok(_) => Ok(()),
            // A cancelled operation's interrupt ends here; a kill goes on.
            Err(state) => match sys::take_exception() {
                Some(_) => Ok(()),
                None => Err(state),
            },
        }
    }
}

/// Without the GVL: waits for jobs, and runs operations until there is none.
unsafe extern "C" fn take_turn(data: *mut c_void) -> *mut c_void {
    // SAFETY: `data` is the Turn on the worker's frame.
    let turn = unsafe { &mut *data.cast::<Turn>() };
    let mut pool = pool();
    while !turn.interrupted.load(Ordering::Acquire) {
        if let Some(job) = pool.jobs.pop_front() {
            match (job.work, turn.api) {
                (Work::Operation(operation), Some(api)) => {
                    drop(pool);
                    // SAFETY: the operation is alive until the job is over; this is a Ruby thread.
                    unsafe { (api.execute)(operation) };
                    finish(&job);
                    pool = self::pool();
                    continue;
                }
                _ => {
                    turn.callable = Some(job);
                    break;
                }
            }
        }
        pool.idle += 1;
        let (next, timeout) = POOL
            .get()
            .1
            .wait_timeout(pool, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        pool = next;
        pool.idle -= 1;
        if timeout.timed_out() && pool.jobs.is_empty() {
            turn.idle = true;
            break;
        }
    }
    std::ptr::null_mut()
}

/// The unblock function of a worker.
unsafe extern "C" fn interrupt_turn(data: *mut c_void) {
    // SAFETY: Ruby calls this only while `take_turn` runs on that data.
    unsafe {
        (*data.cast::<Turn>())
            .interrupted
            .store(true, Ordering::Release)
    };
    // Under the lock, so that a worker between its look and its wait hears it.
    drop(pool());
    POOL.get().1.notify_all();
}

fn finish(job: &Job) {
    job.state.over.store(true, Ordering::Release);
    let wait = *lock(&job.state.wait);
    job.waker.complete(wait);
}
