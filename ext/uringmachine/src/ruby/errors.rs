//! UM::Error, UM::UnsupportedError and UM::Terminate.

use std::sync::atomic::{AtomicU64, Ordering};

use uringmachine_runtime::SetupError;

use crate::ruby::{Raise, VALUE};

static ERROR: AtomicU64 = AtomicU64::new(0);
static UNSUPPORTED: AtomicU64 = AtomicU64::new(0);
static TERMINATE: AtomicU64 = AtomicU64::new(0);

/// UM::Error, for misuse.
pub fn error_class() -> VALUE {
    ERROR.load(Ordering::Relaxed)
}

/// UM::Terminate, which ends a fiber.
pub fn terminate_class() -> VALUE {
    TERMINATE.load(Ordering::Relaxed)
}

/// What a ring that could not be set up raises: UM::UnsupportedError for a refusal, the Errno for a
/// shortage.
pub fn from_setup(error: SetupError) -> Raise {
    match error.errno() {
        Some(errno) => Raise::errno(errno),
        None => Raise::new(UNSUPPORTED.load(Ordering::Relaxed), &error.to_string()),
    }
}

/// Defines the classes.
pub unsafe fn define(module: VALUE) {
    // SAFETY: the classes are constants of a module that is never collected.
    unsafe {
        let error =
            rb_sys::rb_define_class_under(module, c"Error".as_ptr(), rb_sys::rb_eStandardError);
        let unsupported =
            rb_sys::rb_define_class_under(module, c"UnsupportedError".as_ptr(), error);
        let terminate =
            rb_sys::rb_define_class_under(module, c"Terminate".as_ptr(), rb_sys::rb_eException);
        TERMINATE.store(terminate, Ordering::Relaxed);
        ERROR.store(error, Ordering::Relaxed);
        UNSUPPORTED.store(unsupported, Ordering::Relaxed);
    }
}
