//! What the Ractors of a process do not share.

use std::ffi::c_void;
use std::sync::{Arc, OnceLock};

use crate::os::per_process;
use crate::ruby;

/// A value that each Ractor makes for itself at its first use, as a child of fork does: its parent's may be
/// locked, for ever, by a thread that the child does not have.
pub struct PerRactor<T> {
    key: OnceLock<Key>,
    made: std::marker::PhantomData<fn() -> T>,
}

#[derive(Clone, Copy)]
struct Key(*mut c_void);

// SAFETY: Ruby's key is never written to once it is made.
unsafe impl Send for Key {}
// SAFETY: as above.
unsafe impl Sync for Key {}

struct Made<T> {
    forks: u32,
    value: Arc<T>,
}

impl<T: Default + Send + Sync + 'static> PerRactor<T> {
    /// A value that nobody has used yet.
    pub const fn new() -> Self {
        Self {
            key: OnceLock::new(),
            made: std::marker::PhantomData,
        }
    }

    /// As [`PerRactor::of`].
    ///
    /// # Safety
    /// Called by a thread of Ruby's, with the GVL.
    pub fn get(&self) -> Arc<T> {
        // SAFETY: what is stored is a Made<T>, of the current Ractor and of no other, which uses it under
        // its GVL; Ruby frees it with the Ractor.
        unsafe {
            let key = self.key();
            let found = ruby::rb_ractor_local_storage_ptr(key).cast::<Made<T>>();
            match found.as_mut() {
                Some(made) if made.forks == per_process::so_far() => Arc::clone(&made.value),
                // The parent's is left as it is: it may be locked.
                Some(made) => {
                    let parents = std::mem::take(made);
                    std::mem::forget(parents);
                    Arc::clone(&made.value)
                }
                None => {
                    let made = Made::default();
                    let value = Arc::clone(&made.value);
                    let place = Box::into_raw(Box::new(made));
                    ruby::rb_ractor_local_storage_ptr_set(key, place.cast());
                    value
                }
            }
        }
    }

    unsafe fn key(&self) -> *mut c_void {
        if let Some(key) = self.key.get() {
            return key.0;
        }
        // Nobody waits for the one that makes it, which may have to let the collector run: a second one, if it was
        // made at the same time, is never used, and stays.
        let kind = Box::leak(Box::new(ruby::RactorLocalStorageType {
            mark: None,
            free: Some(free::<T>),
        }));
        // SAFETY: the type lives for ever.
        let key = Key(unsafe { ruby::rb_ractor_local_storage_ptr_newkey(kind) });
        self.key.get_or_init(|| key).0
    }
}

unsafe extern "C" fn free<T>(made: *mut c_void) {
    // SAFETY: Ruby hands over what was stored, once; threads that still use the value share it.
    drop(unsafe { Box::from_raw(made.cast::<Made<T>>()) });
}

impl<T: Default> Default for Made<T> {
    fn default() -> Self {
        Self {
            forks: per_process::so_far(),
            value: Arc::new(T::default()),
        }
    }
}
