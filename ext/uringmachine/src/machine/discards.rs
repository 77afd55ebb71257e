//! What nobody wants any more, for the machine's own thread to give up.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uringmachine_runtime::registered_buffers::RegionId;

use super::inflow::Flow;

/// What nobody wants any more.
pub enum Discarded {
    /// What a UM::IO has read from.
    Flow(Arc<Flow>),
    /// Registered buffers.
    Buffers(RegionId),
}

/// What is to be given up by the machine's own thread, whoever finds that nobody wants it.
#[derive(Clone, Default)]
pub struct Discards(Arc<DiscardsShared>);

#[derive(Default)]
struct DiscardsShared {
    any: AtomicBool,
    list: Mutex<Vec<Discarded>>,
}

impl Discards {
    /// Adds one. Any thread, the collector too.
    pub fn add(&self, discarded: Discarded) {
        self.list().push(discarded);
        self.0.any.store(true, Ordering::Release);
    }

    pub fn any(&self) -> bool {
        self.0.any.load(Ordering::Acquire)
    }

    pub fn take(&self) -> Vec<Discarded> {
        self.0.any.store(false, Ordering::Release);
        std::mem::take(&mut *self.list())
    }

    fn list(&self) -> MutexGuard<'_, Vec<Discarded>> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
