//! Which Ruby this is: asked once, here.

use std::ffi::{c_void, CStr};
use std::sync::atomic::{AtomicI64, Ordering};

use super::{as_fixnum, classes};

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
fn interface() -> i64 {
    if let Some(version) = std::env::var("UM_SCHEDULER_INTERFACE")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return version;
    }
    let of_buffers = classes::constant(classes::io_buffer(), "VERSION");
    let of_buffers = of_buffers.ok().flatten().and_then(as_fixnum);
    if of_buffers.is_some_and(|version| version >= 3) {
        return 4;
    }
    match symbol(c"rb_fiber_scheduler_fiber_interrupt") {
        None => 2,
        Some(_) => 3,
    }
}

/// A function that not every Ruby exports.
pub fn symbol(name: &CStr) -> Option<*mut c_void> {
    // SAFETY: dlsym takes any name.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

/// RUBY_VERSION
pub fn text() -> Vec<u8> {
    let text = classes::constant(classes::object(), "RUBY_VERSION");
    (text.ok().flatten()).map_or_else(Vec::new, super::string::copy)
}

/// Whether Thread#raise takes a cause.
pub fn has_cause() -> bool {
    INTERFACE.load(Ordering::Relaxed) >= FIRST_WITH_CAUSE
}

/// Finds out which Ruby this is. Called once, when the extension is loaded.
pub fn find() {
    INTERFACE.store(interface(), Ordering::Relaxed);
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
