//! Which file systems keep their files on this machine, so that a call that only touches the page
//! cache does not wait for a network.

use std::os::fd::RawFd;

const BTRFS: i64 = 0x9123_683e;
const EXT: i64 = 0xef53;
const F2FS: i64 = 0xf2f5_2010;
const OVERLAY: i64 = 0x794c_7630;
const PROC: i64 = 0x9fa0;
const SYSFS: i64 = 0x6265_6572;
const TMPFS: i64 = 0x0102_1994;
const XFS: i64 = 0x5846_5342;
const ZFS: i64 = 0x2fc1_2fc1;

/// Whether opening a file of a path's file system waits for nothing but this machine. Only file systems
/// that are known to be so.
///
/// # Safety
/// The path ends with NUL.
pub unsafe fn opens_locally(path: *const libc::c_char) -> bool {
    // SAFETY: an all-zero statfs is valid, and the call fills it or fails.
    let magic = unsafe {
        let mut status: libc::statfs = std::mem::zeroed();
        (libc::statfs(path, &mut status) == 0).then_some(status.f_type)
    };
    magic.is_some_and(|magic| {
        matches!(
            magic & 0xffff_ffff,
            BTRFS | EXT | F2FS | OVERLAY | PROC | SYSFS | TMPFS | XFS | ZFS
        )
    })
}

/// Whether a write to an open file ends in the page cache of this machine: not where O_DIRECT or O_SYNC
/// has it wait for the disk.
pub fn writes_to_cache(fd: RawFd) -> bool {
    // SAFETY: an all-zero statfs is valid, and the call fills it or fails; fcntl takes any descriptor.
    unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let mut status: libc::statfs = std::mem::zeroed();
        flags & (libc::O_DIRECT | libc::O_DSYNC | libc::O_SYNC) == 0
            && libc::fstatfs(fd, &mut status) == 0
            && matches!(
                status.f_type & 0xffff_ffff,
                BTRFS | EXT | F2FS | OVERLAY | TMPFS | XFS | ZFS
            )
    }
}
