//! What a file is: IORING_OP_STATX.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Finds out what a file is (statx(2), Linux 5.6).
#[derive(Clone, Copy)]
pub struct Statx<P> {
    directory: RawFd,
    path: P,
    flags: i32,
    mask: u32,
    status: libc::statx,
}

impl<P: AsRef<CStr>> Statx<P> {
    /// What a path names, from a directory on; [`HERE`](super::HERE) is the process's own. `flags` are AT_*: with
    /// AT_EMPTY_PATH and an empty path it is what the descriptor `directory` is. `mask` is what is asked for, STATX_*.
    pub fn new(directory: RawFd, path: P, flags: i32, mask: u32) -> Self {
        Self {
            directory,
            path,
            flags,
            mask,
            // SAFETY: all-zero is a valid struct statx: numbers.
            status: unsafe { std::mem::zeroed() },
        }
    }

    /// What the kernel has answered; its `stx_mask` says which of it. All zero before.
    pub fn status(&self) -> &libc::statx {
        &self.status
    }
}

// SAFETY: the path lies in the operation, or is borrowed by it; the answer lies in it.
unsafe impl<P: AsRef<CStr>> Operation for Statx<P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let path = self.path.as_ref().as_ptr();
        let status = (&raw mut self.status).cast();
        opcode::Statx::new(types::Fd(self.directory), path, status)
            .flags(self.flags)
            .mask(self.mask)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{run_alone, Directory};
    use super::super::HERE;
    use super::*;
    use std::fs::File;
    use std::os::fd::AsRawFd;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn a_path_and_a_descriptor_tell_of_the_same_file() {
        let directory = Directory::new("statx");
        let path = directory.write("file", b"hello");
        let file = File::open(directory.path("file")).unwrap();
        let mut by_path = Statx::new(HERE, path, 0, libc::STATX_BASIC_STATS);
        let mut by_descriptor = Statx::new(
            file.as_raw_fd(),
            c"",
            libc::AT_EMPTY_PATH,
            libc::STATX_SIZE | libc::STATX_INO,
        );
        assert_eq!(run_alone(&mut by_path), 0);
        assert_eq!(run_alone(&mut by_descriptor), 0);
        let inode = file.metadata().unwrap().ino();
        for status in [by_path.status(), by_descriptor.status()] {
            assert_eq!((status.stx_size, status.stx_ino), (5, inode));
        }
        let mut nothing = Statx::new(HERE, directory.name("nothing"), 0, 0);
        assert_eq!(run_alone(&mut nothing), -libc::ENOENT);
    }
}
