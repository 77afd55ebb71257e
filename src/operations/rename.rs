//! Another name for a file: IORING_OP_RENAMEAT.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Gives a file another name (renameat2(2), Linux 5.11).
#[derive(Clone, Copy, Debug)]
pub struct Rename<O, N> {
    /// The directory that `old` begins in: [`HERE`](super::HERE) is the process's own.
    pub old_directory: RawFd,
    /// The path.
    pub old: O,
    /// The directory that `new` begins in.
    pub new_directory: RawFd,
    /// The new path.
    pub new: N,
    /// RENAME_NOREPLACE, RENAME_EXCHANGE.
    pub flags: u32,
}

// SAFETY: the paths lie in the operation, or are borrowed by it.
unsafe impl<O: AsRef<CStr>, N: AsRef<CStr>> Operation for Rename<O, N> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (old, new) = (self.old.as_ref().as_ptr(), self.new.as_ref().as_ptr());
        let (from, to) = (types::Fd(self.old_directory), types::Fd(self.new_directory));
        opcode::RenameAt::new(from, old, to, new)
            .flags(self.flags)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{run_alone, Directory};
    use super::super::HERE;
    use super::*;

    #[test]
    fn a_file_has_its_new_name_only() {
        let directory = Directory::new("rename");
        let old = directory.write("old", b"hello");
        let mut rename = Rename {
            old_directory: HERE,
            old,
            new_directory: HERE,
            new: directory.name("new"),
            flags: libc::RENAME_NOREPLACE,
        };
        assert_eq!(run_alone(&mut rename), 0);
        assert!(!directory.path("old").exists());
        assert_eq!(std::fs::read(directory.path("new")).unwrap(), b"hello");
        assert_eq!(run_alone(&mut rename), -libc::ENOENT);
        directory.write("old", b"again");
        assert_eq!(run_alone(&mut rename), -libc::EEXIST);
    }
}
