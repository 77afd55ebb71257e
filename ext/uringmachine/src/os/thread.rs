//! Threads, and the signals that are for some of them.

use std::os::unix::thread::JoinHandleExt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SigSet, Signal};
use nix::time::ClockId;

/// The signal that Ruby interrupts its own threads with: its handler does nothing, and lets no call go on
/// (thread_pthread.c, `null_func`).
const INTERRUPTS: Signal = Signal::SIGVTALRM;

/// A thread that several hold, who may interrupt it until one of them lets go of it.
#[derive(Clone, Debug)]
pub struct Thread(Arc<Mutex<Option<JoinHandle<()>>>>);

impl Thread {
    /// One that was started.
    pub fn new(handle: JoinHandle<()>) -> Self {
        Self(Arc::new(Mutex::new(Some(handle))))
    }

    fn handle(&self) -> MutexGuard<'_, Option<JoinHandle<()>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Interrupts its system call, unless somebody has let go of it.
    pub fn interrupt(&self) {
        if let Some(handle) = &*self.handle() {
            interrupt(handle);
        }
    }

    /// Lets go of it, for all who hold it: its resources are given back when it ends (pthread_detach(3)).
    pub fn let_go(&self) {
        drop(self.handle().take());
    }
}

/// Interrupts a thread's system call by Ruby's own signal, if Ruby has set up its handler (pthread_kill(3)).
pub fn interrupt<T>(thread: &JoinHandle<T>) {
    if is_handled() {
        // It fails for a thread that is over only.
        let _ = pthread_kill(thread.as_pthread_t(), INTERRUPTS);
    }
}

/// Whether the signal has a handler, and ends system calls (sigaction(2)).
fn is_handled() -> bool {
    // SAFETY: an all-zero action is valid; the call fills it, or fails, and changes nothing.
    let (result, action) = unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        let result = libc::sigaction(INTERRUPTS as i32, std::ptr::null(), &mut action);
        (result, action)
    };
    result == 0
        && !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
        && action.sa_flags & libc::SA_RESTART == 0
}

/// Has this thread receive no signal but the one that interrupts: all others are for Ruby's threads
/// (pthread_sigmask(3)).
pub fn leave_signals_to_ruby() {
    let mut signals = SigSet::all();
    signals.remove(INTERRUPTS);
    // It fails for numbers that are none only.
    let _ = signals.thread_set_mask();
}

/// Has this thread receive no signal at all.
pub fn block_signals() {
    // As above.
    let _ = SigSet::all().thread_block();
}

/// Nanoseconds of CPU time of this thread (clock_gettime(2), CLOCK_THREAD_CPUTIME_ID).
pub fn cpu_time() -> u64 {
    // The clock always exists on Linux.
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
