//! Ending a driver's sleep from another thread.

use std::io;
use std::os::fd::RawFd;

use crate::event;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{lock, Arc, Event, Mutex};
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
    event: Event,
    completed: Mutex<Vec<WaitId>>,
    /// Whether `completed` may have something: looked at by a driver that never sleeps.
    pending: AtomicBool,
}

impl Waker {
    /// Makes an eventfd, non-blocking and close-on-exec.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                event: Event::new()?,
                completed: Mutex::new(Vec::new()),
                pending: AtomicBool::new(false),
            }),
        })
    }

    /// Ends the driver's sleep, or keeps it from falling asleep. Async-signal-safe: one write(2).
    #[inline]
    pub fn wake(&self) {
        self.shared.event.signal();
    }

    /// Hands over a completed wait and wakes the driver. May be called from any thread.
    pub fn complete(&self, wait: WaitId) {
        lock(&self.shared.completed).push(wait);
        // After the push: a driver that sees the flag takes it down, and finds nothing to take yet.
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
        // Before the take: one that is handed over after it puts the flag up again.
        self.shared.pending.store(false, Ordering::Release);
        std::mem::take(&mut *lock(&self.shared.completed))
    }

    /// The eventfd.
    #[inline]
    pub fn fd(&self) -> RawFd {
        self.shared.event.fd()
    }

    /// Closes the eventfd although clones are left: those of threads that a child of fork does not
    /// have.
    pub(crate) fn forsake(&self) {
        self.shared.event.close();
    }

    /// Takes the eventfd back to zero.
    pub(crate) fn reset(&self) {
        self.shared.event.reset();
    }
}

/// Wakes by bare descriptor: for callers (an unblock function, a signal handler) that have no more.
#[inline]
pub fn wake_fd(fd: RawFd) {
    event::signal(fd);
}

#[cfg(all(test, loom))]
impl Waker {
    /// Sleeps as a driver does, until it is woken; what has been handed over by then.
    pub(crate) fn wait_in_model(&self) -> Vec<WaitId> {
        self.shared.event.wait();
        self.reset();
        self.take_completed()
    }
}

#[cfg(all(test, loom))]
mod models {
    use super::*;
    use crate::slab::Key;

    fn wait(serial: u64) -> WaitId {
        let task = Key {
            index: 0,
            generation: 0,
        };
        WaitId { task, serial }
    }

    /// Two threads that complete a wait each.
    fn two_complete(waker: &Waker) -> [loom::thread::JoinHandle<()>; 2] {
        [1, 2].map(|serial| {
            let waker = waker.clone();
            loom::thread::spawn(move || waker.complete(wait(serial)))
        })
    }

    fn serials(taken: Vec<WaitId>) -> Vec<u64> {
        let mut serials: Vec<_> = taken.into_iter().map(|wait| wait.serial).collect();
        serials.sort_unstable();
        serials
    }

    #[test]
    fn a_driver_that_sleeps_is_woken_for_every_wait() {
        loom::model(|| {
            let waker = Waker::new().unwrap();
            let threads = two_complete(&waker);
            let mut taken = Vec::new();
            // One that is told of no more of them sleeps for ever, which loom notices.
            while taken.len() < 2 {
                taken.extend(waker.wait_in_model());
            }
            assert_eq!(serials(taken), [1, 2]);
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
        });
    }

    #[test]
    fn a_driver_that_never_sleeps_sees_every_wait() {
        loom::model(|| {
            let waker = Waker::new().unwrap();
            let threads = two_complete(&waker);
            let mut taken = Vec::new();
            let mut look = || {
                if waker.has_completed() {
                    taken.extend(waker.take_completed());
                }
            };
            look();
            look();
            threads
                .into_iter()
                .for_each(|thread| thread.join().unwrap());
            // What it has not seen by then, the flag still tells of.
            look();
            assert_eq!(serials(taken), [1, 2]);
        });
    }
}
