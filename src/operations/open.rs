//! Opening a file: IORING_OP_OPENAT.

use std::ffi::CStr;
use std::os::fd::RawFd;

use io_uring::squeue::{Entry, Flags};
use io_uring::{opcode, types};

use crate::operation::Operation;

/// Opens a file (openat(2), Linux 5.6). Its result is a new descriptor, which whoever gives the operation up closes.
#[derive(Clone, Copy, Debug)]
pub struct Open<P> {
    /// The directory that `path` begins in: [`HERE`](super::HERE) is the process's own.
    pub directory: RawFd,
    /// The path.
    pub path: P,
    /// O_*.
    pub flags: i32,
    /// The permissions of a file that it makes, less the process's umask.
    pub mode: libc::mode_t,
    /// A thread of the kernel does it at once (IOSQE_ASYNC), since the open is expected to take its time.
    pub on_thread: bool,
}

// SAFETY: the path lies in the operation, or is borrowed by it.
unsafe impl<P: AsRef<CStr>> Operation for Open<P> {
    #[inline]
    fn entry(&mut self) -> Entry {
        let path = self.path.as_ref().as_ptr();
        let entry = opcode::OpenAt::new(types::Fd(self.directory), path)
            .flags(self.flags)
            .mode(self.mode)
            .build();
        match self.on_thread {
            true => entry.flags(Flags::ASYNC),
            false => entry,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{byte, run_alone, Directory};
    use super::super::HERE;
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::FromRawFd;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_made_and_opened_again() {
        for on_thread in [false, true] {
            let directory = Directory::new(&format!("open-{on_thread}"));
            let path = directory.name("file");
            let open = |flags| {
                let mut open = Open {
                    directory: HERE,
                    path: &*path,
                    flags: flags | libc::O_CLOEXEC,
                    mode: 0o600,
                    on_thread,
                };
                // `flags`, and IOSQE_ASYNC (linux/io_uring.h).
                assert_eq!(byte(&mut open, 1), u8::from(on_thread) << 4);
                run_alone(&mut open)
            };
            let file = |fd| {
                assert!(fd >= 0);
                // SAFETY: the descriptor is new, and nobody else's.
                unsafe { File::from_raw_fd(fd) }
            };
            assert_eq!(open(libc::O_RDONLY), -libc::ENOENT);
            let mut made = file(open(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY));
            made.write_all(b"hello").unwrap();
            let mode = made.metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            let mut bytes = String::new();
            let mut again = file(open(libc::O_RDONLY));
            again.read_to_string(&mut bytes).unwrap();
            assert_eq!(bytes, "hello");
            let made_again = open(libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY);
            assert_eq!(made_again, -libc::EEXIST);
        }
    }
}
