//! Ending a driver's sleep from another thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};

use crate::tasks::WaitId;

/// An eventfd (eventfd(2)) the ring polls, and the waits that other threads have completed.
///
/// Clones share both, so a worker thread may keep one beyond the driver's end.
#[derive(Clone, Debug)]
pub struct Waker {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// The eventfd, or [`GONE`].
    event: AtomicI32,
    completed: Mutex<Vec<WaitId>>,
    /// Whether `completed` may have something: looked at by a driver that never sleeps.
    pending: AtomicBool,
}

/// No descriptor: writes to it fail, and do nothing.
const GONE: RawFd = -1;

impl Shared {
    fn close(&self) {
        let fd = self.event.swap(GONE, Ordering::Relaxed);
        if fd != GONE {
            // SAFETY: the descriptor is this struct's own, and is not used after the swap.
            unsafe { libc::close(fd) };
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.close();
    }
}

impl Waker {
    /// Makes an eventfd, non-blocking and close-on-exec.
    pub fn new() -> io::Result<Self> {
        // SAFETY: eventfd has no memory to be wrong about; its result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self {
            shared: Arc::new(Shared {
                event: AtomicI32::new(fd),
                completed: Mutex::new(Vec::new()),
                pending: AtomicBool::new(false),
            }),
        })
    }

    /// Ends the driver's sleep, or keeps it from falling asleep. Async-signal-safe: one write(2).
    #[inline]
    pub fn wake(&self) {
        wake_fd(self.fd());
    }

    /// Hands over a completed wait and wakes the driver. May be called from any thread.
    pub fn complete(&self, wait: WaitId) {
        self.completed().push(wait);
        self.shared.pending.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether waits have been handed over and not taken.
    #[inline]
    pub(crate) fn has_completed(&self) -> bool {
        self.shared.pending.load(Ordering::Acquire)
    }

    /// Takes the waits handed over so far.
    pub(crate) fn take_completed(&self) -> Vec<WaitId> {
        self.shared.pending.store(false, Ordering::Release);
        std::mem::take(&mut *self.completed())
    }

    fn completed(&self) -> std::sync::MutexGuard<'_, Vec<WaitId>> {
        // A panic cannot happen while the lock is held: it guards a push and a take.
        self.shared
            .completed
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// The eventfd.
    #[inline]
    pub fn fd(&self) -> RawFd {
        self.shared.event.load(Ordering::Relaxed)
    }

    /// Closes the eventfd although clones are left: those of threads that a child of fork does not
    /// have.
    pub(crate) fn forsake(&self) {
        self.shared.close();
    }

    /// Takes the eventfd back to zero.
    pub(crate) fn reset(&self) {
        let mut count = 0u64;
        // SAFETY: an eventfd read fills exactly the eight bytes given; EAGAIN leaves them as they are.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }
}

/// Wakes by bare descriptor: for callers (an unblock function, a signal handler) that have no more.
#[inline]
pub fn wake_fd(fd: RawFd) {
    let one = 1u64;
    // SAFETY: eight valid bytes; a full counter answers EAGAIN, and is awake already.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}
