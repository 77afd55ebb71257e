//! IO::Buffer, and what Ruby's C API does not say of one.

use std::ffi::c_void;
use std::sync::OnceLock;

use super::{fixnum, is_io_buffer, may_raise, may_raise_for, Raise, Value, NIL};

/// Flags of an IO::Buffer (include/ruby/io/buffer.h): of memory it does not own, that it has allocated, or mapped.
const EXTERNAL: i32 = 1;
const INTERNAL: i32 = 2;
const MAPPED: i32 = 4;
const LOCKED: i32 = 32;
const READONLY: i32 = 128;

/// One with memory of its own, or of a String's, has one of these. A slice has none.
const OWNER: i32 = EXTERNAL | INTERNAL | MAPPED;

/// Where an IO::Buffer's bytes are, and how many: null in one that was freed.
#[derive(Clone, Copy, Debug)]
pub struct Bytes {
    pub(crate) base: *mut u8,
    pub length: usize,
    flags: i32,
}

impl Bytes {
    /// Whether the buffer is locked.
    pub fn is_locked(&self) -> bool {
        self.flags & LOCKED != 0
    }
}

/// An IO::Buffer, its type looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer(Value);

impl Buffer {
    /// An object, if it is an IO::Buffer.
    pub fn of(object: Value) -> Option<Self> {
        is_io_buffer(object).then_some(Self(object))
    }

    /// The object.
    #[inline]
    pub fn value(self) -> Value {
        self.0
    }

    /// Its bytes. Raises nothing.
    #[inline]
    pub fn bytes(self) -> Bytes {
        let (mut base, mut length) = (std::ptr::null_mut::<c_void>(), 0);
        // SAFETY: an IO::Buffer.
        let flags = unsafe { super::rb_io_buffer_get_bytes(self.0.raw(), &mut base, &mut length) };
        Bytes {
            base: base.cast(),
            length,
            flags,
        }
    }

    /// An IO::Buffer that has memory, and where that is.
    #[inline]
    fn with_memory(object: Value) -> Option<(Self, Bytes)> {
        let buffer = Self::of(object)?;
        let bytes = buffer.bytes();
        (!bytes.base.is_null()).then_some((buffer, bytes))
    }

    /// An IO::Buffer, and its bytes, to be read.
    ///
    /// # Errors
    /// IO::Buffer::AllocationError and the like, for one that was freed; TypeError.
    #[inline]
    pub fn to_be_read(object: Value) -> Result<(Self, Bytes), Raise> {
        if let Some(found) = Self::with_memory(object) {
            return Ok(found);
        }
        Self::ask_to_be_read(object)
    }

    #[cold]
    fn ask_to_be_read(object: Value) -> Result<(Self, Bytes), Raise> {
        let (mut base, mut length) = (std::ptr::null(), 0);
        // SAFETY: Ruby looks whether it is one.
        may_raise_for(|| unsafe {
            super::rb_io_buffer_get_bytes_for_reading(object.raw(), &mut base, &mut length);
        })?;
        Ok((Self(object), Self(object).bytes()))
    }

    /// An IO::Buffer, and its bytes, to be written.
    ///
    /// # Errors
    /// As [`Buffer::to_be_read`]; IO::Buffer::AccessError for one that is read-only.
    #[inline]
    pub fn to_be_written(object: Value) -> Result<(Self, Bytes), Raise> {
        if let Some((buffer, bytes)) = Self::with_memory(object) {
            // A slice's are for Ruby to judge: they may be a frozen String's, say.
            if bytes.flags & READONLY == 0 && !buffer.is_slice(bytes) {
                return Ok((buffer, bytes));
            }
        }
        Self::ask_to_be_written(object)
    }

    #[cold]
    fn ask_to_be_written(object: Value) -> Result<(Self, Bytes), Raise> {
        let (mut base, mut length) = (std::ptr::null_mut(), 0);
        // SAFETY: Ruby looks whether it is one.
        may_raise_for(|| unsafe {
            super::rb_io_buffer_get_bytes_for_writing(object.raw(), &mut base, &mut length);
        })?;
        Ok((Self(object), Self(object).bytes()))
    }

    /// Changes its size.
    ///
    /// # Errors
    /// IO::Buffer::LockedError, IO::Buffer::AccessError.
    pub fn resize(self, length: usize) -> Result<(), Raise> {
        // SAFETY: an IO::Buffer.
        may_raise_for(|| unsafe { super::rb_io_buffer_resize(self.0.raw(), length) })
    }

    /// Locks it.
    ///
    /// # Errors
    /// IO::Buffer::LockedError.
    #[inline]
    pub fn lock(self) -> Result<(), Raise> {
        // SAFETY: an IO::Buffer.
        may_raise(|| unsafe { super::rb_io_buffer_lock(self.0.raw()) }).map(drop)
    }

    /// Unlocks it.
    ///
    /// # Errors
    /// IO::Buffer::LockedError, if it is not locked.
    #[inline]
    pub fn unlock(self) -> Result<(), Raise> {
        // SAFETY: an IO::Buffer.
        may_raise(|| unsafe { super::rb_io_buffer_unlock(self.0.raw()) }).map(drop)
    }

    /// Frees it: it has no memory from then on.
    ///
    /// # Errors
    /// IO::Buffer::LockedError.
    pub fn free(self) -> Result<(), Raise> {
        // SAFETY: an IO::Buffer.
        may_raise(|| unsafe { super::rb_io_buffer_free(self.0.raw()) }).map(drop)
    }

    /// Whether it is a part of another one, with these bytes.
    #[inline]
    pub fn is_slice(self, bytes: Bytes) -> bool {
        bytes.flags & OWNER == 0 && !bytes.base.is_null() && has_source(self.0)
    }
}

/// A new IO::Buffer of memory that somebody else owns.
///
/// # Safety
/// The memory stays until the buffer is freed by [`free`].
pub(crate) unsafe fn of_memory(
    base: *mut u8,
    length: usize,
    is_read_only: bool,
) -> Result<Buffer, Raise> {
    let flags = EXTERNAL | if is_read_only { READONLY } else { 0 };
    // SAFETY: the caller's promise.
    may_raise(|| unsafe { super::rb_io_buffer_new(base.cast(), length, flags) }).map(Buffer)
}

/// The words of an IO::Buffer's data that are looked at (io_buffer.c, struct rb_io_buffer: base, size, flags, source).
const WORDS: usize = 4;

/// Which word of an IO::Buffer's data is the object that its memory is of; `None` if there is no telling. Found out by
/// the first that asks: Ruby warns of the first IO::Buffer that it is experimental.
fn source_place() -> Option<usize> {
    static PLACE: OnceLock<Option<usize>> = OnceLock::new();
    if let Some(place) = PLACE.get() {
        return *place;
    }
    let place = find_place().unwrap_or(None);
    // Whoever asks meanwhile, in another Ractor or out of a warning, finds the same out.
    *PLACE.get_or_init(|| place)
}

fn find_place() -> Result<Option<usize>, Raise> {
    let null = std::ptr::null_mut();
    // SAFETY: the buffer has memory of its own.
    let buffer = may_raise(|| unsafe { super::rb_io_buffer_new(null, 64, INTERNAL) })?;
    let slice = super::call(buffer, "slice", &[fixnum(8), fixnum(8)])?;
    let place = (0..WORDS)
        .find(|place| word(slice, *place) == buffer)
        .filter(|place| word(buffer, *place) == NIL);
    super::keep_until_here(buffer);
    super::keep_until_here(slice);
    Ok(place)
}

/// Whether an IO::Buffer without memory of its own is a slice of another one: not one that Ruby makes over its own
/// memory for the hooks of a scheduler (scheduler.c, rb_fiber_scheduler_io_read_memory). One of a Ruby that keeps that
/// otherwise is taken for a slice.
fn has_source(buffer: Value) -> bool {
    source_place().is_none_or(|place| word(buffer, place) != NIL)
}

fn word(buffer: Value, place: usize) -> Value {
    debug_assert!(is_io_buffer(buffer) && place < WORDS);
    // SAFETY: the data of an IO::Buffer have at least that many words, and are aligned as such.
    Value::of(unsafe {
        rb_sys::RTYPEDDATA_GET_DATA(buffer.raw())
            .cast::<rb_sys::VALUE>()
            .add(place)
            .read()
    })
}
