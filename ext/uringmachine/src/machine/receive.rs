//! Waiting for the bytes of a socket without memory of whoever waits: they come into a block of the machine's own.

use std::os::fd::RawFd;

use uringmachine_runtime::operations::Recv;
use uringmachine_runtime::TaskId;

use super::operate::{Failure, Yields};
use super::Machine;
use crate::lending::scratch::{Block, WAITING_SIZE};

/// What came of it.
pub struct Received {
    block: Block<WAITING_SIZE>,
    count: usize,
}

impl Received {
    pub fn bytes(&self) -> &[u8] {
        &self.block[..self.count]
    }

    /// Gives the block back.
    pub fn end(self, machine: &Machine) {
        machine.parts().lending.waiting.give(self.block);
    }
}

impl Machine {
    /// Waits for bytes, `most` of them at most, and no more than a block has. What has come is there even if the fiber is to
    /// raise; the result is a count, or -errno.
    pub fn receive(
        &self,
        me: TaskId,
        fd: RawFd,
        most: usize,
        deadline: Option<u64>,
    ) -> (Result<i32, Failure>, Received) {
        let mut block = self.parts().lending.waiting.take();
        let most = most.min(block.len());
        let mut recv = Recv {
            fd,
            memory: &mut block[..most],
            flags: 0,
            poll_first: true,
        };
        let mut seen = 0;
        let result = self.operate_noting(me, &mut recv, deadline, Yields::Count, &mut seen);
        let count = usize::try_from(seen).unwrap_or(0).min(most);
        (result, Received { block, count })
    }
}
