//! Processes: by descriptor (pidfd_open(2)), and children.

use std::ffi::c_int;
use std::os::fd::RawFd;

use super::fd::{entry, poll_now};
use super::{checked, Errno, Result};

/// pidfd_open(2): a new descriptor, close-on-exec.
pub fn open(pid: libc::pid_t) -> Result<RawFd> {
    // SAFETY: numbers only.
    checked(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as i32)
}

/// pidfd_send_signal(2).
pub fn send_signal(fd: i32, signal: c_int, flags: u32) -> Result<()> {
    let info = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: the call points to nothing.
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, info, flags) };
    checked(result as i32).map(drop)
}

/// Whether the process of a descriptor has ended.
pub fn has_ended(fd: i32) -> Result<bool> {
    let mut polls = [entry(fd, libc::POLLIN)];
    poll_now(&mut polls)?;
    if fd < 0 || polls[0].revents & libc::POLLNVAL != 0 {
        return Err(Errno(libc::EBADF));
    }
    Ok(polls[0].revents != 0)
}

/// How a child has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which child.
    pub pid: libc::pid_t,
    /// Its exit status, or the number of the signal.
    pub status: i32,
    /// Which of the two: CLD_*.
    pub code: i32,
}

/// waitid(2), by numbers of the program's. `None` is that there is no change, with WNOHANG.
pub fn wait(id_type: libc::idtype_t, id: libc::id_t, options: i32) -> Result<Option<Change>> {
    // SAFETY: an all-zero siginfo is valid. The call fills it as for SIGCHLD, or leaves its pid 0, or fails.
    let (result, change) = unsafe {
        let mut info: libc::siginfo_t = std::mem::zeroed();
        let result = libc::waitid(id_type, id, &mut info, options);
        let change = Change {
            pid: info.si_pid(),
            status: info.si_status(),
            code: info.si_code,
        };
        (result, change)
    };
    checked(result)?;
    Ok(Some(change).filter(|change| change.pid != 0))
}

/// The group of this process (getpgrp(2)).
pub fn group() -> libc::pid_t {
    nix::unistd::getpgrp().as_raw()
}

/// Makes this process the parent of its descendants whose own parents end, or ends that (prctl(2),
/// PR_SET_CHILD_SUBREAPER).
pub fn set_child_subreaper(on: bool) -> Result<()> {
    Ok(nix::sys::prctl::set_child_subreaper(on)?)
}
