//! Which file systems keep their files on this machine, so that a call that only touches the page
//! cache does not wait for a network.

use std::ffi::CStr;
use std::os::fd::RawFd;

use nix::sys::statfs::{fstatfs, statfs, Statfs};

use super::fd::Fd;

const BTRFS: i64 = 0x9123_683e;
const EXT: i64 = 0xef53;
const F2FS: i64 = 0xf2f5_2010;
const OVERLAY: i64 = 0x794c_7630;
const PROC: i64 = 0x9fa0;
const SYSFS: i64 = 0x6265_6572;
const TMPFS: i64 = 0x0102_1994;
const XFS: i64 = 0x5846_5342;
const ZFS: i64 = 0x2fc1_2fc1;

/// A file system's number (statfs(2), `f_type`).
fn number(status: &Statfs) -> i64 {
    status.filesystem_type().0 & 0xffff_ffff
}

/// Whether opening a file of a path's file system waits for nothing but this machine. Only file systems
/// that are known to be so.
pub fn is_local(path: &CStr) -> bool {
    statfs(path).is_ok_and(|status| {
        matches!(
            number(&status),
            BTRFS | EXT | F2FS | OVERLAY | PROC | SYSFS | TMPFS | XFS | ZFS
        )
    })
}

/// Whether a write to an open file ends in the page cache of this machine: not where O_DIRECT or O_SYNC
/// has it wait for the disk.
pub fn writes_to_cache(fd: RawFd) -> bool {
    const WAITS: i32 = libc::O_DIRECT | libc::O_DSYNC | libc::O_SYNC;
    let fd = Fd(fd);
    let status = || fstatfs(fd.borrow().ok()?).ok();
    fd.flags().is_ok_and(|flags| flags & WAITS == 0)
        && status().is_some_and(|status| {
            matches!(
                number(&status),
                BTRFS | EXT | F2FS | OVERLAY | TMPFS | XFS | ZFS
            )
        })
}
