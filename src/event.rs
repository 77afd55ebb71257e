//! An eventfd (eventfd(2)): what is signalled once is signalled until it is taken back.

// A model has its own (sync.rs).
#![cfg_attr(loom, allow(dead_code))]

use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, Ordering};

/// An eventfd, or [`GONE`].
#[derive(Debug)]
pub(crate) struct Event(AtomicI32);

/// No descriptor: writes to it fail, and do nothing.
const GONE: RawFd = -1;

impl Event {
    /// Makes one, non-blocking and close-on-exec.
    pub(crate) fn new() -> io::Result<Self> {
        // SAFETY: eventfd has no memory to be wrong about; its result is checked.
        let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(Self(AtomicI32::new(fd)))
    }

    #[inline]
    pub(crate) fn fd(&self) -> RawFd {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn signal(&self) {
        signal(self.fd());
    }

    /// Takes it back to zero.
    pub(crate) fn reset(&self) {
        let mut count = 0u64;
        // SAFETY: an eventfd read fills exactly the eight bytes given; EAGAIN leaves them as they are.
        unsafe { libc::read(self.fd(), (&raw mut count).cast(), 8) };
    }

    pub(crate) fn close(&self) {
        let fd = self.0.swap(GONE, Ordering::Relaxed);
        if fd != GONE {
            // SAFETY: the descriptor is this struct's own, and is not used after the swap.
            unsafe { libc::close(fd) };
        }
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        self.close();
    }
}

/// Signals by bare descriptor.
#[inline]
pub(crate) fn signal(fd: RawFd) {
    let one = 1u64;
    // SAFETY: eight valid bytes; a full counter answers EAGAIN, and is signalled already.
    unsafe { libc::write(fd, (&raw const one).cast(), 8) };
}
