//! Where an operation writes to: the memory of an object.

use uringmachine_runtime::memory::{Memory, MemoryMut};
use uringmachine_runtime::slab::Key;

use super::{Backing, Lender, COPIED, MOST, NEVER_EMBEDDED};
use crate::ruby::arguments::no_buffer;
use crate::ruby::io_buffer::Buffer;
use crate::ruby::{classes, errors, is_string, string, Raise, Value};

/// What is read into a String when no length is given.
const DEFAULT_LENGTH: usize = 16 << 10;

/// The memory of an object, lent to be written until it is dropped.
pub struct Destination<'a, L: Lender> {
    lender: &'a L,
    object: Value,
    hold: Option<Key>,
    /// `None` once it is given back.
    backing: Option<Backing>,
    offset: usize,
    is_string: bool,
    pointer: *mut u8,
    length: usize,
    /// The index of the registered buffer that the room lies in.
    registered: Option<u16>,
}

// SAFETY: the room is in a block, a copy or an object that is locked while it is lent, so that nobody else changes, moves
// or frees it; it is not in the value itself.
unsafe impl<L: Lender> Memory for Destination<'_, L> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.pointer
    }

    #[inline]
    fn length(&self) -> u32 {
        self.length as u32
    }

    #[inline]
    fn registered(&self) -> Option<u16> {
        self.registered
    }
}

// SAFETY: as above.
unsafe impl<L: Lender> MemoryMut for Destination<'_, L> {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        self.pointer
    }
}

impl<'a, L: Lender> Destination<'a, L> {
    /// Room for `length` bytes in a String or an IO::Buffer, at `offset`; a negative offset counts
    /// from the end, -1 being it. The object is made large enough, and locked.
    pub fn new(
        lender: &'a L,
        object: Value,
        length: Option<usize>,
        offset: i64,
        name: &str,
    ) -> Result<Self, Raise> {
        if is_string(object) {
            Self::in_string(lender, object, length, offset)
        } else if Buffer::of(object).is_some() {
            Self::in_buffer(lender, object, length, offset)
        } else {
            Err(no_buffer(object, name))
        }
    }

    fn in_buffer(
        lender: &'a L,
        object: Value,
        length: Option<usize>,
        offset: i64,
    ) -> Result<Self, Raise> {
        let (buffer, mut bytes) = Buffer::to_be_written(object)?;
        let offset = place(offset, bytes.length)?;
        let length = length.unwrap_or(bytes.length - offset).min(MOST);
        if offset + length > bytes.length {
            // Ruby would give a slice memory of its own, of which nobody else would see anything.
            if buffer.is_slice(buffer.bytes()) {
                let class = classes::at("IO::Buffer::AccessError")?;
                return Err(Raise::new(class, "a slice cannot be resized"));
            }
            buffer.resize(offset + length)?;
            (_, bytes) = Buffer::to_be_written(object)?;
        }
        buffer.lock()?;
        let place = bytes.base.wrapping_add(offset);
        // Registered memory is pinned: the kernel may write to it whatever becomes of the buffer.
        let registered = lender.registered_index(place, length);
        let (backing, pointer) = if registered.is_none() && buffer.is_slice(buffer.bytes()) {
            let mut copy = vec![0_u8; length];
            let pointer = copy.as_mut_ptr();
            (Backing::Copy(copy), pointer)
        } else {
            (Backing::Locked, place)
        };
        let mut lending = lender.lending();
        lending.in_use.begin(registered);
        let hold = lending.hold(object);
        Ok(Self {
            lender,
            object,
            hold,
            backing: Some(backing),
            offset,
            is_string: false,
            pointer,
            length,
            registered,
        })
    }

    fn in_string(
        lender: &'a L,
        object: Value,
        length: Option<usize>,
        offset: i64,
    ) -> Result<Self, Raise> {
        let size = string::length(object);
        let offset = place(offset, size)?;
        let length = length.unwrap_or(DEFAULT_LENGTH).min(MOST);
        let small = length <= COPIED;
        let wanted = if small {
            size
        } else {
            (offset + length).max(NEVER_EMBEDDED)
        };
        string::lock_with_room(object, wanted).map_err(in_use)?;
        let mut lending = lender.lending();
        let (backing, pointer) = if small {
            let mut block = lending.scratch.take();
            let pointer = block.as_mut_ptr();
            (Backing::Block(block), pointer)
        } else {
            let (start, _) = string::place(object);
            (Backing::Locked, start.wrapping_add(offset))
        };
        let hold = lending.hold(object);
        Ok(Self {
            lender,
            object,
            hold,
            backing: Some(backing),
            offset,
            is_string: true,
            pointer,
            length,
            registered: None,
        })
    }

    /// How many bytes there is room for.
    pub fn size(&self) -> usize {
        self.length
    }

    /// Puts bytes into the room, from a place on; as many as there is room for. Says how many.
    pub fn put(&mut self, place: usize, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.length.saturating_sub(place));
        // SAFETY: the room has as many bytes from there on, and the kernel does not work on it: it is not borrowed.
        unsafe { std::ptr::copy(bytes.as_ptr(), self.pointer.add(place), count) };
        count
    }

    /// Gives the memory back with the `count` bytes the kernel has put there, or as many as there was room
    /// for: what it answers may be more (MSG_TRUNC). Dropped instead, it leaves a String as it was.
    pub fn finish(mut self, count: usize) -> Result<(), Raise> {
        self.give_back(Some(count.min(self.length)))
    }

    fn give_back(&mut self, count: Option<usize>) -> Result<(), Raise> {
        let Some(backing) = self.backing.take() else {
            return Ok(());
        };
        let filled = match self.lender.is_forked() {
            // Nothing has come, and `take_over` has taken the lock off.
            true => Ok(()),
            false => self.unlock(&backing, count),
        };
        let mut lending = self.lender.lending();
        lending.in_use.end(self.registered);
        lending.let_go(self.hold.take());
        if let Backing::Block(block) = backing {
            lending.scratch.give(block);
        }
        filled
    }

    /// Unlocks the object, with the bytes that have come.
    fn unlock(&self, backing: &Backing, count: Option<usize>) -> Result<(), Raise> {
        if !self.is_string {
            if let Some(buffer) = Buffer::of(self.object) {
                buffer.unlock()?;
            }
            return match (backing, count) {
                (Backing::Copy(copy), Some(count)) => {
                    fill(self.object, self.offset, &copy[..count])
                }
                _ => Ok(()),
            };
        }
        match (backing, count) {
            // SAFETY: the block has as many bytes.
            (Backing::Block(block), Some(count)) => unsafe {
                string::unlock_with(self.object, self.offset, block.as_ptr(), count)
            },
            // SAFETY: the bytes were put where the String's are, or were: a copy of it shares those then, and keeps them.
            (_, Some(count)) => unsafe {
                string::unlock_filled(self.object, self.offset, self.pointer, count)
            },
            (_, None) => string::unlock(self.object),
        }
    }
}

impl<L: Lender> Drop for Destination<'_, L> {
    fn drop(&mut self) {
        // Nothing is put into it, so there is nothing that could fail but the unlocking of what somebody has unlocked.
        let _ = self.give_back(None);
    }
}

/// Copies what has come to a slice, if it is still one.
pub(super) fn fill(object: Value, offset: usize, bytes: &[u8]) -> Result<(), Raise> {
    let (_, room) = Buffer::to_be_written(object)?;
    if offset + bytes.len() > room.length {
        return Err(Raise::misuse("buffer has become too small"));
    }
    // SAFETY: the place is within the bytes that the buffer has now.
    unsafe {
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), room.base.add(offset), bytes.len());
    }
    Ok(())
}

/// The error for a String that could not be locked: frozen, or locked by somebody else.
fn in_use(raise: Raise) -> Raise {
    if string::says_locked(&raise) {
        return Raise::new(
            errors::error_class(),
            "buffer is in use by another operation",
        );
    }
    raise
}

/// The place that an offset means in a buffer of that size.
fn place(offset: i64, size: usize) -> Result<usize, Raise> {
    let place = if offset < 0 {
        offset + size as i64 + 1
    } else {
        offset
    };
    match usize::try_from(place) {
        Ok(place) if place <= size => Ok(place),
        _ => Err(Raise::argument(&format!(
            "buffer_offset {offset} is outside the buffer of {size} bytes"
        ))),
    }
}
