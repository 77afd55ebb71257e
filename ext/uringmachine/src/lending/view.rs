//! IO::Buffers that are views of memory of ours.

use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::mapping::Mapping;

use super::locks;
use crate::ruby::io_buffer::{of_memory, Buffer};
use crate::ruby::{Outcome, Raise, Value};

/// A buffer of the first bytes of a mapping, which its owner keeps for as long as the buffer is: see
/// `classes::buffer_pool`.
pub fn of_mapping(memory: &Mapping, length: usize) -> Result<Buffer, Raise> {
    assert!(length <= memory.length(), "a view is within its memory");
    // SAFETY: the bytes are the mapping's. Whoever asks has the buffer keep the object that has a share in it, and frees
    // the buffer before that is given up.
    unsafe { of_memory(memory.base(), length, false) }
}

/// Whether a buffer is still what lies at a place of another one.
pub fn is_part(part: Value, whole: Value, place: usize, length: usize) -> bool {
    let (Some(part), Some(whole)) = (Buffer::of(part), Buffer::of(whole)) else {
        return false;
    };
    let (part, whole) = (part.bytes(), whole.bytes());
    part.length == length && part.base == whole.base.wrapping_add(place)
}

/// Calls `look` with a read-only buffer of bytes, which is valid as long as that takes.
pub fn of_bytes(bytes: Bytes, look: impl FnOnce(Value) -> Outcome) -> Outcome {
    let (base, length) = (bytes.as_slice().as_ptr().cast_mut(), bytes.as_slice().len());
    // SAFETY: the bytes are dropped after the buffer was freed, which ends every slice of it, or never.
    let buffer = unsafe { of_memory(base, length, true) }?;
    // Nobody may transfer the memory to a buffer that outlives this one.
    locks::lock(buffer.value());
    let looked = look(buffer.value());
    locks::unlock(buffer.value());
    // Refused while an operation of another fiber works on the buffer.
    if let Err(raise) = buffer.free() {
        std::mem::forget(bytes);
        return Err(raise);
    }
    looked
}
