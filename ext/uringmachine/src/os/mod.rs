//! Linux: what it is called with, and what it answers, that the ring has no part in.
//!
//! All of it is safe to call. A descriptor is whatever number a program has passed: what is asked of one that is closed,
//! or of none, fails by EBADF.

pub mod constants;
pub mod control_message;
pub mod description;
pub mod fd;
pub mod file;
pub mod file_system;
pub mod inotify;
pub mod library;
pub mod limits;
pub mod native_threads;
pub mod per_process;
pub mod per_ractor;
pub mod process;
pub mod resolver;
pub mod socket;
pub mod socket_address;
pub mod thread;
pub mod transfer;

use nix::errno::Errno as Named;

use crate::ruby::Raise;

/// Why a system call has failed (errno(3)): a number, since the kernel has more of them than nix has names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Errno(pub i32);

/// What a system call has come to.
pub type Result<T> = std::result::Result<T, Errno>;

impl Errno {
    /// Of the system call that has just failed in this thread.
    #[inline]
    pub fn last() -> Self {
        Self(Named::last_raw())
    }

    /// Makes it the one of the call that has just failed in this thread, for C code that asks.
    #[inline]
    pub fn set(self) {
        Named::set_raw(self.0);
    }

    /// As an operation's result has it.
    #[inline]
    pub fn negative(self) -> i32 {
        -self.0
    }
}

impl From<Named> for Errno {
    /// Right after the call: what nix has no name for is read again.
    #[inline]
    fn from(errno: Named) -> Self {
        match errno {
            Named::UnknownErrno => Self::last(),
            errno => Self(errno as i32),
        }
    }
}

impl From<std::io::Error> for Errno {
    fn from(error: std::io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for Raise {
    fn from(errno: Errno) -> Self {
        Self::errno(errno.0)
    }
}

/// The answer of a system call of libc's, if it is none of a failure.
#[inline]
fn checked(result: i32) -> Result<i32> {
    match result {
        0.. => Ok(result),
        _ => Err(Errno::last()),
    }
}
