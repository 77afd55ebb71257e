//! Room for bytes in what Ruby keeps: in an IO's buffer, in a String or in an IO::Buffer.

use std::marker::PhantomData;

use uringmachine_runtime::memory::{Memory, MemoryMut};

/// Room that stays as long as Ruby is not called.
pub struct Room<'a> {
    pointer: *mut u8,
    length: u32,
    of: PhantomData<&'a mut ()>,
}

impl<'a> Room<'a> {
    /// Room in bytes of one's own.
    pub fn of(bytes: &'a mut [u8]) -> Self {
        // SAFETY: they are borrowed for as long.
        unsafe { Self::new(bytes.as_mut_ptr(), bytes.len()) }
    }

    /// # Safety
    /// As many bytes from `pointer` on may be written while the room is there, and nobody else has them.
    pub(crate) unsafe fn new(pointer: *mut u8, length: usize) -> Self {
        Self {
            pointer,
            length: length.min(uringmachine_runtime::memory::MOST as usize) as u32,
            of: PhantomData,
        }
    }

    /// Puts bytes there, as many as there is room for; says how many.
    pub fn put(&mut self, bytes: &[u8]) -> usize {
        let count = bytes.len().min(self.length as usize);
        // SAFETY: there is as much room, which nobody else has.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer, count) };
        count
    }
}

// SAFETY: whoever made it promises that the bytes are there.
unsafe impl Memory for Room<'_> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.pointer
    }

    #[inline]
    fn length(&self) -> u32 {
        self.length
    }
}

// SAFETY: as above.
unsafe impl MemoryMut for Room<'_> {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        self.pointer
    }
}
