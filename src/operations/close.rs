//! Closing a descriptor: IORING_OP_CLOSE.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Closes a descriptor (close(2), Linux 5.6). It is closed whatever the result is, unless that is -ECANCELED: the kernel
/// has not begun to then.
#[derive(Clone, Copy, Debug)]
pub struct Close {
    /// The descriptor, which nobody may use any more.
    pub fd: RawFd,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Close {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::Close::new(types::Fd(self.fd)).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Close {}

#[cfg(test)]
mod tests {
    use super::super::testing::run_alone;
    use super::*;
    use std::io::Read;
    use std::os::fd::IntoRawFd;

    #[test]
    fn a_closed_pipe_has_an_end() {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let fd = writer.into_raw_fd();
        assert_eq!(run_alone(&mut Close { fd }), 0);
        assert_eq!(reader.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn what_is_no_descriptor_cannot_be_closed() {
        assert_eq!(run_alone(&mut Close { fd: i32::MAX }), -libc::EBADF);
    }
}
