//! What threads share. In a model (`cfg(loom)`, `script/loom`) it is loom's, which has threads take every order there is.

#[cfg(not(loom))]
pub(crate) use crate::event::Event;
#[cfg(not(loom))]
pub use std::sync::{atomic, Arc, Condvar, Mutex, MutexGuard};

#[cfg(loom)]
pub use loom::sync::{atomic, Arc, Mutex, MutexGuard};
#[cfg(loom)]
pub use model::{Condvar, Event};

use std::sync::PoisonError;

/// Locks a mutex that nobody can panic under: what it guards is never half changed.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(loom)]
mod model {
    use std::io;
    use std::os::fd::RawFd;
    use std::sync::{LockResult, PoisonError};
    use std::time::Duration;

    use loom::sync::atomic::{AtomicUsize, Ordering};
    use loom::sync::{Mutex, MutexGuard};

    use super::lock;

    /// A condition variable whose time passes when the model says so: loom's own never does.
    #[derive(Debug)]
    pub struct Condvar {
        condition: loom::sync::Condvar,
        /// How often the time of whoever waits has been up.
        ages: AtomicUsize,
    }

    /// Whether a wait has ended because its time was up.
    pub struct Waited(bool);

    impl Waited {
        pub fn timed_out(&self) -> bool {
            self.0
        }
    }

    impl Condvar {
        pub fn new() -> Self {
            Self {
                condition: loom::sync::Condvar::new(),
                ages: AtomicUsize::new(0),
            }
        }

        pub fn notify_one(&self) {
            self.condition.notify_one();
        }

        pub fn notify_all(&self) {
            self.condition.notify_all();
        }

        /// The time of all who wait is up.
        pub fn expire(&self) {
            self.ages.fetch_add(1, Ordering::SeqCst);
            self.condition.notify_all();
        }

        pub fn wait_timeout<'a, T>(
            &self,
            guard: MutexGuard<'a, T>,
            _: Duration,
        ) -> LockResult<(MutexGuard<'a, T>, Waited)> {
            let age = self.ages.load(Ordering::SeqCst);
            let guard = self.condition.wait(guard);
            let waited = Waited(self.ages.load(Ordering::SeqCst) != age);
            Ok((guard.unwrap_or_else(PoisonError::into_inner), waited))
        }
    }

    /// An eventfd whose reader sleeps in the model.
    #[derive(Debug)]
    pub struct Event {
        signalled: Mutex<bool>,
        condition: loom::sync::Condvar,
    }

    impl Event {
        pub fn new() -> io::Result<Self> {
            Ok(Self {
                signalled: Mutex::new(false),
                condition: loom::sync::Condvar::new(),
            })
        }

        pub fn fd(&self) -> RawFd {
            -1
        }

        pub fn signal(&self) {
            *lock(&self.signalled) = true;
            self.condition.notify_all();
        }

        pub fn wait(&self) {
            let mut signalled = lock(&self.signalled);
            while !*signalled {
                let woken = self.condition.wait(signalled);
                signalled = woken.unwrap_or_else(PoisonError::into_inner);
            }
        }

        pub fn reset(&self) {
            *lock(&self.signalled) = false;
        }

        pub fn close(&self) {}
    }
}
