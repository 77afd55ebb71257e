//! Which Ruby this is: asked once, here.

use std::sync::atomic::{AtomicI64, Ordering};

/// The scheduler interface of the running Ruby (RUBY_FIBER_SCHEDULER_VERSION): 2 is Ruby 3.4, 3 is
/// 4.0, 4 is 4.1.
static INTERFACE: AtomicI64 = AtomicI64::new(3);

/// Up to this interface the arguments are (length, offset), and length is a minimum.
const LAST_WITH_MINIMUM: i64 = 3;

/// From this interface on IO#pwrite calls its hook with the GVL (scheduler_contract, trap 9).
const FIRST_WITH_PWRITE: i64 = 3;

/// That of the first Ruby whose Thread#raise takes a cause.
const FIRST_WITH_CAUSE: i64 = 3;

/// The interface of the running Ruby. The variable lets a test call the hooks as a later Ruby will.
unsafe fn interface() -> i64 {
    if let Some(version) = std::env::var("UM_SCHEDULER_INTERFACE")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return version;
    }
    // SAFETY: constants are looked up on classes that exist since Ruby 3.1; dlsym takes any name.
    unsafe {
        let buffer = rb_sys::rb_const_get(rb_sys::rb_cIO, super::id("Buffer"));
        let version = super::id("VERSION");
        if rb_sys::rb_const_defined_from(buffer, version) != 0
            && super::as_fixnum(rb_sys::rb_const_get(buffer, version)).is_some_and(|v| v >= 3)
        {
            return 4;
        }
        let symbol = c"rb_fiber_scheduler_fiber_interrupt";
        if libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()).is_null() {
            2
        } else {
            3
        }
    }
}

/// Whether Thread#raise takes a cause.
pub fn has_cause() -> bool {
    INTERFACE.load(Ordering::Relaxed) >= FIRST_WITH_CAUSE
}

/// Finds out which Ruby this is. Called once, when the extension is loaded.
pub unsafe fn find() {
    // SAFETY: Ruby is up.
    INTERFACE.store(unsafe { interface() }, Ordering::Relaxed);
}

/// The scheduler interface of the running Ruby.
pub fn scheduler_interface() -> i64 {
    INTERFACE.load(Ordering::Relaxed)
}

/// Whether the hooks of transfers take (length, offset), and length is a minimum.
pub fn has_minimum() -> bool {
    scheduler_interface() <= LAST_WITH_MINIMUM
}

/// Whether IO#pwrite calls its hook with the GVL.
pub fn has_pwrite() -> bool {
    scheduler_interface() >= FIRST_WITH_PWRITE
}
