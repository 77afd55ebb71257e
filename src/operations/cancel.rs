//! Taking an operation back: IORING_OP_ASYNC_CANCEL.

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{OpKey, Operation, WithoutMemory};

/// Has the kernel cancel an operation (io_uring_cancelation(7), Linux 5.5). The result says whether it was found; the
/// operation still ends by its own completion.
#[derive(Clone, Copy, Debug)]
pub struct Cancel {
    /// What is to be cancelled.
    pub op: OpKey,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Cancel {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::AsyncCancel::new(self.op.to_bits()).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Cancel {}

/// Has the kernel cancel all operations of the ring (IORING_ASYNC_CANCEL_ANY, Linux 5.19). The result is their number.
#[derive(Clone, Copy, Debug)]
pub struct CancelAll;

// SAFETY: the entry points to nothing.
unsafe impl Operation for CancelAll {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::AsyncCancel2::new(types::CancelBuilder::any().all()).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for CancelAll {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, finish, run, start};
    use super::super::Poll;
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_cancelled_operation_ends_by_its_own_completion() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let mut poll = Poll {
            fd: reader.as_raw_fd(),
            events: libc::POLLIN as u32,
        };
        let op = start(&mut driver, &mut poll);
        assert_eq!(run(&mut driver, &mut Cancel { op }), 0);
        assert_eq!(finish(&mut driver, op), -libc::ECANCELED);
        assert_eq!(run(&mut driver, &mut Cancel { op }), -libc::ENOENT);
    }

    #[test]
    fn all_operations_are_cancelled_at_once() {
        let (reader, _writer) = std::io::pipe().unwrap();
        let mut driver = driver();
        let mut poll = Poll {
            fd: reader.as_raw_fd(),
            events: libc::POLLIN as u32,
        };
        let ops = [(); 3].map(|()| start(&mut driver, &mut poll));
        assert_eq!(run(&mut driver, &mut CancelAll), 3);
        assert_eq!(ops.map(|op| finish(&mut driver, op)), [-libc::ECANCELED; 3]);
    }
}
