//! Which file systems keep their files on this machine, so that a call that only touches the page
//! cache does not wait for a network.

use std::ffi::CStr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::sys::statfs::{fstatfs, statfs, Statfs};

use uringmachine_runtime::clock;

use super::fd::Fd;

const BTRFS: u32 = 0x9123_683e;
const EXT: u32 = 0xef53;
const F2FS: u32 = 0xf2f5_2010;
const OVERLAY: u32 = 0x794c_7630;
const PROC: u32 = 0x9fa0;
const SYSFS: u32 = 0x6265_6572;
const TMPFS: u32 = 0x0102_1994;
const XFS: u32 = 0x5846_5342;
const ZFS: u32 = 0x2fc1_2fc1;

/// A file system's number (statfs(2), `f_type`), which C libraries have in several types.
fn number(status: &Statfs) -> u32 {
    status.filesystem_type().0 as u32
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

/// Kinds of file systems that wait for nothing but this machine (/proc/filesystems).
const LOCAL: &[&str] = &[
    "bcachefs",
    "binfmt_misc",
    "bpf",
    "btrfs",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "erofs",
    "exfat",
    "ext2",
    "ext3",
    "ext4",
    "f2fs",
    "fusectl",
    "hugetlbfs",
    "iso9660",
    "mqueue",
    "nsfs",
    "ntfs3",
    "overlay",
    "proc",
    "pstore",
    "ramfs",
    "rootfs",
    "securityfs",
    "selinuxfs",
    "squashfs",
    "sysfs",
    "tmpfs",
    "tracefs",
    "vfat",
    "xfs",
    "zfs",
];

/// systemd's, for what is local: a file system that is mounted when somebody looks.
const LOCAL_TRIGGER: &str = "/proc/sys/fs/binfmt_misc";

/// How long what is mounted is believed, in nanoseconds.
const BELIEVED: u64 = 1_000_000_000;

/// Whether every file system that this process sees is of this machine, as it was a second ago at most (proc(5),
/// /proc/self/mountinfo).
#[inline]
pub fn are_all_local() -> bool {
    /// When it was looked up, and whether they were: the lowest bit.
    static LAST: AtomicU64 = AtomicU64::new(0);
    let (last, now) = (LAST.load(Ordering::Relaxed), clock::about_now());
    if last != 0 && now.saturating_sub(last) < BELIEVED {
        return last & 1 == 1;
    }
    let mounts = std::fs::read_to_string("/proc/self/mountinfo");
    let are_local = mounts.is_ok_and(|mounts| mounts.lines().all(is_local_mount));
    LAST.store(now & !1 | u64::from(are_local), Ordering::Relaxed);
    are_local
}

/// Of a line of mountinfo: the fifth field is where it is, and the kind comes after a hyphen.
fn is_local_mount(line: &str) -> bool {
    let kind = line
        .split(" - ")
        .nth(1)
        .and_then(|rest| rest.split(' ').next());
    match kind {
        Some("autofs") => line.split(' ').nth(4) == Some(LOCAL_TRIGGER),
        Some(kind) => LOCAL.contains(&kind),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::is_local_mount;

    #[test]
    fn what_waits_for_others_is_not_local() {
        let mount = |at: &str, kind: &str| {
            is_local_mount(&format!(
                "36 35 98:0 /mnt1 {at} rw,noatime master:1 shared:2 - {kind} /dev/root rw,errors=continue"
            ))
        };
        for kind in ["ext4", "tmpfs", "overlay", "cgroup2", "zfs"] {
            assert!(mount("/mnt2", kind), "{kind}");
        }
        for kind in [
            "nfs4",
            "cifs",
            "fuse.sshfs",
            "fuse",
            "9p",
            "virtiofs",
            "autofs",
            "ceph",
            "of tomorrow",
        ] {
            assert!(!mount("/mnt2", kind), "{kind}");
        }
        assert!(mount("/proc/sys/fs/binfmt_misc", "autofs"));
        // No optional fields at all, and a place with a hyphen, whose blanks are escaped.
        assert!(is_local_mount(
            "36 35 98:0 / /a\\040-\\040b rw - ext4 /dev/root rw"
        ));
        assert!(!is_local_mount("no line of such a file"));
    }
}
