//! Threads, and the signals that are for some of them.

use nix::sys::pthread::{pthread_kill, Pthread};
use nix::sys::signal::{SigSet, Signal};
use nix::time::ClockId;

/// The signal that Ruby interrupts its own threads with: its handler does nothing, and lets no call go on
/// (thread_pthread.c, `null_func`).
const INTERRUPTS: Signal = Signal::SIGVTALRM;

/// Interrupts a thread's system call by Ruby's own signal, if Ruby has set up its handler (pthread_kill(3)). The thread
/// lives.
pub fn interrupt(thread: Pthread) {
    if is_handled() {
        // It fails for numbers of signals that are none only.
        let _ = pthread_kill(thread, INTERRUPTS);
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

/// Nanoseconds of CPU time of this thread (clock_gettime(2), CLOCK_THREAD_CPUTIME_ID).
pub fn cpu_time() -> u64 {
    // The clock always exists on Linux.
    ClockId::CLOCK_THREAD_CPUTIME_ID.now().map_or(0, |time| {
        time.tv_sec() as u64 * 1_000_000_000 + time.tv_nsec() as u64
    })
}
