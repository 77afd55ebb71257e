//! The length of a file: IORING_OP_FTRUNCATE.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Cuts a file, or lets it grow (ftruncate(2), Linux 6.9: see [`Features::ftruncate`](crate::Features)).
#[derive(Clone, Copy, Debug)]
pub struct Ftruncate {
    /// The file, open for writing.
    pub fd: RawFd,
    /// Its bytes from then on.
    pub length: u64,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Ftruncate {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::Ftruncate::new(types::Fd(self.fd), self.length).build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Ftruncate {}

#[cfg(test)]
mod tests {
    use super::super::testing::{driver, run, Directory};
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    #[test]
    fn a_file_is_cut_and_grows() {
        let mut driver = driver();
        if !driver.features().ftruncate {
            return;
        }
        let directory = Directory::new("ftruncate");
        let file = File::create(directory.path("file")).unwrap();
        for length in [1000, 7, 0] {
            let fd = file.as_raw_fd();
            assert_eq!(run(&mut driver, &mut Ftruncate { fd, length }), 0);
            assert_eq!(file.metadata().unwrap().len(), length);
        }
        let read_only = File::open(directory.path("file")).unwrap();
        let mut ftruncate = Ftruncate {
            fd: read_only.as_raw_fd(),
            length: 1,
        };
        assert_eq!(run(&mut driver, &mut ftruncate), -libc::EINVAL);
    }
}
