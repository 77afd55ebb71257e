//! Memory that operations work on: one piece of it, a part, or several pieces.

/// Bytes that the kernel reads.
///
/// # Safety
/// Until the value is changed or dropped, `length` bytes from `pointer` on are valid to be read and stay where they
/// are, even when the value is moved, and all three answers stay the same. If there is an index, all the bytes lie in
/// the registered buffer that has it, in the driver that the operation is given to.
pub unsafe trait Memory {
    /// The first byte.
    fn pointer(&self) -> *const u8;

    /// How many bytes there are, at most [`MOST`].
    fn length(&self) -> u32;

    /// The index of the registered buffer that they lie in: see
    /// [`Driver::registered_index`](crate::Driver::registered_index).
    #[inline]
    fn registered(&self) -> Option<u16> {
        None
    }
}

/// Bytes that the kernel writes.
///
/// # Safety
/// As [`Memory`], and the bytes may be written, by nobody else meanwhile that minds.
pub unsafe trait MemoryMut: Memory {
    /// The first byte.
    fn pointer_mut(&mut self) -> *mut u8;
}

/// The most bytes that one operation moves (read(2), NOTES).
pub const MOST: u32 = 0x7fff_f000;

#[inline]
fn at_most(length: usize) -> u32 {
    length.min(MOST as usize) as u32
}

// SAFETY: no bytes.
unsafe impl Memory for () {
    #[inline]
    fn pointer(&self) -> *const u8 {
        std::ptr::null()
    }

    #[inline]
    fn length(&self) -> u32 {
        0
    }
}

// SAFETY: no bytes.
unsafe impl MemoryMut for () {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        std::ptr::null_mut()
    }
}

macro_rules! memory {
    ($($memory:ty),*) => {$(
        // SAFETY: the bytes lie elsewhere than the value, and nobody changes them while it has them.
        unsafe impl Memory for $memory {
            #[inline]
            fn pointer(&self) -> *const u8 {
                self.as_ptr()
            }

            #[inline]
            fn length(&self) -> u32 {
                at_most(self.len())
            }
        }
    )*};
}

macro_rules! memory_mut {
    ($($memory:ty),*) => {$(
        // SAFETY: as for reading; the bytes are the value's alone.
        unsafe impl MemoryMut for $memory {
            #[inline]
            fn pointer_mut(&mut self) -> *mut u8 {
                self.as_mut_ptr()
            }
        }
    )*};
}

// SAFETY: the memory's own promise: it is neither changed nor dropped while it is borrowed.
unsafe impl<M: Memory> Memory for &mut M {
    #[inline]
    fn pointer(&self) -> *const u8 {
        (**self).pointer()
    }

    #[inline]
    fn length(&self) -> u32 {
        (**self).length()
    }

    #[inline]
    fn registered(&self) -> Option<u16> {
        (**self).registered()
    }
}

// SAFETY: as above.
unsafe impl<M: MemoryMut> MemoryMut for &mut M {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        (**self).pointer_mut()
    }
}

memory!(&[u8], &mut [u8], Box<[u8]>, Vec<u8>);
memory_mut!(&mut [u8], Box<[u8]>, Vec<u8>);

/// Appends a copy of the first bytes, `most` of them at most.
pub fn append(bytes: &mut Vec<u8>, memory: &impl Memory, most: u32) {
    let length = memory.length().min(most) as usize;
    if length > 0 {
        // SAFETY: the memory's own promise: it is neither changed nor dropped while it is borrowed.
        let copied = unsafe { std::slice::from_raw_parts(memory.pointer(), length) };
        bytes.extend_from_slice(copied);
    }
}

/// A part of memory: what is left after a short write, say.
#[derive(Clone, Copy, Debug)]
pub struct Part<M> {
    memory: M,
    start: u32,
    length: u32,
}

impl<M: Memory> Part<M> {
    /// The part from `start` on, of at most `length` bytes.
    #[inline]
    pub fn new(memory: M, start: u32, length: u32) -> Self {
        let start = start.min(memory.length());
        Self {
            length: length.min(memory.length() - start),
            start,
            memory,
        }
    }

    /// Leaves its first bytes out from now on.
    #[inline]
    pub fn skip(&mut self, count: u32) {
        let count = count.min(self.length);
        self.start += count;
        self.length -= count;
    }

    /// The memory it is a part of.
    #[inline]
    pub fn into_memory(self) -> M {
        self.memory
    }
}

// SAFETY: the part lies within the memory.
unsafe impl<M: Memory> Memory for Part<M> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.memory.pointer().wrapping_add(self.start as usize)
    }

    #[inline]
    fn length(&self) -> u32 {
        self.length
    }

    #[inline]
    fn registered(&self) -> Option<u16> {
        self.memory.registered()
    }
}

// SAFETY: as above.
unsafe impl<M: MemoryMut> MemoryMut for Part<M> {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        self.memory.pointer_mut().wrapping_add(self.start as usize)
    }
}

/// Memory that is used as if it were not registered.
#[derive(Clone, Copy, Debug)]
pub struct Unregistered<M>(pub M);

// SAFETY: the memory's own promise.
unsafe impl<M: Memory> Memory for Unregistered<M> {
    #[inline]
    fn pointer(&self) -> *const u8 {
        self.0.pointer()
    }

    #[inline]
    fn length(&self) -> u32 {
        self.0.length()
    }
}

// SAFETY: as above.
unsafe impl<M: MemoryMut> MemoryMut for Unregistered<M> {
    #[inline]
    fn pointer_mut(&mut self) -> *mut u8 {
        self.0.pointer_mut()
    }
}

/// Pieces of memory, one after the other, that the kernel reads (readv(2), "struct iovec").
///
/// # Safety
/// Each piece is as [`Memory`] says. The array of them stays where it is until the value is moved, changed or dropped.
pub unsafe trait Pieces {
    /// The array, and how many pieces there are, at most [`MOST_PIECES`].
    fn pieces(&mut self) -> (*mut libc::iovec, usize);
}

// SAFETY: the pieces' own promise: they are neither moved, changed nor dropped while they are borrowed.
unsafe impl<P: Pieces> Pieces for &mut P {
    #[inline]
    fn pieces(&mut self) -> (*mut libc::iovec, usize) {
        (**self).pieces()
    }
}

/// Pieces of memory that the kernel writes.
///
/// # Safety
/// As [`Pieces`], each piece as [`MemoryMut`] says.
pub unsafe trait PiecesMut: Pieces {}

/// The most pieces that one operation takes (UIO_MAXIOV, which readv(2) calls IOV_MAX).
pub const MOST_PIECES: usize = 1024;

/// One piece to be read.
#[derive(Debug)]
pub struct Single<M> {
    memory: M,
    piece: libc::iovec,
}

impl<M: Memory> Single<M> {
    /// All of this memory.
    #[inline]
    pub fn new(memory: M) -> Self {
        Self {
            piece: piece(&memory),
            memory,
        }
    }

    /// The memory.
    #[inline]
    pub fn into_memory(self) -> M {
        self.memory
    }
}

// SAFETY: the memory keeps its bytes in place, and the piece lies in the value.
unsafe impl<M: Memory> Pieces for Single<M> {
    #[inline]
    fn pieces(&mut self) -> (*mut libc::iovec, usize) {
        (&raw mut self.piece, 1)
    }
}

/// One piece to be written.
#[derive(Debug)]
pub struct SingleMut<M> {
    memory: M,
    piece: libc::iovec,
}

impl<M: MemoryMut> SingleMut<M> {
    /// All of this memory.
    #[inline]
    pub fn new(mut memory: M) -> Self {
        Self {
            piece: libc::iovec {
                iov_base: memory.pointer_mut().cast(),
                iov_len: memory.length() as usize,
            },
            memory,
        }
    }

    /// The memory.
    #[inline]
    pub fn into_memory(self) -> M {
        self.memory
    }
}

// SAFETY: the memory keeps its bytes in place, and the piece lies in the value.
unsafe impl<M: MemoryMut> Pieces for SingleMut<M> {
    #[inline]
    fn pieces(&mut self) -> (*mut libc::iovec, usize) {
        (&raw mut self.piece, 1)
    }
}

// SAFETY: as above, of memory that may be written.
unsafe impl<M: MemoryMut> PiecesMut for SingleMut<M> {}

/// Several pieces to be read, of which the first may be done with.
#[derive(Debug)]
pub struct Several<M> {
    memories: Vec<M>,
    pieces: Vec<libc::iovec>,
    done: usize,
}

impl<M: Memory> Several<M> {
    /// All of these, in their order.
    pub fn new(memories: Vec<M>) -> Self {
        Self {
            pieces: memories.iter().map(piece).collect(),
            memories,
            done: 0,
        }
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.pieces[self.done..]
            .iter()
            .map(|piece| piece.iov_len)
            .sum()
    }

    /// Leaves the first bytes out from now on.
    pub fn skip(&mut self, mut count: usize) {
        while let Some(piece) = self.pieces.get_mut(self.done) {
            if count < piece.iov_len {
                piece.iov_base = piece.iov_base.wrapping_byte_add(count);
                piece.iov_len -= count;
                return;
            }
            count -= piece.iov_len;
            self.done += 1;
        }
    }

    /// The memories.
    pub fn into_memories(self) -> Vec<M> {
        self.memories
    }
}

// SAFETY: the memories keep their bytes in place, and the array is on the heap.
unsafe impl<M: Memory> Pieces for Several<M> {
    #[inline]
    fn pieces(&mut self) -> (*mut libc::iovec, usize) {
        let left = &mut self.pieces[self.done..];
        (left.as_mut_ptr(), left.len().min(MOST_PIECES))
    }
}

#[inline]
fn piece<M: Memory>(memory: &M) -> libc::iovec {
    libc::iovec {
        iov_base: memory.pointer().cast_mut().cast(),
        iov_len: memory.length() as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stays_within_its_memory() {
        let bytes = [0_u8; 10];
        let mut part = Part::new(&bytes[..], 4, 100);
        assert_eq!((part.pointer(), part.length()), (bytes[4..].as_ptr(), 6));
        part.skip(2);
        assert_eq!((part.pointer(), part.length()), (bytes[6..].as_ptr(), 4));
        part.skip(9);
        assert_eq!(part.length(), 0);
        assert_eq!(Part::new(&bytes[..], 11, 1).length(), 0);
        assert_eq!(Part::new(&bytes[..], 2, 3).length(), 3);
    }

    #[test]
    fn a_copy_has_no_more_than_there_is() {
        let mut bytes = b"0".to_vec();
        append(&mut bytes, &Part::new(&b"0123"[..], 1, 100), 2);
        append(&mut bytes, &&b"3"[..], 2);
        append(&mut bytes, &(), 2);
        assert_eq!(bytes, b"0123");
    }

    #[test]
    fn what_is_skipped_of_several_pieces_is_whole_ones_and_a_part() {
        let bytes = [0_u8; 10];
        let mut several = Several::new(vec![&bytes[..3], &bytes[3..3], &bytes[3..8]]);
        let left = |several: &mut Several<_>| {
            let (array, count) = several.pieces();
            // SAFETY: the array has so many.
            let pieces = unsafe { std::slice::from_raw_parts(array, count) };
            (pieces.iter())
                .map(|piece| (piece.iov_base.cast_const().cast(), piece.iov_len))
                .collect::<Vec<_>>()
        };
        assert_eq!(several.left(), 8);
        several.skip(2);
        let [one, _, three] = left(&mut several)[..] else {
            unreachable!()
        };
        assert_eq!(one, (bytes[2..].as_ptr(), 1));
        assert_eq!(three, (bytes[3..].as_ptr(), 5));
        several.skip(3);
        assert_eq!(left(&mut several), [(bytes[5..].as_ptr(), 3)]);
        several.skip(3);
        assert!(left(&mut several).is_empty() && several.left() == 0);
        assert_eq!(several.into_memories().len(), 3);
    }
}
