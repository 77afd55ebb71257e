//! Old names, until ext/ is moved.

use std::io;

use crate::driver::Driver;
use crate::multishot::{Arrivals, Multishot};
use crate::operation::{OpKey, Operation, WithoutMemory};
use crate::Entry;

/// [`Driver`].
pub type Machine<T> = Driver<T>;

/// [`driver`](crate::driver).
pub mod machine {
    pub use crate::driver::*;
}

/// [`operation`](crate::operation).
pub mod ops {
    pub use crate::operation::{descriptor_of, opens, Completion, Effect, OpKey};
}

/// [`multishot`](crate::multishot) and [`byte_queue`](crate::byte_queue).
pub mod stream {
    pub use crate::byte_queue::Bytes;
    pub use crate::multishot::{Arrivals, Multishot as Stream};
}

/// [`registered_buffers`](crate::registered_buffers) and [`mapping`](crate::mapping).
pub mod fixed_buffers {
    pub use crate::mapping::Mapping;
    pub use crate::registered_buffers::RegionId;
}

/// A multishot operation that was built elsewhere.
struct Built(Entry);

// SAFETY: a multishot operation points to no memory of its own.
unsafe impl Operation for Built {
    fn entry(&mut self) -> Entry {
        self.0.clone()
    }
}

// SAFETY: as above.
unsafe impl WithoutMemory for Built {}

impl<T> Driver<T> {
    /// [`Driver::start_multishot`].
    pub fn start_stream(&mut self, entry: Entry, arrivals: Arrivals) -> io::Result<OpKey> {
        self.start_multishot(Built(entry), arrivals)
    }

    /// [`Driver::multishot`].
    #[inline]
    pub fn stream(&mut self, op: OpKey) -> Option<&mut Multishot> {
        self.multishot(op)
    }

    /// [`Driver::discard_multishot`].
    pub fn discard_stream(&mut self, op: OpKey) -> io::Result<()> {
        self.discard_multishot(op)
    }

    /// [`Driver::registered_index`].
    #[inline]
    pub fn fixed_index(&self, pointer: *const u8, length: usize) -> Option<u16> {
        self.registered_index(pointer, length)
    }
}
