//! Whatever is raised, seen where it begins.

use std::ffi::c_void;

use super::{keep_for_ever, may_raise, Raise, Value, NIL};

/// What looks at every exception that a Ractor raises. It raises none itself.
pub trait Watcher {
    /// Called on the thread that raises.
    fn raised(exception: Value);
}

/// Has `W` look at every exception that this Ractor raises from now on.
pub fn watch<W: Watcher>() -> Result<(), Raise> {
    unsafe extern "C" fn raised<W: Watcher>(event: rb_sys::VALUE, _data: *mut c_void) {
        // SAFETY: called with a raise event.
        let exception = unsafe {
            let argument = rb_sys::rb_tracearg_from_tracepoint(event);
            rb_sys::rb_tracearg_raised_exception(argument)
        };
        W::raised(Value::of(exception));
    }
    let (events, null) = (rb_sys::RUBY_EVENT_RAISE, std::ptr::null_mut());
    // SAFETY: the function is called with such events only.
    let watch = may_raise(|| unsafe {
        rb_sys::rb_tracepoint_new(NIL.raw(), events, Some(raised::<W>), null)
    })?;
    keep_for_ever(watch);
    // SAFETY: a trace point.
    may_raise(|| unsafe { rb_sys::rb_tracepoint_enable(watch.raw()) }).map(drop)
}
