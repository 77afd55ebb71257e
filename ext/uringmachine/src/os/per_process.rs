//! What a child of fork must not share with its parent.

use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};

/// Counts the forks that led to this process: what was made before one is not the child's.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Has the count kept. Called once, when the extension is loaded.
pub fn count() {
    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler is async-signal-safe: one atomic addition.
    unsafe { libc::pthread_atfork(None, None, Some(forked)) };
}

/// The count: the same number for as long as a process lives.
#[inline]
pub fn so_far() -> u32 {
    FORKS.load(Ordering::Relaxed)
}

/// A value that each process makes for itself at its first use. A child finds a new one: its parent's may
/// be locked, for ever, by a thread that the child does not have.
pub struct PerProcess<T: 'static> {
    made: AtomicPtr<Made<T>>,
}

struct Made<T> {
    forks: u32,
    value: T,
}

impl<T: Default + Sync + 'static> PerProcess<T> {
    /// A value that nobody has used yet.
    pub const fn new() -> Self {
        Self {
            made: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// This process's value.
    pub fn get(&'static self) -> &'static T {
        let found = self.made.load(Ordering::Acquire);
        // SAFETY: what was made is never freed.
        match unsafe { found.as_ref() } {
            Some(made) if made.forks == so_far() => &made.value,
            _ => self.make(found),
        }
    }

    #[cold]
    fn make(&'static self, found: *mut Made<T>) -> &'static T {
        let new = Box::into_raw(Box::new(Made {
            forks: so_far(),
            value: T::default(),
        }));
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        // SAFETY: `new` is this call's own until it is stored; what is stored is never freed.
        unsafe {
            match self.made.compare_exchange(found, new, success, failure) {
                Ok(_) => &(*new).value,
                Err(other) => {
                    drop(Box::from_raw(new));
                    &(*other).value
                }
            }
        }
    }
}
