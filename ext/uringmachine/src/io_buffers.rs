//! What Ruby's C API does not say of an IO::Buffer.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::sys::{self, NIL, VALUE};

/// Which word of an IO::Buffer's data is the object that its memory is of, or [`UNKNOWN`].
static SOURCE: AtomicUsize = AtomicUsize::new(UNKNOWN);
const UNKNOWN: usize = usize::MAX;
/// The words of the data that are looked at (io_buffer.c, struct rb_io_buffer: base, size, flags, source).
const WORDS: usize = 4;

/// Finds out where an IO::Buffer keeps the one that it is a slice of. Called once, when the extension is loaded.
pub unsafe fn find_source() {
    // SAFETY: plain calls of Ruby methods, on new objects that this frame keeps; the data are read as far as they go.
    unsafe {
        let class = rb_sys::rb_const_get(rb_sys::rb_cIO, sys::id("Buffer"));
        let buffer = sys::funcall(class, sys::id("new"), &[sys::fixnum(64)]);
        let slice = sys::funcall(buffer, sys::id("slice"), &[sys::fixnum(8), sys::fixnum(8)]);
        if let Some(place) = (0..WORDS).find(|place| word(slice, *place) == buffer) {
            if word(buffer, place) == NIL {
                SOURCE.store(place, Ordering::Relaxed);
            }
        }
        std::hint::black_box((buffer, slice));
    }
}

/// Whether an IO::Buffer without memory of its own is a slice of another one: not one that Ruby makes over its own
/// memory for the hooks of a scheduler (scheduler.c, rb_fiber_scheduler_io_read_memory). One of a Ruby that keeps that
/// otherwise is taken for a slice.
///
/// # Safety
/// `buffer` is an IO::Buffer.
pub unsafe fn has_source(buffer: VALUE) -> bool {
    match SOURCE.load(Ordering::Relaxed) {
        UNKNOWN => true,
        // SAFETY: the word was found in an object of the same class.
        place => unsafe { word(buffer, place) != NIL },
    }
}

unsafe fn word(buffer: VALUE, place: usize) -> VALUE {
    // SAFETY: the data have at least that many words, and are aligned as such.
    unsafe {
        rb_sys::RTYPEDDATA_GET_DATA(buffer)
            .cast::<VALUE>()
            .add(place)
            .read()
    }
}
