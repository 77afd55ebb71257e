//! The ring: submission, waiting, reaping.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::squeue::Entry;
use io_uring::{cqueue, types, EnterFlags, IoUring};

use crate::faults::{Enter, Faults};
use crate::features::Features;
use crate::provided_buffers::ProvidedBuffers;

mod setup;

/// Flags of io_uring_enter(2) that this crate's dependency keeps to itself.
const ENTER_SQ_WAKEUP: u32 = 1 << 1;
const ENTER_REGISTERED_RING: u32 = 1 << 4;

/// A ring and what the kernel offers on it.
pub struct Ring {
    uring: IoUring,
    features: Features,
    defer_taskrun: bool,
    /// A thread of the kernel submits.
    sqpoll: bool,
    /// The ring's index among the thread's registered descriptors, once [`Ring::enable`] had one.
    registered: Option<u32>,
    /// How often a full queue was submitted, or all that was queued.
    flushes: u64,
    faults: Faults,
}

/// How many entries a ring has unless asked otherwise: small, since a full queue is flushed.
pub const DEFAULT_ENTRIES: u32 = 256;
/// The most entries the kernel takes (IORING_MAX_ENTRIES).
pub const MAX_ENTRIES: u32 = 32_768;

impl Ring {
    /// What may be used on this ring.
    pub fn features(&self) -> Features {
        self.features
    }

    /// Provides buffers to the kernel.
    pub(crate) fn provide_buffers(&self) -> io::Result<ProvidedBuffers> {
        ProvidedBuffers::new(&self.uring, self.features.incremental_buffers)
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

    /// How many calls of io_uring_enter the ring has made by itself.
    pub fn flushes(&self) -> u64 {
        self.flushes
    }

    /// The ring's descriptor.
    pub fn fd(&self) -> RawFd {
        self.uring.as_raw_fd()
    }

    /// The operation that is pushed: see [`crate::faults`].
    #[inline]
    pub(crate) fn operation(&mut self, entry: Entry) -> Entry {
        self.faults.submitted(entry)
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
            self.flushes += 1;
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
        !submission.is_empty()
            || submission.taskrun()
            || submission.cq_overflow()
            || self.faults.holds()
    }

    /// Whether completions are there to be reaped.
    #[inline]
    pub fn has_completions(&mut self) -> bool {
        self.faults.has_completions(&self.uring.completion())
    }

    /// Submits what is queued, lets the kernel post completions, and waits for `want` of them, at
    /// most for `timeout`. A timeout, a signal (EINTR) and a kernel that wants us to reap first
    /// (EBUSY, EAGAIN) are no errors: whoever waits looks at the completions and comes again.
    ///
    /// Under DEFER_TASKRUN completions are posted only by an enter with GETEVENTS, so it is always
    /// set.
    pub fn enter(&mut self, want: u32, timeout: Option<u64>) -> io::Result<()> {
        let enter = Enter {
            to_submit: self.unsubmitted() as u32,
            want,
            timeout,
        };
        let Some(enter) = self.faults.entering(enter) else {
            return Ok(());
        };
        let Enter {
            to_submit,
            want,
            timeout,
        } = enter;
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
            self.flushes += 1;
            self.enter(0, None)?;
            // A thread of the kernel takes it in its own time.
            std::hint::spin_loop();
        }
        Ok(())
    }

    /// Takes one completion off the queue, if there is any.
    #[inline]
    pub fn reap(&mut self) -> Option<cqueue::Entry> {
        self.faults.reap(&mut self.uring.completion())
    }

    /// Whether completions are deferred to enters with GETEVENTS.
    pub fn is_deferred(&self) -> bool {
        self.defer_taskrun
    }
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
}
