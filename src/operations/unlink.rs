//! Removing a name: IORING_OP_UNLINKAT.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Removes a name of a file, or an empty directory (unlinkat(2), Linux 5.11).
#[derive(Clone, Copy, Debug)]
pub struct Unlink<P> {
    /// The directory that `path` begins in: [`HERE`](super::HERE) is the process's own.
    pub directory: RawFd,
    /// The path.
    pub path: P,
    /// AT_REMOVEDIR for a directory.
    pub flags: i32,
}

// SAFETY: the path lies in the operation, or is borrowed by it.
unsafe impl<P: AsRef<CStr>> Operation for Unlink<P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let path = self.path.as_ref().as_ptr();
        opcode::UnlinkAt::new(types::Fd(self.directory), path)
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
    fn a_file_and_a_directory_are_removed_each_in_its_way() {
        let directory = Directory::new("unlink");
        let file = directory.write("file", b"");
        std::fs::create_dir(directory.path("inner")).unwrap();
        let inner = directory.name("inner");
        let unlink = |path: &CStr, flags| {
            run_alone(&mut Unlink {
                directory: HERE,
                path,
                flags,
            })
        };
        assert_eq!(unlink(&file, libc::AT_REMOVEDIR), -libc::ENOTDIR);
        assert_eq!(unlink(&inner, 0), -libc::EISDIR);
        assert_eq!(unlink(&file, 0), 0);
        assert_eq!(unlink(&inner, libc::AT_REMOVEDIR), 0);
        assert!(!directory.path("file").exists() && !directory.path("inner").exists());
    }
}
