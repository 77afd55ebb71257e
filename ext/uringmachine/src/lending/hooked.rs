//! The part of an IO::Buffer that a hook of the scheduler was given.
//!
//! Whoever calls the hook keeps the buffer, but may have locked it or not; what is not locked may be freed by others, or
//! be another buffer's, as soon as the fiber waits. So the bytes are looked up anew for each attempt.

use std::cell::Cell;

use uringmachine_runtime::memory::{Memory, MemoryMut};
use uringmachine_runtime::slab::Key;

use super::{copied, Lender};
use crate::ruby::io_buffer::{Buffer, Bytes};
use crate::ruby::room::Room;
use crate::ruby::{Raise, NIL};

/// The most that is lent at once.
const MOST: usize = 1 << 30;

/// Bytes within an IO::Buffer.
#[derive(Clone, Debug)]
pub struct Part {
    buffer: Buffer,
    /// Where in the buffer, in bytes.
    offset: usize,
    length: usize,
    /// All the bytes of the buffer, as they are while nobody else runs.
    found: Cell<Bytes>,
}

impl Part {
    /// So many bytes of a buffer, from `offset` on; `bytes` are all that it has now.
    pub fn new(buffer: Buffer, bytes: Bytes, offset: usize, length: usize) -> Self {
        Self {
            buffer,
            offset,
            length,
            found: Cell::new(bytes),
        }
    }

    /// Where the first byte is.
    #[inline]
    fn base(&self) -> *mut u8 {
        self.found.get().base.wrapping_add(self.offset)
    }

    /// How many bytes there are.
    #[inline]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Others may have run: the bytes may be elsewhere, or gone.
    ///
    /// # Errors
    /// UM::Error if they are gone.
    #[inline]
    pub fn find_again(&self) -> Result<(), Raise> {
        let bytes = self.buffer.bytes();
        // There need be no memory for nothing.
        if self.length > 0 && (bytes.base.is_null() || self.offset + self.length > bytes.length) {
            return Err(Raise::misuse(
                "the buffer was freed or made smaller meanwhile",
            ));
        }
        self.found.set(bytes);
        Ok(())
    }

    /// Does something with what is left after its first bytes, at once: `attempt` calls nothing of Ruby's.
    /// [`Part::find_again`] has been called since others may have run.
    #[inline(always)]
    pub fn at_once<T>(&self, done: usize, attempt: impl FnOnce(&mut Room) -> T) -> T {
        let (base, length) = (
            self.base().wrapping_add(done),
            (self.length - done).min(MOST),
        );
        // SAFETY: nobody but Ruby frees the bytes, or changes them.
        attempt(&mut unsafe { Room::new(base, length) })
    }
}

/// Bytes of an IO::Buffer, lent until it is dropped.
pub struct Lent<'a, L: Lender> {
    lender: &'a L,
    part: &'a Part,
    /// How many of its bytes come before.
    done: usize,
    /// It was locked for this: what holds the object meanwhile.
    hold: Option<Key>,
    /// A lock on a slice does not keep the memory, which is another buffer's: it is copied.
    copy: Option<Vec<u8>>,
    pointer: *mut u8,
    length: u32,
    registered: Option<u16>,
}

// SAFETY: the bytes are the buffer's, which is locked while they are lent, registered memory's, which stays whatever
// becomes of the buffer, or a copy's; they are not in the value itself.
unsafe impl<L: Lender> Memory for Lent<'_, L> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.pointer
    }

    #[inline]
    fn length(&self) -> u32 {
        self.length
    }

    #[inline]
    fn registered(&self) -> Option<u16> {
        self.registered
    }
}

// SAFETY: as above.
unsafe impl<L: Lender> MemoryMut for Lent<'_, L> {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        self.pointer
    }
}

impl<'a, L: Lender> Lent<'a, L> {
    /// Lends what is left of a part of a buffer after its first bytes, 1 GiB of it at most.
    ///
    /// # Errors
    /// IO::Buffer::LockedError.
    #[inline(always)]
    pub fn new(lender: &'a L, part: &'a Part, done: usize) -> Result<Self, Raise> {
        let bytes = part.found.get();
        let length = (part.length - done).min(MOST);
        let place = part.base().wrapping_add(done);
        let registered = lender.registered_index(place, length);
        let mut copy = None;
        let mut pointer = place;
        if registered.is_none() && part.buffer.is_slice(bytes) {
            // SAFETY: the bytes are where they were found, since nobody has run.
            let bytes = copy.insert(unsafe { copied(place, length) });
            pointer = bytes.as_mut_ptr();
        }
        let locks = !bytes.is_locked();
        if locks {
            part.buffer.lock()?;
        }
        let mut hold = None;
        if locks || registered.is_some() {
            let mut lending = lender.lending();
            lending.in_use.begin(registered);
            hold = lending.hold(if locks { part.buffer.value() } else { NIL });
        }
        Ok(Self {
            lender,
            part,
            done,
            hold,
            copy,
            pointer,
            length: length as u32,
            registered,
        })
    }

    /// Whether the bytes are registered memory's.
    pub fn is_registered(&self) -> bool {
        self.registered.is_some()
    }

    /// Gives the bytes back, the first of which were written to if there is a count.
    ///
    /// # Errors
    /// UM::Error if the buffer is gone.
    #[inline]
    pub fn finish(&mut self, filled: Option<usize>) -> Result<(), Raise> {
        self.give_back();
        self.part.find_again()?;
        if let (Some(count), Some(copy)) = (filled, &self.copy) {
            let place = self.part.base().wrapping_add(self.done);
            let count = count.min(copy.len());
            // SAFETY: the bytes were found just now, and there are as many.
            unsafe { std::ptr::copy_nonoverlapping(copy.as_ptr(), place, count) };
        }
        Ok(())
    }

    /// Ends the loan, once.
    #[inline(always)]
    fn give_back(&mut self) {
        if self.hold.is_some() || self.registered.is_some() {
            self.end_hold();
        }
    }

    fn end_hold(&mut self) {
        let (hold, registered) = (self.hold.take(), self.registered.take());
        let locked = hold.is_some();
        let mut lending = self.lender.lending();
        lending.in_use.end(registered);
        lending.let_go(hold);
        drop(lending);
        // In a child of fork `take_over` has done that.
        if locked && !self.lender.is_forked() {
            // One that is not locked was unlocked by its program.
            let _ = self.part.buffer.unlock();
        }
    }
}

impl<L: Lender> Drop for Lent<'_, L> {
    #[inline]
    fn drop(&mut self) {
        self.give_back();
    }
}
