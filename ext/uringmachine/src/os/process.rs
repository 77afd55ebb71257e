//! Processes by descriptor (pidfd_open(2)).

use std::ffi::{c_int, c_long};

use super::direct;
use crate::ruby::Raise;

/// The result of a system call that was made by its number.
pub fn descriptor(result: c_long) -> Result<i32, Raise> {
    direct(result as i32)
}

/// pidfd_send_signal(2).
pub fn send_signal(fd: i32, signal: c_int, flags: u32) -> Result<(), Raise> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call points to nothing.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) };
    descriptor(result).map(drop)
}

/// Whether the process of a descriptor has ended.
pub fn has_ended(fd: i32) -> Result<bool, Raise> {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    super::poll_now(std::slice::from_mut(&mut poll))?;
    if fd < 0 || poll.revents & libc::POLLNVAL != 0 {
        return Err(Raise::errno(libc::EBADF));
    }
    Ok(poll.revents != 0)
}
