//! What Ruby's C API does not say of an IO::Buffer.

use std::sync::OnceLock;

use crate::ruby::{self, NIL, VALUE};

/// The words of an IO::Buffer's data that are looked at (io_buffer.c, struct rb_io_buffer: base, size, flags, source).
const WORDS: usize = 4;

/// Which word of an IO::Buffer's data is the object that its memory is of; `None` if there is no telling. Found out by
/// the first that asks: Ruby warns of the first IO::Buffer that it is experimental.
unsafe fn source_place() -> Option<usize> {
    static PLACE: OnceLock<Option<usize>> = OnceLock::new();
    if let Some(place) = PLACE.get() {
        return *place;
    }
    let mut place = None;
    // SAFETY: plain calls of Ruby methods, on new objects that this frame keeps; what raises is stopped.
    unsafe {
        let slot = &raw mut place;
        let found = ruby::protect(|| {
            let null = std::ptr::null_mut();
            let buffer = ruby::rb_io_buffer_new(null, 64, ruby::IO_BUFFER_INTERNAL);
            let part = [ruby::fixnum(8), ruby::fixnum(8)];
            let slice = ruby::funcall(buffer, ruby::id("slice"), &part);
            *slot = (0..WORDS)
                .find(|place| word(slice, *place) == buffer)
                .filter(|place| word(buffer, *place) == NIL);
            std::hint::black_box((buffer, slice));
            NIL
        });
        if found.is_err() {
            ruby::take_exception();
        }
    }
    // Whoever asks meanwhile, in another Ractor or out of a warning, finds the same out.
    *PLACE.get_or_init(|| place)
}

/// Whether an IO::Buffer without memory of its own is a slice of another one: not one that Ruby makes over its own
/// memory for the hooks of a scheduler (scheduler.c, rb_fiber_scheduler_io_read_memory). One of a Ruby that keeps that
/// otherwise is taken for a slice.
///
/// # Safety
/// `buffer` is an IO::Buffer.
pub unsafe fn has_source(buffer: VALUE) -> bool {
    // SAFETY: the word was found in an object of the same class.
    unsafe { source_place().is_none_or(|place| word(buffer, place) != NIL) }
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
