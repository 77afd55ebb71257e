//! One more name for a file: IORING_OP_LINKAT.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Gives a file one more name (linkat(2), Linux 5.15).
#[derive(Clone, Copy, Debug)]
pub struct Link<O, N> {
    /// The directory that `old` begins in: [`HERE`](super::HERE) is the process's own.
    pub old_directory: RawFd,
    /// The path.
    pub old: O,
    /// The directory that `new` begins in.
    pub new_directory: RawFd,
    /// The new path.
    pub new: N,
    /// AT_EMPTY_PATH, AT_SYMLINK_FOLLOW.
    pub flags: i32,
}

// SAFETY: the paths lie in the operation, or are borrowed by it.
unsafe impl<O: AsRef<CStr>, N: AsRef<CStr>> Operation for Link<O, N> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (old, new) = (self.old.as_ref().as_ptr(), self.new.as_ref().as_ptr());
        let (from, to) = (types::Fd(self.old_directory), types::Fd(self.new_directory));
        opcode::LinkAt::new(from, old, to, new)
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
    fn a_file_has_two_names() {
        let directory = Directory::new("link");
        let old = directory.write("old", b"hello");
        let mut link = Link {
            old_directory: HERE,
            old,
            new_directory: HERE,
            new: directory.name("new"),
            flags: 0,
        };
        assert_eq!(run_alone(&mut link), 0);
        assert!(directory.path("old").exists());
        assert_eq!(std::fs::read(directory.path("new")).unwrap(), b"hello");
        assert_eq!(run_alone(&mut link), -libc::EEXIST);
    }

    #[test]
    fn a_symbolic_link_or_what_it_leads_to_gets_the_name() {
        let directory = Directory::new("link-symlink");
        directory.write("file", b"");
        std::os::unix::fs::symlink("file", directory.path("symlink")).unwrap();
        for (flags, is_symlink) in [(0, true), (libc::AT_SYMLINK_FOLLOW, false)] {
            let name = format!("new-{flags}");
            let mut link = Link {
                old_directory: HERE,
                old: directory.name("symlink"),
                new_directory: HERE,
                new: directory.name(&name),
                flags,
            };
            assert_eq!(run_alone(&mut link), 0);
            assert_eq!(directory.path(&name).is_symlink(), is_symlink);
        }
    }
}
