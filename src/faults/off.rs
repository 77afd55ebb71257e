//! No faults but the kernel's own.

use std::io;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{cqueue, CompletionQueue};

use super::{Attempt, Enter};

/// None.
#[derive(Debug)]
pub struct Faults;

impl Faults {
    /// None.
    pub fn of_a_ring() -> Self {
        Self
    }

    /// The operation that is submitted.
    #[inline(always)]
    pub fn submitted(&mut self, entry: Entry) -> Entry {
        entry
    }

    /// What an enter does; `None` if nothing.
    #[inline(always)]
    pub fn entering(&mut self, enter: Enter) -> Option<Enter> {
        Some(enter)
    }

    /// Whether completions are kept back.
    #[inline(always)]
    pub fn holds(&self) -> bool {
        false
    }

    /// Whether completions are there to be reaped.
    #[inline(always)]
    pub fn has_completions(&self, queue: &CompletionQueue) -> bool {
        !queue.is_empty()
    }

    /// The next completion.
    #[inline(always)]
    pub fn reap(&mut self, queue: &mut CompletionQueue) -> Option<cqueue::Entry> {
        queue.next()
    }
}

/// How many entries a ring has to submit by.
#[inline(always)]
pub fn submission_entries(entries: u32) -> u32 {
    entries
}

/// How many completions it has room for.
#[inline(always)]
pub fn completion_entries(entries: u32) -> u32 {
    entries
}

/// How much of a transfer is attempted.
#[inline(always)]
pub fn attempted(_: Attempt, _: RawFd, length: usize) -> usize {
    length
}

/// Whether an attempt that is made again through the ring is in vain.
#[inline(always)]
pub fn is_in_vain(_: Attempt) -> bool {
    false
}

/// Whether a call about the ring itself fails.
///
/// # Errors
/// None.
#[inline(always)]
pub fn fails(_: &str) -> io::Result<()> {
    Ok(())
}
