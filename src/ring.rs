//! The ring: set-up with its ladder of flags, submission, waiting, reaping.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{cqueue, types, EnterFlags, IoUring, Probe};

use crate::buffer_ring::BufferRing;
use crate::error::SetupError;
use crate::features::Features;

/// Flags of io_uring_enter(2) that this crate's dependency keeps to itself.
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const ENTER_REGISTERED_RING: u32 = 1 << 4;
const REGISTER_RING_FDS: libc::c_uint = 20;

/// A ring and what the kernel offers on it.
pub struct Ring {
    uring: IoUring,
    features: Features,
    defer_taskrun: bool,
    /// A thread of the kernel submits.
    sqpoll: bool,
    /// The ring's index among the thread's registered descriptors, once [`Ring::enable`] had one.
    registered: Option<u32>,
}

/// How many entries a ring has unless asked otherwise: small, since a full queue is flushed.
pub const DEFAULT_ENTRIES: u32 = 256;
/// The most entries the kernel takes (IORING_MAX_ENTRIES).
pub const MAX_ENTRIES: u32 = 32_768;
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
        let mut refused = libc::EINVAL;
        for (defer_taskrun, no_sqarray) in ladder {
            if (defer_taskrun && !mask.defer_taskrun) || (no_sqarray && !mask.no_sqarray) {
                continue;
            }
            match Self::build(entries, defer_taskrun, no_sqarray, sqpoll) {
                Ok(uring) => return Self::probed(uring, mask, defer_taskrun, no_sqarray),
                Err(error) => match error.raw_os_error().unwrap_or(libc::EINVAL) {
                    libc::EINVAL => refused = libc::EINVAL,
                    errno => return Err(SetupError::from_errno(errno, entries)),
                },
            }
        }
        Err(SetupError::from_errno(refused, entries))
    }

    fn build(
        entries: u32,
        defer_taskrun: bool,
        no_sqarray: bool,
        sqpoll: Option<u32>,
    ) -> io::Result<IoUring> {
        let mut builder = IoUring::builder();
        builder
            .dontfork()
            .setup_clamp()
            .setup_r_disabled()
            .setup_submit_all()
            .setup_cqsize(entries.saturating_mul(COMPLETIONS_PER_ENTRY));
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
        builder.build(entries)
    }

    fn probed(
        uring: IoUring,
        mask: Features,
        defer_taskrun: bool,
        no_sqarray: bool,
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
            Err(_) => return Err(SetupError::TooOld("IORING_REGISTER_PROBE (Linux 5.6)")),
        };
        features.defer_taskrun = defer_taskrun;
        features.no_sqarray = no_sqarray;
        Ok(Self {
            sqpoll: uring.params().is_setup_sqpoll(),
            uring,
            features,
            defer_taskrun,
            registered: None,
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

    /// What may be used on this ring.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Provides buffers to the kernel.
    pub(crate) fn provide_buffers(&self) -> io::Result<BufferRing> {
        BufferRing::new(&self.uring, self.features.incremental_buffers)
    }

    /// The ring itself, for registrations.
    pub(crate) fn uring(&self) -> &IoUring {
        &self.uring
    }

    /// Closes the descriptor and leaves the mappings alone.
    pub(crate) fn forsake(self) {
        // SAFETY: the descriptor is this process's copy, and its owner is forgotten below.
        unsafe { libc::close(self.fd()) };
        std::mem::forget(self.uring);
    }

    /// Whether a thread of the kernel submits.
    pub fn is_sqpoll(&self) -> bool {
        self.sqpoll
    }

    /// The ring's descriptor.
    pub fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// Queues an entry; a full queue is submitted first.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and unmoved until its final completion.
    pub unsafe fn push(&mut self, entry: &Entry) -> io::Result<()> {
        loop {
            // SAFETY: the caller's promise.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter(0, None)?;
        }
    }

    /// How many entries wait to be submitted.
    #[inline]
    pub fn unsubmitted(&mut self) -> usize {
        self.uring.submission().len()
    }

    /// Whether an enter without waiting could bring something: entries to submit, completions to be
    /// made of finished work (SQ_TASKRUN), or completions the kernel keeps back (SQ_CQ_OVERFLOW).
    #[inline]
    pub fn wants_enter(&mut self) -> bool {
        let submission = self.uring.submission();
        !submission.is_empty() || submission.taskrun() || submission.cq_overflow()
    }

    /// Whether completions are there to be reaped.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        !self.uring.completion().is_empty()
    }

    /// Submits what is queued, lets the kernel post completions, and waits for `want` of them, at
    /// most for `timeout`. A timeout, a signal (EINTR) and a kernel that wants us to reap first
    /// (EBUSY, EAGAIN) are no errors: whoever waits looks at the completions and comes again.
    ///
    /// Under DEFER_TASKRUN completions are posted only by an enter with GETEVENTS, so it is always
    /// set.
    pub fn enter(&mut self, want: u32, timeout: Option<u64>) -> io::Result<()> {
        let to_submit = self.unsubmitted() as u32;
        let flags = EnterFlags::GETEVENTS | EnterFlags::EXT_ARG;
        let mut extra = 0;
        if self.sqpoll {
            let submission = self.uring.submission();
            if submission.need_wakeup() {
                extra |= ENTER_SQ_WAKEUP;
            } else if want == 0 && !submission.cq_overflow() {
                if to_submit as usize == submission.capacity() {
                    drop(submission);
                    self.uring.submitter().squeue_wait()?;
                }
                return Ok(());
            }
        }
        let time;
        let mut args = types::SubmitArgs::new();
        if let Some(nanoseconds) = timeout {
            time = types::Timespec::new()
                .sec(nanoseconds / 1_000_000_000)
                .nsec((nanoseconds % 1_000_000_000) as u32);
            args = args.timespec(&time);
        }
        let (fd, flags) = match self.registered {
            Some(index) => (index as RawFd, flags.bits() | extra | ENTER_REGISTERED_RING),
            None => (self.uring.as_raw_fd(), flags.bits() | extra),
        };
        // SAFETY: the descriptor is our ring's, and the argument block lives across the call.
        let result = unsafe {
            libc::syscall(
                libc::SYS_io_uring_enter,
                fd,
                to_submit,
                want,
                flags,
                (&raw const args).cast::<libc::c_void>(),
                std::mem::size_of::<types::SubmitArgs>(),
            )
        };
        if result >= 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR | libc::ETIME | libc::EBUSY | libc::EAGAIN) => Ok(()),
            _ => Err(error),
        }
    }

    /// Has the kernel take all that is queued.
    pub fn flush(&mut self) -> io::Result<()> {
        while self.unsubmitted() > 0 {
            self.enter(0, None)?;
            // A thread of the kernel takes it in its own time.
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Takes one completion off the queue, if there is any.
    #[inline]
    pub fn reap(&mut self) -> Option<cqueue::Entry> {
        self.uring.completion().next()
    }

    /// Whether completions are deferred to enters with GETEVENTS.
    pub fn is_deferred(&self) -> bool {
        self.defer_taskrun
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

/// Has a receive look for readiness before it tries: for a socket that is known to be empty, whose first
/// attempt would be in vain (IORING_RECVSEND_POLL_FIRST, Linux 5.19).
#[must_use]
pub fn poll_first(mut entry: Entry) -> Entry {
    const POLL_FIRST: u16 = 1;
    const IOPRIO: usize = 2;
    // SAFETY: an Entry is a struct io_uring_sqe, whose 16-bit field `ioprio` is at byte 2
    // (linux/io_uring.h); the crate sets it for no builder of a plain receive.
    unsafe {
        (&raw mut entry)
            .cast::<u8>()
            .add(IOPRIO)
            .cast::<u16>()
            .write(POLL_FIRST);
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use io_uring::opcode;

    fn ring(mask: Features) -> Ring {
        let mut ring = Ring::new(4, mask, None).expect("io_uring is allowed here");
        ring.enable().unwrap();
        ring
    }

    #[test]
    fn every_step_of_the_ladder_works() {
        for mask in [
            "",
            "no_sqarray",
            "defer_taskrun,no_sqarray",
            "registered_ring",
        ] {
            let mut ring = ring(Features::ALL.masked(mask));
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
    fn a_full_submission_queue_is_flushed() {
        let mut ring = ring(Features::ALL);
        for number in 0..100 {
            let nop = opcode::Nop::new().build().user_data(number);
            // SAFETY: a NOP points to nothing.
            unsafe { ring.push(&nop) }.unwrap();
        }
        ring.enter(0, None).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 100 {
            match ring.reap() {
                Some(entry) => seen.push(entry.user_data()),
                None => ring.enter(1, None).unwrap(),
            }
        }
        assert_eq!(seen, (0..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_wait_ends_at_its_timeout() {
        let mut ring = ring(Features::ALL);
        ring.enter(1, Some(1_000_000)).unwrap();
        assert!(ring.reap().is_none());
    }

    #[test]
    fn a_ring_too_large_is_clamped() {
        assert!(Ring::new(MAX_ENTRIES * 4, Features::ALL, None).is_ok());
    }

    #[test]
    fn a_receive_that_polls_first_gets_what_is_there_and_what_comes() {
        use std::io::Write;
        use std::os::fd::AsRawFd;
        use std::os::unix::net::UnixStream;

        for sent_before in [true, false] {
            let mut ring = ring(Features::ALL);
            let (receiver, mut sender) = UnixStream::pair().unwrap();
            let mut bytes = [0_u8; 8];
            if sent_before {
                sender.write_all(b"hello").unwrap();
            }
            let fd = io_uring::types::Fd(receiver.as_raw_fd());
            let receive = poll_first(opcode::Recv::new(fd, bytes.as_mut_ptr(), 8).build());
            // SAFETY: the bytes outlive the receive, which completes below.
            unsafe { ring.push(&receive) }.unwrap();
            ring.enter(0, None).unwrap();
            if !sent_before {
                assert!(ring.reap().is_none());
                sender.write_all(b"hello").unwrap();
            }
            ring.enter(1, None).unwrap();
            assert_eq!(ring.reap().map(|entry| entry.result()), Some(5));
            assert_eq!(&bytes[..5], b"hello");
        }
    }
}
