//! What is registered with a driver's ring, and the buffers that are provided to it.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::Driver;
use crate::mapping::Mapping;
use crate::provided_buffers::GROUP;
use crate::registered_buffers::RegionId;

impl<T> Driver<T> {
    /// The group of provided buffers, made at its first use.
    pub fn buffer_group(&mut self) -> io::Result<u16> {
        let Some(kernel) = &mut self.kernel else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        if kernel.provided.is_none() {
            kernel.provided = Some(kernel.ring.provide_buffers()?);
        }
        Ok(GROUP)
    }

    /// Registers `count` buffers of `size` bytes, a multiple of the page size, for READ_FIXED and WRITE_FIXED;
    /// returns the region and its memory.
    pub fn register_buffers(
        &mut self,
        count: u32,
        size: usize,
    ) -> io::Result<(RegionId, Arc<Mapping>)> {
        let Some(kernel) = &mut self.kernel else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        kernel.registered.register(kernel.ring.uring(), count, size)
    }

    /// Takes registered buffers out of the ring.
    pub fn unregister_buffers(&mut self, region: RegionId) {
        if let Some(kernel) = &mut self.kernel {
            kernel.registered.unregister(kernel.ring.uring(), region);
        }
    }

    /// The index of the registered buffer that all of these bytes lie in.
    #[inline]
    pub fn registered_index(&self, pointer: *const u8, length: usize) -> Option<u16> {
        let kernel = self.kernel.as_ref()?;
        if kernel.registered.is_empty() {
            return None;
        }
        kernel.registered.slot(pointer, length)
    }

    /// Registers the file of a descriptor: operations on that descriptor use it from now on.
    pub fn register_file(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(kernel) = &mut self.kernel else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        // What is queued means the slot as it is.
        kernel.ring.flush()?;
        kernel.files.release_abandoned(kernel.ring.uring());
        kernel.files.register(kernel.ring.uring(), fd)
    }

    /// Takes a registered file out of the ring; false if the descriptor has none.
    #[inline]
    pub fn unregister_file(&mut self, fd: RawFd) -> bool {
        match &mut self.kernel {
            Some(kernel) if kernel.files.has(fd) => {
                // As above. What the kernel does not take now fails with EBADF.
                let _ = kernel.ring.flush();
                kernel.files.unregister(kernel.ring.uring(), fd)
            }
            _ => false,
        }
    }

    /// Forgets a registered file whose descriptor is about to be closed, by any thread: the ring lets go of it when
    /// its own thread polls. False if the descriptor has none.
    pub fn forget_file(&mut self, fd: RawFd) -> bool {
        match &mut self.kernel {
            Some(kernel) if kernel.files.has(fd) => kernel.files.abandon(fd),
            _ => false,
        }
    }

    /// Whether there is anything on a descriptor: an operation, work that nobody waits for, a registered file.
    pub fn uses(&self, fd: RawFd) -> bool {
        self.in_flight.any_on(fd)
            || self.lines.has_work(fd)
            || (self.kernel.as_ref()).is_some_and(|kernel| kernel.files.has(fd))
    }
}
