//! Setting a ring up: the ladder of flags, and what the kernel offers.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, Probe};

use super::Ring;
use crate::error::SetupError;
use crate::faults::{self, Faults};
use crate::features::Features;

const REGISTER_RING_FDS: libc::c_uint = 20;
/// Completion entries per submission entry: bursts of completions outnumber submissions.
const COMPLETIONS_PER_ENTRY: u32 = 8;

impl Ring {
    /// Sets a ring up, disabled: the thread that calls [`Ring::enable`] is the one that may submit.
    ///
    /// Flags are given up one step at a time, and only on EINVAL: NO_SQARRAY (Linux 6.6), then
    /// SINGLE_ISSUER with DEFER_TASKRUN (6.1) for COOP_TASKRUN (5.19). With `sqpoll`, the
    /// milliseconds after which the kernel's submitting thread goes to sleep, neither is asked for.
    pub fn new(entries: u32, mask: Features, sqpoll: Option<u32>) -> Result<Self, SetupError> {
        let mask = Features {
            defer_taskrun: mask.defer_taskrun && sqpoll.is_none(),
            ..mask
        };
        let ladder = [(true, true), (true, false), (false, true), (false, false)];
        for (defer_taskrun, no_sqarray) in ladder {
            if (defer_taskrun && !mask.defer_taskrun) || (no_sqarray && !mask.no_sqarray) {
                continue;
            }
            match Self::build(entries, defer_taskrun, no_sqarray, sqpoll) {
                Ok(uring) => {
                    return Self::probed(uring, mask, (defer_taskrun, no_sqarray), entries)
                }
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(SetupError::of(&error, entries)),
            }
        }
        Err(SetupError::from_errno(libc::EINVAL, entries))
    }

    fn build(
        entries: u32,
        defer_taskrun: bool,
        no_sqarray: bool,
        sqpoll: Option<u32>,
    ) -> io::Result<IoUring> {
        faults::fails("setup")?;
        let completions = entries.saturating_mul(COMPLETIONS_PER_ENTRY);
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_cqsize(faults::completion_entries(completions));
        if let Some(idle) = sqpoll {
            builder.setup_sqpoll(idle);
        } else if defer_taskrun {
            builder
                .setup_taskrun_flag()
                .setup_single_issuer()
                .setup_defer_taskrun();
        } else {
            builder.setup_taskrun_flag().setup_coop_taskrun();
        }
        if no_sqarray {
            builder.setup_no_sqarray();
        }
        builder.build(faults::submission_entries(entries))
    }

    fn probed(
        uring: IoUring,
        mask: Features,
        (defer_taskrun, no_sqarray): (bool, bool),
        entries: u32,
    ) -> Result<Self, SetupError> {
        if !uring.params().is_feature_ext_arg() {
            return Err(SetupError::TooOld("IORING_ENTER_EXT_ARG (Linux 5.11)"));
        }
        if !uring.params().is_feature_nodrop() {
            return Err(SetupError::TooOld("IORING_FEAT_NODROP (Linux 5.5)"));
        }
        let mut probe = Probe::new();
        let mut features = match uring.submitter().register_probe(&mut probe) {
            Ok(()) => mask.probed(&probe),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                return Err(SetupError::TooOld("IORING_REGISTER_PROBE (Linux 5.6)"))
            }
            Err(error) => return Err(SetupError::of(&error, entries)),
        };
        may_enter(&uring).map_err(|error| SetupError::of(&error, entries))?;
        features.defer_taskrun = defer_taskrun;
        features.no_sqarray = no_sqarray;
        Ok(Self {
            sqpoll: uring.params().is_setup_sqpoll(),
            uring,
            features,
            defer_taskrun,
            registered: None,
            flushes: 0,
            faults: Faults::of_a_ring(),
        })
    }

    /// Enables the ring. From now on only the calling thread may submit and reap.
    pub fn enable(&mut self) -> io::Result<()> {
        self.uring.submitter().register_enable_rings()?;
        if self.features.registered_ring {
            self.registered = register_ring(self.uring.as_raw_fd());
        }
        Ok(())
    }
}

/// Whether a sandbox lets the process enter a ring: one that is disabled yet says so.
fn may_enter(uring: &IoUring) -> io::Result<()> {
    // SAFETY: nothing is submitted, and nothing is waited for.
    match unsafe { uring.submitter().enter::<()>(0, 0, 0, None) } {
        Err(error) if error.raw_os_error() != Some(libc::EBADFD) => Err(error),
        _ => Ok(()),
    }
}

/// Registers the ring's descriptor with the ring (io_uring_register(2), IORING_REGISTER_RING_FDS),
/// which spares each enter a look-up. No harm if the kernel refuses.
fn register_ring(fd: RawFd) -> Option<u32> {
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
    }
    let mut update = Update {
        offset: u32::MAX,
        reserved: 0,
        data: fd as u64,
    };
    // SAFETY: `update` is the one struct io_uring_rsrc_update that the call reads and writes.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            fd,
            REGISTER_RING_FDS,
            &raw mut update,
            1,
        )
    };
    (result == 1).then_some(update.offset)
}

#[cfg(test)]
mod tests {
    use super::super::MAX_ENTRIES;
    use super::*;
    use io_uring::opcode;

    #[test]
    fn every_step_of_the_ladder_works() {
        for mask in [
            "",
            "no_sqarray",
            "defer_taskrun,no_sqarray",
            "registered_ring",
        ] {
            let mut ring = Ring::new(4, Features::ALL.masked(mask), None).unwrap();
            ring.enable().unwrap();
            let nop = opcode::Nop::new().build().user_data(7);
            // SAFETY: a NOP points to nothing.
            unsafe { ring.push(&nop) }.unwrap();
            ring.enter(1, None).unwrap();
            assert_eq!(
                ring.reap().map(|entry| entry.user_data()),
                Some(7),
                "{mask}"
            );
        }
    }

    #[test]
    fn a_ring_too_large_is_clamped() {
        assert!(Ring::new(MAX_ENTRIES * 4, Features::ALL, None).is_ok());
    }
}
