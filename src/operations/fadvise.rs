//! Telling how a file will be read: IORING_OP_FADVISE.

use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::{Operation, WithoutMemory};

/// Tells the kernel how a part of a file will be read (posix_fadvise(2), Linux 5.6).
#[derive(Clone, Copy, Debug)]
pub struct Fadvise {
    /// The file.
    pub fd: RawFd,
    /// Where the part begins.
    pub offset: u64,
    /// Its bytes; 0 is all up to the file's end. (The entry has 32 bits for it.)
    pub length: u32,
    /// POSIX_FADV_*.
    pub advice: i32,
}

// SAFETY: the entry points to nothing.
unsafe impl Operation for Fadvise {
    #[inline]
    fn entry(&mut self) -> Entry {
        opcode::Fadvise::new(types::Fd(self.fd), self.length.into(), self.advice)
            .offset(self.offset)
            .build()
    }
}

// SAFETY: the entry points to nothing.
unsafe impl WithoutMemory for Fadvise {}

#[cfg(test)]
mod tests {
    use super::super::testing::{run_alone, Directory};
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;

    fn advise(fd: &impl AsRawFd, advice: i32) -> i32 {
        run_alone(&mut Fadvise {
            fd: fd.as_raw_fd(),
            offset: 0,
            length: 0,
            advice,
        })
    }

    #[test]
    fn advice_is_taken_for_a_file_and_not_for_a_pipe() {
        let directory = Directory::new("fadvise");
        directory.write("file", b"hello");
        let file = File::open(directory.path("file")).unwrap();
        assert_eq!(advise(&file, libc::POSIX_FADV_WILLNEED), 0);
        assert_eq!(advise(&file, 999), -libc::EINVAL);
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(advise(&reader, libc::POSIX_FADV_WILLNEED), -libc::ESPIPE);
    }
}
