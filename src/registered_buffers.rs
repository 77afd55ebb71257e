//! Memory that is registered with the ring (io_uring_register(2), IORING_REGISTER_BUFFERS2): pinned once, so
//! that an operation on it need not be.

use std::io;
use std::sync::Arc;

use io_uring::IoUring;

use crate::faults;
use crate::mapping::Mapping;

/// The slots of a ring's table; each holds one buffer.
const SLOTS: u32 = 4096;
/// IORING_REGISTER_BUFFERS_UPDATE.
const UPDATE: libc::c_uint = 16;

/// Buffers of one size, one after the other in memory of their own, in slots one after the other.
#[derive(Debug)]
struct Region {
    memory: Arc<Mapping>,
    first: u32,
    count: u32,
    size: usize,
}

/// Names a region.
pub type RegionId = u32;

/// The registered memory of one ring.
#[derive(Debug, Default)]
pub struct RegisteredBuffers {
    regions: Vec<Region>,
    table: bool,
}

impl RegisteredBuffers {
    /// Registers `count` buffers of `size` bytes, a multiple of the page size; returns the region and its
    /// memory, which stays for as long as anybody has it, registered or not.
    pub fn register(
        &mut self,
        uring: &IoUring,
        count: u32,
        size: usize,
    ) -> io::Result<(RegionId, Arc<Mapping>)> {
        if !self.table {
            faults::fails("register")?;
            uring.submitter().register_buffers_sparse(SLOTS)?;
            self.table = true;
        }
        let first = self
            .free_slots(count)
            .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOBUFS))?;
        let memory = Arc::new(Mapping::new(count as usize * size)?);
        let slots: Vec<libc::iovec> = (0..count as usize)
            .map(|place| libc::iovec {
                // SAFETY: the buffer lies within the memory.
                iov_base: unsafe { memory.base().add(place * size).cast() },
                iov_len: size,
            })
            .collect();
        update(uring, first, &slots)?;
        self.regions.push(Region {
            memory: Arc::clone(&memory),
            first,
            count,
            size,
        });
        Ok((first, memory))
    }

    /// Takes a region out of the ring. Operations on it that are under way keep its pages.
    pub fn unregister(&mut self, uring: &IoUring, region: RegionId) {
        let Some(place) = self.regions.iter().position(|known| known.first == region) else {
            return;
        };
        let region = self.regions.swap_remove(place);
        let nothing = libc::iovec {
            iov_base: std::ptr::null_mut(),
            iov_len: 0,
        };
        let slots = vec![nothing; region.count as usize];
        if update(uring, region.first, &slots).is_err() {
            // The ring still has it, so it stays.
            std::mem::forget(region);
        }
    }

    /// The slot of the buffer that all of these bytes lie in.
    #[inline]
    pub fn slot(&self, pointer: *const u8, length: usize) -> Option<u16> {
        self.regions.iter().find_map(|region| {
            let offset = (pointer as usize).checked_sub(region.memory.base() as usize)?;
            let place = offset / region.size;
            let fits =
                place < region.count as usize && offset % region.size + length <= region.size;
            fits.then(|| (region.first as usize + place) as u16)
        })
    }

    /// Whether there is none.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.regions.is_empty()
    }

    /// The first of so many free slots in a row.
    fn free_slots(&self, count: u32) -> Option<u32> {
        let mut taken: Vec<(u32, u32)> = self
            .regions
            .iter()
            .map(|region| (region.first, region.count))
            .collect();
        taken.sort_unstable();
        let mut start = 0;
        for (first, length) in taken {
            if first - start >= count {
                break;
            }
            start = first + length;
        }
        (start.checked_add(count)? <= SLOTS).then_some(start)
    }
}

/// Puts buffers into slots.
fn update(uring: &IoUring, first: u32, slots: &[libc::iovec]) -> io::Result<()> {
    #[repr(C)]
    struct Update {
        offset: u32,
        reserved: u32,
        data: u64,
        tags: u64,
        count: u32,
        reserved2: u32,
    }
    let update = Update {
        offset: first,
        reserved: 0,
        data: slots.as_ptr() as u64,
        tags: 0,
        count: slots.len() as u32,
        reserved2: 0,
    };
    // SAFETY: `update` is the struct io_uring_rsrc_update2 that the call reads, and its slots are valid.
    let result = unsafe {
        libc::syscall(
            libc::SYS_io_uring_register,
            std::os::fd::AsRawFd::as_raw_fd(uring),
            UPDATE,
            &raw const update,
            std::mem::size_of::<Update>(),
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
