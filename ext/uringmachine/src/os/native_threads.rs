//! The native threads of the process, which know no Ruby: one pool for all that may wait and has no operation of the ring.
//!
//! A job never waits for another one's end: it is begun at once, by a thread that has none, or by a new one. Threads
//! that nobody has needed for a while end. What is short, and comes in crowds, asks for a few threads at a time
//! (`off_thread/threads.rs`); what may wait for ever asks for one each (`machine/thread_call.rs`).

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use nix::sys::pthread::{pthread_self, Pthread};

use super::per_process::PerProcess;
use super::thread::{interrupt, leave_signals_to_ruby};
use super::Result;

/// How long a thread waits for another job before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// Bytes of a thread's stack: getaddrinfo(3), with its modules, is the hungriest of what they do.
const STACK: usize = 512 * 1024;

type Work = Box<dyn FnOnce() + Send>;

struct Job {
    work: Work,
    at: Arc<Runner>,
}

/// A thread, by what pthread_self(3) says: a pointer, in musl.
#[derive(Debug, Clone, Copy)]
struct Thread(Pthread);

// SAFETY: it is for other threads to name this one by.
unsafe impl Send for Thread {}

/// Who is at a job: what there is to interrupt.
#[derive(Debug, Default)]
pub struct Runner(Mutex<Option<Thread>>);

impl Runner {
    fn thread(&self) -> MutexGuard<'_, Option<Thread>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts the system call that the job is in, if a thread is at it. The thread cannot end meanwhile, nor go on to
    /// another job.
    pub fn interrupt(&self) {
        if let Some(Thread(thread)) = *self.thread() {
            interrupt(thread);
        }
    }
}

#[derive(Default)]
struct Pool {
    state: Mutex<State>,
    more: Condvar,
}

#[derive(Default)]
struct State {
    /// Each of them has an idle thread that is to take it.
    jobs: VecDeque<Job>,
    idle: usize,
}

/// A child of fork has none of its parent's threads.
static POOL: PerProcess<Pool> = PerProcess::new();

/// Has a thread do something.
///
/// # Errors
/// EAGAIN if there can be no more threads (pthread_create(3)): then nothing is done.
pub fn run(work: impl FnOnce() + Send + 'static) -> Result<Arc<Runner>> {
    let pool = POOL.get();
    let runner = Arc::<Runner>::default();
    let job = Job {
        work: Box::new(work),
        at: Arc::clone(&runner),
    };
    let mut state = pool.state();
    if state.idle > state.jobs.len() {
        state.jobs.push_back(job);
        drop(state);
        pool.more.notify_one();
        return Ok(runner);
    }
    drop(state);
    std::thread::Builder::new()
        .name("um-native".into())
        .stack_size(STACK)
        .spawn(move || pool.work(job))?;
    Ok(runner)
}

impl Pool {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does one job after the other, on a thread of its own.
    fn work(&self, first: Job) {
        leave_signals_to_ruby();
        let mut next = Some(first);
        while let Some(job) = next {
            *job.at.thread() = Some(Thread(pthread_self()));
            (job.work)();
            *job.at.thread() = None;
            next = self.next();
        }
    }

    /// The next job, or none, if there has been none for a while.
    fn next(&self) -> Option<Job> {
        let mut state = self.state();
        state.idle += 1;
        loop {
            let waited = self.more.wait_timeout(state, IDLE);
            let (locked, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
            state = locked;
            let job = state.jobs.pop_front();
            if job.is_some() || timeout.timed_out() {
                state.idle -= 1;
                return job;
            }
        }
    }
}
