//! The current position of a file after a write that ended short.

use std::os::fd::RawFd;

/// Brings the position of a file to where write(2) would have left it: after the `moved` bytes of a write at the
/// current position that moved fewer than it was to. The ring goes on with the rest of such a write, and when that
/// fails, for a full disk or a limit, it leaves the position where it was (io_uring/rw.c, kiocb_done): the next write
/// would overwrite what has been written.
pub fn catch_up(fd: RawFd, moved: usize) {
    // SAFETY: an all-zero stat is valid, and fstat fills it or fails; lseek and fcntl take any descriptor.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &mut status) != 0
            || !matches!(status.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFBLK)
        {
            return;
        }
        if libc::fcntl(fd, libc::F_GETFL) & libc::O_APPEND != 0 {
            libc::lseek(fd, 0, libc::SEEK_END);
            return;
        }
        let position = libc::lseek(fd, 0, libc::SEEK_CUR);
        // A kernel that has moved it is at the end of what could be written.
        let is_there = libc::S_IFREG == status.st_mode & libc::S_IFMT && position == status.st_size;
        if position >= 0 && !is_there {
            libc::lseek(fd, moved as libc::off_t, libc::SEEK_CUR);
        }
    }
}
