//! Work without Ruby's lock (the GVL), while other threads of Ruby's run.

use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;

use super::{may_raise_for, Raise};

/// Flags of `rb_nogvl` (include/ruby/thread.h).
const INTR_FAIL: c_int = 0x1;
const UBF_ASYNC_SAFE: c_int = 0x2;

/// RUBY_UBF_IO: the unblock function that interrupts the thread's system call by a signal (include/ruby/thread.h).
const UBF_IO: usize = usize::MAX;

struct Work<F> {
    work: Option<F>,
}

impl<F: FnOnce()> Work<F> {
    unsafe extern "C" fn run(data: *mut c_void) -> *mut c_void {
        // SAFETY: the address of the Work on the frame that waits for this call.
        if let Some(work) = unsafe { (*data.cast::<Self>()).work.take() } {
            work();
        }
        std::ptr::null_mut()
    }

    /// Whether it has run.
    unsafe fn without(
        mut self,
        unblock: super::UnblockFn,
        data: *mut c_void,
        flags: c_int,
    ) -> bool {
        // SAFETY: the caller's promise for the unblock function; the work is on this frame.
        unsafe {
            let this = (&raw mut self).cast();
            super::rb_nogvl(Self::run, this, Some(unblock), data, flags);
        }
        self.work.is_none()
    }
}

/// Sleeps: runs `work` without the lock. Whoever interrupts the thread writes to the eventfd, which ends the work. Says
/// whether it has run: Ruby refuses that while an interrupt waits. Nothing is raised.
#[inline]
pub fn sleep(eventfd: RawFd, work: impl FnOnce()) -> bool {
    /// Any thread, without the lock.
    unsafe extern "C" fn wake(eventfd: *mut c_void) {
        uringmachine_runtime::waker::wake_fd(eventfd as usize as c_int);
    }
    let work = Work { work: Some(work) };
    let eventfd = eventfd as usize as *mut c_void;
    // SAFETY: the unblock function only writes to a descriptor whose number it is given.
    unsafe { work.without(wake, eventfd, INTR_FAIL | UBF_ASYNC_SAFE) }
}

/// What a thread of Ruby's does without the lock, until it is interrupted.
pub trait Interruptible: Sync {
    /// The work.
    fn run(&self);
    /// Ends it: from any thread, while it runs.
    fn interrupt(&self);
}

/// Runs `work` without the lock, unless an interrupt waits. Nothing is raised.
pub fn run_until_interrupted<W: Interruptible>(work: &W) {
    unsafe extern "C" fn interrupt<W: Interruptible>(work: *mut c_void) {
        // SAFETY: Ruby calls this only while the work runs, which is on the frame that waits for it.
        unsafe { (*work.cast::<W>()).interrupt() };
    }
    let data = std::ptr::from_ref(work).cast_mut().cast();
    let call = Work {
        work: Some(|| work.run()),
    };
    // SAFETY: `work` outlives the call, and may be used by two threads.
    unsafe { call.without(interrupt::<W>, data, INTR_FAIL) };
}

/// Does what is brief without the lock: an interrupt waits for its end.
///
/// # Errors
/// What an interrupt raises, before it or after it.
pub fn briefly(work: impl FnOnce()) -> Result<(), Raise> {
    unsafe extern "C" fn nothing(_: *mut c_void) {}
    may_raise_for(|| {
        let work = Work { work: Some(work) };
        // SAFETY: the unblock function does nothing.
        unsafe { work.without(nothing, std::ptr::null_mut(), 0) };
    })
}

/// Makes a system call without the lock; an interrupt ends it by a signal.
///
/// # Errors
/// What an interrupt raises.
pub fn system_call<T>(call: impl FnOnce() -> T) -> Result<Option<T>, Raise> {
    let mut answer = None;
    let work = || answer = Some(call());
    may_raise_for(|| {
        let work = Work { work: Some(work) };
        // SAFETY: Ruby compares the pointer, and never calls it. This plain form looks after interrupts.
        unsafe {
            let unblock = std::mem::transmute::<usize, super::UnblockFn>(UBF_IO);
            work.without(unblock, std::ptr::null_mut(), 0);
        }
    })?;
    Ok(answer)
}

/// What is used with Ruby's lock only (the collector has it too), so by one thread at a time: it may be shared as if it
/// were guarded by a lock of its own.
#[derive(Debug, Default)]
pub struct Gvl<T>(T);

impl<T> Gvl<T> {
    /// Of a value that no thread uses without the lock.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> std::ops::Deref for Gvl<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

// SAFETY: threads of ours that run without the lock (machine/thread_call.rs, off_thread/) are given none of these.
unsafe impl<T> Send for Gvl<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Gvl<T> {}
