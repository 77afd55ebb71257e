//! Files: what they are, and opening them.

use std::ffi::CStr;
use std::os::fd::OwnedFd;

use nix::fcntl::OFlag;
use nix::sys::stat::{fstat, FileStat, Mode};

use super::fd::Fd;
use super::{checked, socket, Result};

/// What kind of file a descriptor is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A socket of a stream of bytes.
    Socket,
    /// A socket of messages, each of which is sent whole, once (SOCK_DGRAM, SOCK_SEQPACKET …).
    Messages,
    /// A regular file or a block device: always ready, but slow.
    File,
    /// A pipe, an eventfd …: poll works on it.
    Stream,
    /// A terminal: poll works on it, but what is ready may wait all the same (termios(3)).
    Terminal,
}

impl Kind {
    /// Whether recv(2) and send(2) work on it.
    #[inline]
    pub fn is_socket(self) -> bool {
        matches!(self, Self::Socket | Self::Messages)
    }
}

impl Fd {
    /// fstat(2).
    fn status(self) -> Result<FileStat> {
        Ok(fstat(self.borrow()?)?)
    }

    /// What kind of file it is of; what is closed is a stream.
    pub fn kind(self) -> Kind {
        let Ok(status) = self.status() else {
            return Kind::Stream;
        };
        match status.st_mode & libc::S_IFMT {
            libc::S_IFSOCK if self.is_of_messages() => Kind::Messages,
            libc::S_IFSOCK => Kind::Socket,
            libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR => Kind::File,
            libc::S_IFCHR if self.is_terminal() => Kind::Terminal,
            _ => Kind::Stream,
        }
    }

    fn is_of_messages(self) -> bool {
        socket::option(self.0, libc::SOL_SOCKET, libc::SO_TYPE)
            .is_ok_and(|kind| kind != libc::SOCK_STREAM)
    }

    /// Whether it is a socket's.
    pub fn is_socket(self) -> Result<bool> {
        Ok(self.status()?.st_mode & libc::S_IFMT == libc::S_IFSOCK)
    }

    /// Which file it is of: the device's number and the file's. No other that is open has both.
    pub fn identity(self) -> Result<(u64, u64)> {
        let status = self.status()?;
        Ok((status.st_dev, status.st_ino))
    }
}

/// statx(2) of a path, as the file system has it at hand, without mounting anything: what the mask asks for.
pub fn look(path: &CStr, mask: u32) -> Result<libc::statx> {
    let how = libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT;
    // SAFETY: the path ends with NUL; an all-zero statx is valid, and the call fills it or fails.
    let (result, status) = unsafe {
        let mut status: libc::statx = std::mem::zeroed();
        let result = libc::statx(libc::AT_FDCWD, path.as_ptr(), how, mask, &mut status);
        (result, status)
    };
    checked(result)?;
    Ok(status)
}

/// What kind of file statx(2) has found: S_IF* (inode(7)).
pub fn type_of(status: &libc::statx) -> u32 {
    u32::from(status.stx_mode) & libc::S_IFMT
}

/// A device's number of its two (makedev(3)).
pub fn device(major: u32, minor: u32) -> u64 {
    libc::makedev(major, minor)
}

/// open(2), by flags of the program's. It may wait; EINTR, if a signal comes.
pub fn open(path: &CStr, flags: i32, mode: u32) -> Result<OwnedFd> {
    let (flags, mode) = (OFlag::from_bits_retain(flags), Mode::from_bits_retain(mode));
    Ok(nix::fcntl::open(path, flags, mode)?)
}
