//! Linux: what it is called with, and what it answers, that the ring has no part in.

pub mod constants;
pub mod file_system;
pub mod per_process;
pub mod per_ractor;
pub mod process;
pub mod socket_address;

use nix::errno::Errno;

use crate::ruby::Raise;

/// The result of a system call that was made directly.
pub fn direct(result: i32) -> Result<i32, Raise> {
    if result >= 0 {
        return Ok(result);
    }
    Err(Raise::errno(Errno::last_raw()))
}

/// poll(2) without waiting. It answers EINTR although it does not wait, if a signal is pending.
pub fn poll_now(polls: &mut [libc::pollfd]) -> Result<(), Raise> {
    loop {
        // SAFETY: the pointer and the count belong together.
        let result = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as _, 0) };
        if result >= 0 || Errno::last_raw() != libc::EINTR {
            return direct(result).map(drop);
        }
    }
}
