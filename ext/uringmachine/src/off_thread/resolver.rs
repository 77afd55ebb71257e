//! Name look-ups by the system's resolver, on a few native threads, or more if all of them wait long.

use std::ffi::CString;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use uringmachine_runtime::pool::{End, Place, Pool, Turn};
use uringmachine_runtime::TaskId;

use crate::machine::Machine;
use crate::off_thread::threads::{self, Leaving};
use crate::os::per_process::PerProcess;
use crate::os::{native_threads, resolver};
use crate::ruby::Raise;

/// A child of fork has none of its parent's threads.
static POOL: PerProcess<Arc<Pool<Work>>> = PerProcess::new();

/// What a thread is to do, and no Ruby in it.
struct Work(Box<dyn FnOnce() + Send>);

impl threads::Work for Work {
    fn start_thread(pool: &Arc<Pool<Self>>) -> Result<(), Raise> {
        let pool = Arc::clone(pool);
        native_threads::run(move || work(&pool))?;
        Ok(())
    }
}

fn work(pool: &Pool<Work>) {
    let (mut place, never) = (Place::Fresh, AtomicBool::new(false));
    while let Turn::Job(job) = pool.take(&mut place, &never) {
        pool.begin(&mut place);
        (job.work.0)();
        job.ticket.finish(End::Done);
    }
    pool.leave(place);
}

/// Runs `job` on a native thread and waits for its result. An exception abandons it: the thread keeps
/// what the job owns until it is done.
fn offload<T: Send + 'static>(
    machine: &Machine,
    me: TaskId,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Raise> {
    let result = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&result);
    let work = Work(Box::new(move || {
        let value = job();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }));
    threads::run(POOL.get(), machine, me, work, Leaving::AtOnce)?;
    let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    value.ok_or(Raise::errno(libc::EINTR))
}

/// The addresses of a host, numeric, in the order of getaddrinfo(3), each once.
pub fn resolve(machine: &Machine, me: TaskId, name: CString) -> Result<Vec<String>, Raise> {
    offload(machine, me, move || resolver::look_up(&name))
}
