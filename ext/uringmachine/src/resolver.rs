//! Name look-ups by the system's resolver, on native threads, which know no Ruby.

use std::collections::VecDeque;
use std::ffi::CString;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uringmachine_runtime::TaskId;

use crate::core::Core;
use crate::forks::PerProcess;
use crate::switch;
use crate::sys::Raise;

type Job = Box<dyn FnOnce() + Send>;

/// The most threads that look names up at a time; further look-ups queue.
const MOST_THREADS: usize = 8;
/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    threads: usize,
    idle: usize,
}

/// A child of fork has none of its parent's threads.
static QUEUE: PerProcess<(Mutex<Queue>, Condvar)> = PerProcess::new();

fn queue() -> MutexGuard<'static, Queue> {
    QUEUE.get().0.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Queues a job, and starts a thread if none is idle.
fn run(job: Job) -> std::io::Result<()> {
    let mut queue = queue();
    queue.jobs.push_back(job);
    if queue.idle >= queue.jobs.len() || queue.threads >= MOST_THREADS {
        QUEUE.get().1.notify_one();
        return Ok(());
    }
    queue.threads += 1;
    let threads = queue.threads;
    drop(queue);
    let spawned = std::thread::Builder::new()
        .name("um-native".into())
        .stack_size(512 * 1024)
        .spawn(work);
    if let Err(error) = spawned {
        let mut queue = self::queue();
        queue.threads -= 1;
        if threads == 1 {
            queue.jobs.pop_back();
            return Err(error);
        }
    }
    Ok(())
}

fn work() {
    // Signals are for Ruby's threads.
    // SAFETY: a filled signal set on this frame.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, std::ptr::null_mut());
    }
    let mut queue = self::queue();
    loop {
        if let Some(job) = queue.jobs.pop_front() {
            drop(queue);
            job();
            queue = self::queue();
            continue;
        }
        queue.idle += 1;
        let (next, timeout) = QUEUE
            .get()
            .1
            .wait_timeout(queue, IDLE)
            .unwrap_or_else(PoisonError::into_inner);
        queue = next;
        queue.idle -= 1;
        if timeout.timed_out() && queue.jobs.is_empty() {
            queue.threads -= 1;
            return;
        }
    }
}

/// Runs `job` on a native thread and waits for its result. An exception abandons it: the thread keeps
/// what the job owns until it is done.
unsafe fn offload<T: Send + 'static>(
    core: *mut Core,
    me: TaskId,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Raise> {
    let result = Arc::new(Mutex::new(None));
    // SAFETY: see `switch`; the Arc on this frame is dropped, since the wait is protected.
    unsafe {
        if let Some(raise) = (*core).take_pending(me) {
            return Err(raise);
        }
        let Some(waker) = (*core).machine.waker().cloned() else {
            return Err(Raise::errno(libc::EBADF));
        };
        let wait = (*core).machine.tasks.begin_wait(me);
        let slot = Arc::clone(&result);
        let queued = run(Box::new(move || {
            let value = job();
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
            waker.complete(wait);
        }));
        let ended = match queued {
            Ok(()) => switch::wait(core, me, None).map_err(Raise::Jump),
            Err(error) => Err(Raise::errno(error.raw_os_error().unwrap_or(libc::EAGAIN))),
        };
        let ended = ended.and_then(|_| {
            let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
            match (value, (*core).take_pending(me)) {
                (Some(value), _) => Ok(value),
                (None, Some(raise)) => Err(raise),
                (None, None) => Err(Raise::errno(libc::EINTR)),
            }
        });
        (*core).finish_wait(me);
        ended
    }
}

/// The addresses of a host, numeric, in the order of getaddrinfo(3), each once.
pub unsafe fn resolve(core: *mut Core, me: TaskId, name: CString) -> Result<Vec<String>, Raise> {
    // SAFETY: as `offload`.
    unsafe { offload(core, me, move || look_up(&name)) }
}

fn look_up(name: &CString) -> Vec<String> {
    let mut addresses = Vec::new();
    // SAFETY: `hints` is zeroed but for two fields; the list is walked while it lives, and freed once.
    unsafe {
        let mut hints: libc::addrinfo = std::mem::zeroed();
        hints.ai_family = libc::AF_UNSPEC;
        hints.ai_socktype = libc::SOCK_STREAM;
        let mut list = std::ptr::null_mut();
        if libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &hints, &mut list) != 0 {
            return addresses;
        }
        let mut entry = list;
        while !entry.is_null() {
            if let Some(address) = numeric(&*entry) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            entry = (*entry).ai_next;
        }
        libc::freeaddrinfo(list);
    }
    addresses
}

/// An address as text, with its zone if it has one (getnameinfo(3)).
fn numeric(entry: &libc::addrinfo) -> Option<String> {
    let mut text = [0u8; 128];
    // SAFETY: the entry's address and length belong together; the text has the size given.
    let failed = unsafe {
        libc::getnameinfo(
            entry.ai_addr,
            entry.ai_addrlen,
            text.as_mut_ptr().cast(),
            text.len() as _,
            std::ptr::null_mut(),
            0,
            libc::NI_NUMERICHOST,
        )
    };
    if failed != 0 {
        return None;
    }
    let length = text.iter().position(|byte| *byte == 0)?;
    String::from_utf8(text[..length].to_vec()).ok()
}
