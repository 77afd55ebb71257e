//! Room on the disk: IORING_OP_FALLOCATE.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Gives a part of a file room on its disk, or takes it away (fallocate(2), Linux 5.6).
#[derive(Clone, Copy, Debug)]
pub struct Fallocate {
    /// The file, open for writing.
    pub fd: RawFd,
    /// FALLOC_FL_*; 0 gives room.
    pub mode: i32,
    /// Where the part begins.
    pub offset: u64,
    /// Its bytes.
    pub length: u64,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Fallocate {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::Fallocate::new(types::Fd(self.fd), self.length)
            .offset(self.offset)
            .mode(self.mode)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Fallocate {}

#[cfg(test)]
mod tests {
    use super::super::testing::{run_alone, Directory};
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_grows_to_its_room() {
        let directory = Directory::new("fallocate");
        let file = File::create(directory.path("file")).unwrap();
        let mut fallocate = Fallocate {
            fd: file.as_raw_fd(),
            mode: 0,
            offset: 4096,
            length: 100,
        };
        assert_eq!(run_alone(&mut fallocate), 0);
        assert_eq!(file.metadata().unwrap().len(), 4196);
        fallocate.length = 0;
        assert_eq!(run_alone(&mut fallocate), -libc::EINVAL);
    }
}
