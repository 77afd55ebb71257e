//! Blocking operations on Ruby threads, shared by the schedulers of a Ractor.
//!
//! Ruby 4.0 hands over an operation that runs without the GVL, so a worker runs one after the other
//! without ever taking it. Ruby 3.4 hands over a Proc, which a worker calls with the GVL.
//!
//! The operation lies on the stack of the fiber that waits: the fiber leaves only when a worker is done
//! with it, or never began. What a program raises in a worker, or kills it by, waits for the end of the
//! worker's job: the answer is the fiber's, not the worker's.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use uringmachine_runtime::pool::{End, Job, Place, Pool, Turn};
use uringmachine_runtime::TaskId;

use crate::machine::Machine;
use crate::off_thread::at_once::Sort;
use crate::off_thread::quick_open::Who;
use crate::off_thread::threads::{self, Leaving};
use crate::off_thread::{at_once, quick_open};
use crate::os::per_ractor::PerRactor;
use crate::ruby::blocking_operation::{self, Operation};
use crate::ruby::gvl::{self, Interruptible};
use crate::ruby::{
    call, classes, collections, fiber, string, symbol, Outcome, Raise, Shared, Value, FALSE, NIL,
    TRUE,
};

/// What a worker is to run.
enum Work {
    /// Ruby 4.0.
    Operation(Operation),
    /// Ruby 3.4: a Proc, which the fiber that waits keeps alive, and the worker that calls it.
    Callable(Value, Arc<Shared>),
}

/// An operation may use objects, so it is for threads of its own Ractor.
static POOL: PerRactor<Pool<Work>> = PerRactor::new();

/// As [`wait`], of a 3.4 Proc; `sort` is what it does if it is to be made at once.
pub fn wait_for_callable(
    machine: &Machine,
    me: TaskId,
    callable: Value,
    sort: Option<at_once::Sort>,
) -> Outcome {
    let Some(sort) = sort else {
        return call_on_worker(machine, me, callable);
    };
    machine.raise_pending(me)?;
    at_once::timed(sort, 0, || call_here(callable))
}

/// Runs an operation on a worker and waits for its end, or makes it here, or leaves it to Ruby, if it is sure to be quick.
pub fn wait(machine: &Machine, me: TaskId, operation: Value) -> Outcome {
    machine.raise_pending(me)?;
    let operation = blocking_operation::extract(operation)?;
    // SAFETY: the fiber that runs waits for it, here or in Ruby.
    match unsafe { quick_open::runs(operation) } {
        Who::Ruby => return Ok(NIL),
        Who::Here => return Ok(execute_with_lock(operation)),
        Who::Others => {}
    }
    if let Some(sort) = at_once::sort() {
        return at_once::timed(sort, 0, || match sort {
            Sort::Look => Ok(execute_with_lock(operation)),
            _ => execute_here(operation),
        });
    }
    let mut cancel = || {
        // SAFETY: called while the fiber waits.
        unsafe { blocking_operation::cancel(operation) };
        false
    };
    let leaving = Leaving::AfterInterrupting(&mut cancel);
    threads::run(
        &POOL.get(),
        machine,
        me,
        Work::Operation(operation),
        leaving,
    )?;
    Ok(TRUE)
}

/// Calls a 3.4 Proc on the thread of the fiber that waits for it. Ruby would hand it over again, but for a fiber that is
/// blocking meanwhile (Fiber.blocking).
fn call_here(callable: Value) -> Outcome {
    call::call_with_block(classes::fiber(), "blocking", callable).map(|_| TRUE)
}

/// Executes what is one system call that does not wait, on the thread of the fiber that waits for it, with Ruby's lock: another
/// thread that took it meanwhile would keep it for far longer than that.
fn execute_with_lock(operation: Operation) -> Value {
    // SAFETY: it is the operation of the fiber that runs, and this is a thread of Ruby's.
    if unsafe { quick_open::execute(operation) } {
        TRUE
    } else {
        NIL
    }
}

/// Executes an operation on the thread of the fiber that waits for it, without Ruby's lock: it may ask for that (dir.c,
/// nogvl_readdir; zlib.c, zstream_expand_buffer_without_gvl).
fn execute_here(operation: Operation) -> Outcome {
    let mut done = false;
    // SAFETY: it is the operation of the fiber that runs, and this is a thread of Ruby's.
    gvl::briefly(|| done = unsafe { blocking_operation::execute(operation) })?;
    // One that was cancelled before is not executed, here or by Ruby.
    Ok(if done { TRUE } else { NIL })
}

/// Has a worker call a 3.4 Proc, whatever is to be raised meanwhile: that is raised at the fiber's next wait.
pub fn finish(machine: &Machine, me: TaskId, callable: Value) -> Outcome {
    let work = Work::Callable(callable, Arc::new(Shared::new()));
    threads::run(&POOL.get(), machine, me, work, Leaving::Never)?;
    Ok(TRUE)
}

/// Has a worker call a 3.4 Proc. One that is to end early is interrupted as by a signal: Ruby's own code
/// looks why, and comes here again.
fn call_on_worker(machine: &Machine, me: TaskId, callable: Value) -> Outcome {
    let worker = Arc::new(Shared::new());
    let work = Work::Callable(callable, Arc::clone(&worker));
    let mut interrupt = || {
        // A worker is not collected while it runs.
        fiber::wake_thread(worker.get());
        true
    };
    let leaving = Leaving::AfterInterrupting(&mut interrupt);
    threads::run(&POOL.get(), machine, me, work, leaving)?;
    Ok(TRUE)
}

impl threads::Work for Work {
    fn start_thread(pool: &Arc<Pool<Self>>) -> Result<(), Raise> {
        fiber::start_thread(Box::new(Worker::new(pool)), |mut worker| {
            let ended = worker.work();
            let place = worker.turns().place;
            worker.pool.leave(place);
            ended
        })
        .map(drop)
    }
}

/// A worker thread.
struct Worker {
    pool: Arc<Pool<Work>>,
    /// Written by whoever wants the thread for Ruby.
    interrupted: AtomicBool,
    turns: Mutex<Turns>,
}

/// What a worker's turn has brought.
struct Turns {
    place: Place,
    /// A Proc, to be called with the lock.
    callable: Option<Job<Work>>,
    idle: bool,
}

impl Worker {
    fn new(pool: &Arc<Pool<Work>>) -> Self {
        Self {
            pool: Arc::clone(pool),
            interrupted: AtomicBool::new(false),
            turns: Mutex::new(Turns {
                place: Place::Fresh,
                callable: None,
                idle: false,
            }),
        }
    }

    fn turns(&mut self) -> &mut Turns {
        self.turns.get_mut().unwrap_or_else(PoisonError::into_inner)
    }

    /// Works until nobody needs the worker, or somebody wants it to end. Whatever is raised in the thread, a kill
    /// too, waits for the end of the block (Thread.handle_interrupt).
    fn work(&mut self) -> Outcome {
        let never = collections::hash()?;
        collections::set(never, classes::object(), symbol("never"))?;
        let thread = classes::thread();
        let mut body = || {
            self.work_masked();
            Ok(NIL)
        };
        call::call_running(thread, "handle_interrupt", &[never], &mut body)
    }

    fn work_masked(&mut self) {
        let thread = fiber::current_thread();
        // A thread without a name works as well.
        let _ = name(thread);
        loop {
            self.interrupted = AtomicBool::new(false);
            gvl::run_until_interrupted(&*self);
            if let Some(job) = self.turns().callable.take() {
                let (pool, place) = (Arc::clone(&self.pool), &mut self.turns().place);
                pool.begin(place);
                call_job(&job, thread);
            }
            let wanted = call(thread, "pending_interrupt?", &[]);
            if self.turns().idle || !matches!(wanted, Ok(FALSE)) {
                return;
            }
            // What is no exception: a signal's tick, finalizers.
            let _ = fiber::check_interrupts();
        }
    }
}

fn name(thread: Value) -> Result<(), Raise> {
    call(thread, "name=", &[string::utf8("um-worker")?])?;
    call(thread, "report_on_exception=", &[FALSE]).map(drop)
}

/// Calls a 3.4 Proc, on this thread, with the lock until it gives it up itself.
fn call_job(job: &Job<Work>, thread: Value) {
    let Work::Callable(callable, worker) = &job.work else {
        return;
    };
    worker.set(thread);
    let result = call(*callable, "call", &[]);
    worker.set(FALSE);
    job.ticket.finish(match result {
        Ok(_) => End::Done,
        Err(_) => End::Cut,
    });
}

impl Interruptible for Worker {
    /// Waits for jobs, and runs operations until there is none.
    fn run(&self) {
        let mut turns = self.turns.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match self.pool.take(&mut turns.place, &self.interrupted) {
                Turn::Interrupted => break,
                Turn::Idle => {
                    turns.idle = true;
                    break;
                }
                Turn::Job(job) => {
                    let Work::Operation(operation) = job.work else {
                        turns.callable = Some(job);
                        break;
                    };
                    self.pool.begin(&mut turns.place);
                    // SAFETY: the fiber waits until the job is over; this is a Ruby thread.
                    let done = unsafe { quick_open::execute(operation) };
                    job.ticket.finish(if done { End::Done } else { End::Cut });
                    if !done {
                        // Ruby goes on interrupting the thread until it is back in Ruby.
                        break;
                    }
                }
            }
        }
    }

    fn interrupt(&self) {
        self.interrupted.store(true, Ordering::Release);
        self.pool.wake_threads();
    }
}
