//! A name for a name: IORING_OP_SYMLINKAT.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Makes a symbolic link (symlinkat(2), Linux 5.15).
#[derive(Clone, Copy, Debug)]
pub struct Symlink<T, P> {
    /// What the link says.
    pub target: T,
    /// The directory that `path` begins in: [`HERE`](super::HERE) is the process's own.
    pub directory: RawFd,
    /// Where the link is made.
    pub path: P,
}

// SAFETY: the paths lie in the operation, or are borrowed by it.
unsafe impl<T: AsRef<CStr>, P: AsRef<CStr>> Operation for Symlink<T, P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let (target, path) = (self.target.as_ref().as_ptr(), self.path.as_ref().as_ptr());
        opcode::SymlinkAt::new(types::Fd(self.directory), target, path).build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{run_alone, Directory};
    use super::super::HERE;
    use super::*;
    use std::path::Path;

    #[test]
    fn a_link_says_what_it_was_told() {
        let directory = Directory::new("symlink");
        let mut symlink = Symlink {
            target: c"some/where",
            directory: HERE,
            path: directory.name("link"),
        };
        assert_eq!(run_alone(&mut symlink), 0);
        let target = std::fs::read_link(directory.path("link")).unwrap();
        assert_eq!(target, Path::new("some/where"));
        assert_eq!(run_alone(&mut symlink), -libc::EEXIST);
    }
}
