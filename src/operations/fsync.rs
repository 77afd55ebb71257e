//! Having a file on its disk: IORING_OP_FSYNC.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Ends when all that was written to a file is on its disk (fsync(2), fdatasync(2), Linux 5.1).
#[derive(Clone, Copy, Debug)]
pub struct Fsync {
    /// The file.
    pub fd: RawFd,
    /// Without what is not needed to read it, such as its times: fdatasync(2).
    pub data_only: bool,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Fsync {
    #[inline]
    fn entry(&mut self) -> Entry {
        let flags = match self.data_only {
            true => types::FsyncFlags::DATASYNC,
            false => types::FsyncFlags::empty(),
        };
        opcode::Fsync::new(types::Fd(self.fd)).flags(flags).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Fsync {}

#[cfg(test)]
mod tests {
    use super::super::testing::{byte, run_alone, Directory};
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_is_synchronized_and_a_pipe_is_not() {
        let directory = Directory::new("fsync");
        let file = File::create(directory.path("file")).unwrap();
        let (_reader, writer) = std::io::pipe().unwrap();
        for data_only in [false, true] {
            // `fsync_flags`, and IORING_FSYNC_DATASYNC (linux/io_uring.h).
            let mut fsync = Fsync { fd: 0, data_only };
            assert_eq!(byte(&mut fsync, 28), u8::from(data_only));
            let (fd, pipe) = (file.as_raw_fd(), writer.as_raw_fd());
            assert_eq!(run_alone(&mut Fsync { fd, data_only }), 0);
            let mut fsync = Fsync {
                fd: pipe,
                data_only,
            };
            assert_eq!(run_alone(&mut fsync), -libc::EINVAL);
        }
    }
}
