//! Why io_uring cannot be had, in words that name the remedy.

use std::fs;

use thiserror::Error;

/// The kernel or the sandbox refused a ring.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SetupError {
    /// `io_uring_setup` answered ENOSYS: a kernel without io_uring, or a sandbox that hides it.
    #[error("io_uring is not available: the kernel or the sandbox (gVisor, an old kernel, a kernel built without CONFIG_IO_URING) answers ENOSYS; run on Linux 6.1 or newer")]
    Missing,
    /// The sysctl `kernel.io_uring_disabled` forbids it.
    #[error("io_uring is disabled by the sysctl kernel.io_uring_disabled = {0}; set it to 0 (sysctl -w kernel.io_uring_disabled=0){hint}", hint = if *.0 == 1 { " or join the group named by kernel.io_uring_group" } else { "" })]
    Disabled(u8),
    /// EPERM although the sysctl allows it: a seccomp filter.
    #[error("io_uring is refused with EPERM although kernel.io_uring_disabled allows it: most likely a seccomp filter, such as the default profile of Docker or containerd; allow io_uring_setup, io_uring_enter and io_uring_register in the profile (docker run --security-opt seccomp=PROFILE.json)")]
    Filtered,
    /// ENOMEM: the locked-memory limit of kernels before 5.12, or no memory at all.
    #[error("io_uring could not get memory for a ring of {entries} entries (ENOMEM); raise RLIMIT_MEMLOCK (ulimit -l) or ask for a smaller ring")]
    Memory {
        /// Submission entries that were asked for.
        entries: u32,
    },
    /// The kernel is older than the floor.
    #[error("io_uring on this kernel lacks {0}; run on Linux 6.1 or newer")]
    TooOld(&'static str),
    /// Any other errno: a resource shortage, or options the kernel does not take.
    #[error("io_uring_setup failed: {message}")]
    Os {
        /// The errno.
        errno: i32,
        /// Its text.
        message: String,
    },
}

impl SetupError {
    /// Reads the cause out of the errno of `io_uring_setup` (io_uring_setup(2), ERRORS).
    pub fn from_errno(errno: i32, entries: u32) -> Self {
        match errno {
            libc::ENOSYS => Self::Missing,
            libc::EPERM => match disabled_sysctl() {
                Some(value) if value > 0 => Self::Disabled(value),
                _ => Self::Filtered,
            },
            libc::ENOMEM => Self::Memory { entries },
            errno => Self::Os {
                errno,
                message: std::io::Error::from_raw_os_error(errno).to_string(),
            },
        }
    }

    /// The error that the kernel's answer to a set-up stands for.
    pub fn of(error: &std::io::Error, entries: u32) -> Self {
        Self::from_errno(error.raw_os_error().unwrap_or(libc::EINVAL), entries)
    }

    /// The errno when the failure is a shortage (EMFILE, ENFILE …) rather than a refusal.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Os { errno, .. } => Some(*errno),
            _ => None,
        }
    }
}

/// The value of `kernel.io_uring_disabled` (since Linux 6.6), if there is one.
fn disabled_sysctl() -> Option<u8> {
    let text = fs::read_to_string("/proc/sys/kernel/io_uring_disabled").ok()?;
    text.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_system_call_names_the_kernel() {
        let error = SetupError::from_errno(libc::ENOSYS, 8);
        assert!(error.to_string().contains("Linux 6.1"), "{error}");
    }

    #[test]
    fn a_filtered_call_names_seccomp() {
        assert!(SetupError::Filtered.to_string().contains("seccomp"));
    }

    #[test]
    fn a_disabled_sysctl_names_itself_and_the_group() {
        assert!(SetupError::Disabled(1).to_string().contains("group"));
        assert!(!SetupError::Disabled(2).to_string().contains("group"));
    }

    #[test]
    fn a_shortage_keeps_its_errno() {
        let error = SetupError::from_errno(libc::EMFILE, 8);
        assert_eq!(error.errno(), Some(libc::EMFILE));
    }
}
