//! Memory of the machine's own, for small transfers.

/// The bytes of a block.
pub const SIZE: usize = 4096;

pub type Block = Box<[u8; SIZE]>;

/// Blocks of memory for small transfers, kept for reuse.
#[derive(Default)]
pub struct Scratch {
    free: Vec<Block>,
}

impl Scratch {
    pub fn take(&mut self) -> Block {
        self.free.pop().unwrap_or_else(|| Box::new([0; SIZE]))
    }

    pub fn give(&mut self, block: Block) {
        const KEPT: usize = 64;
        if self.free.len() < KEPT {
            self.free.push(block);
        }
    }
}
