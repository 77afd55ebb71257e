//! Memory of the machine's own, for small transfers.

/// The bytes of a block for a transfer.
pub const SIZE: usize = 4096;
/// The bytes of a block that somebody waits with, of whom there may be many.
pub const WAITING_SIZE: usize = 1024;

pub type Block<const BYTES: usize = SIZE> = Box<[u8; BYTES]>;

/// Blocks of memory for small transfers, kept for reuse.
pub struct Scratch<const BYTES: usize = SIZE> {
    free: Vec<Block<BYTES>>,
}

impl<const BYTES: usize> Default for Scratch<BYTES> {
    fn default() -> Self {
        Self { free: Vec::new() }
    }
}

impl<const BYTES: usize> Scratch<BYTES> {
    /// As many as have 512 KiB.
    const KEPT: usize = (512 << 10) / BYTES;

    #[inline]
    pub fn take(&mut self) -> Block<BYTES> {
        self.free.pop().unwrap_or_else(|| Box::new([0; BYTES]))
    }

    #[inline]
    pub fn give(&mut self, block: Block<BYTES>) {
        if self.free.len() < Self::KEPT {
            self.free.push(block);
        }
    }
}
