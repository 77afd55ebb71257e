//! The ring of buffers that multishot reads and receives take from (io_uring_register_buf_ring(3)).
//!
//! Made when the first multishot starts. Where the kernel offers it (Linux 6.12) a buffer is consumed
//! piece by piece (IOU_PBUF_RING_INC); else each completion takes a whole one.

use std::io;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::BufRingEntry;
use io_uring::{cqueue, IoUring};

use crate::faults;
use crate::mapping::Mapping;

/// The group that multishots name.
pub const GROUP: u16 = 0;

/// IOU_PBUF_RING_INC.
const INCREMENTAL: u16 = 2;

/// How many buffers of which size.
struct Plan {
    count: u16,
    size: u32,
}

/// Large buffers, each for many completions.
const INCREMENTAL_PLAN: Plan = Plan {
    count: 32,
    size: 64 << 10,
};
/// Small ones, each for one.
const WHOLE_PLAN: Plan = Plan {
    count: 256,
    size: 8 << 10,
};

/// Buffers provided to the kernel. Their memory is given back after the ring of operations is
/// closed.
pub struct ProvidedBuffers {
    memory: Mapping,
    count: u16,
    size: u32,
    incremental: bool,
    /// How much of each buffer the kernel has filled.
    filled: Vec<u32>,
    tail: u16,
}

impl ProvidedBuffers {
    /// Registers buffers with a ring; consumed piece by piece if `incremental` and the kernel can.
    pub fn new(uring: &IoUring, incremental: bool) -> io::Result<Self> {
        if incremental {
            match Self::register(uring, &INCREMENTAL_PLAN, true) {
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                result => return result,
            }
        }
        Self::register(uring, &WHOLE_PLAN, false)
    }

    fn register(uring: &IoUring, plan: &Plan, incremental: bool) -> io::Result<Self> {
        faults::fails("register")?;
        let entries = usize::from(plan.count) * std::mem::size_of::<BufRingEntry>();
        let offset = entries.next_multiple_of(4096);
        let memory = Mapping::new(offset + usize::from(plan.count) * plan.size as usize)?;
        let flags = if incremental { INCREMENTAL } else { 0 };
        // SAFETY: the entries lie at the start of page-aligned memory that outlives the ring.
        unsafe {
            uring.submitter().register_buf_ring_with_flags(
                memory.base() as u64,
                plan.count,
                GROUP,
                flags,
            )?;
        }
        let mut ring = Self {
            memory,
            count: plan.count,
            size: plan.size,
            incremental,
            filled: vec![0; usize::from(plan.count)],
            tail: 0,
        };
        for buffer in 0..plan.count {
            ring.add(buffer);
        }
        ring.publish();
        Ok(ring)
    }

    /// The bytes of a completion that took from this ring. They are valid until
    /// [`ProvidedBuffers::give_back`] with the same completion.
    #[inline]
    pub fn bytes(&self, result: i32, flags: u32) -> &[u8] {
        let (Some(buffer), Ok(length)) = (cqueue::buffer_select(flags), usize::try_from(result))
        else {
            return &[];
        };
        let filled = self.filled[usize::from(buffer)] as usize;
        // What the kernel answers may be more than it has put there (MSG_TRUNC).
        let length = length.min(self.size as usize - filled);
        // SAFETY: the kernel has filled these bytes of the buffer, and takes no more to them.
        unsafe { std::slice::from_raw_parts(self.buffer(buffer).add(filled), length) }
    }

    /// Gives the buffer of a completion back to the kernel, unless the kernel still fills it.
    #[inline]
    pub fn give_back(&mut self, result: i32, flags: u32) {
        let Some(buffer) = cqueue::buffer_select(flags) else {
            return;
        };
        if self.incremental && cqueue::buffer_more(flags) {
            let filled = &mut self.filled[usize::from(buffer)];
            *filled = filled.saturating_add(result.max(0) as u32).min(self.size);
            return;
        }
        self.filled[usize::from(buffer)] = 0;
        self.add(buffer);
        self.publish();
    }

    /// How many buffers there are.
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// How many bytes the buffers have together.
    pub fn space(&self) -> usize {
        self.count() * self.size as usize
    }

    fn buffer(&self, buffer: u16) -> *mut u8 {
        let entries = usize::from(self.count) * std::mem::size_of::<BufRingEntry>();
        let offset = entries.next_multiple_of(4096) + usize::from(buffer) * self.size as usize;
        // SAFETY: the buffer lies within the memory.
        unsafe { self.memory.base().add(offset) }
    }

    fn add(&mut self, buffer: u16) {
        let place = usize::from(self.tail & (self.count - 1));
        let address = self.buffer(buffer) as u64;
        // SAFETY: the place lies within the entries, and the kernel reads none beyond the tail.
        unsafe {
            let entry = self.memory.base().cast::<BufRingEntry>().add(place);
            (*entry).set_addr(address);
            (*entry).set_len(self.size);
            (*entry).set_bid(buffer);
        }
        self.tail = self.tail.wrapping_add(1);
    }

    /// Shows the kernel what was added.
    fn publish(&self) {
        // SAFETY: the tail lies in the first entry, aligned; the kernel reads it with acquire.
        unsafe {
            let tail = BufRingEntry::tail(self.memory.base().cast()).cast_mut();
            AtomicU16::from_ptr(tail).store(self.tail, Ordering::Release);
        }
    }
}
