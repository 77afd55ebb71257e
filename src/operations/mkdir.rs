//! A new directory: IORING_OP_MKDIRAT.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Makes a directory (mkdirat(2), Linux 5.15).
#[derive(Clone, Copy, Debug)]
pub struct Mkdir<P> {
    /// The directory that `path` begins in: [`HERE`](super::HERE) is the process's own.
    pub directory: RawFd,
    /// The path.
    pub path: P,
    /// Its permissions, less the process's umask.
    pub mode: libc::mode_t,
}

// SAFETY: the path lies in the operation, or is borrowed by it.
unsafe impl<P: AsRef<CStr>> Operation for Mkdir<P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let path = self.path.as_ref().as_ptr();
        opcode::MkDirAt::new(types::Fd(self.directory), path)
            .mode(self.mode)
            .build()
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{run_alone, Directory};
    use super::super::HERE;
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_directory_is_made_once() {
        let directory = Directory::new("mkdir");
        let mut mkdir = Mkdir {
            directory: HERE,
            path: directory.name("new"),
            mode: 0o700,
        };
        assert_eq!(run_alone(&mut mkdir), 0);
        let metadata = std::fs::metadata(directory.path("new")).unwrap();
        assert!(metadata.is_dir());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o700);
        assert_eq!(run_alone(&mut mkdir), -libc::EEXIST);
    }
}
