//! The records of a trace: fixed in size, in chunks, and bounded for all machines of the trace together.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};
use std::sync::Arc;

use uringmachine_runtime::clock;

use crate::ruby::Value;

/// What a record is of. lib/uringmachine/trace.rb knows the numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A fiber ran.
    Run = 0,
    /// It waited: `result` is its operation's, if that is known.
    Wait = 1,
    /// The thread slept in the kernel.
    Sleep = 2,
    /// An operation was in the kernel that completes again and again.
    Multishot = 3,
    /// The first that is known of a fiber: its name is the file of its block, `result` the line, `other` the track of whoever
    /// started it.
    Met = 4,
    /// A fiber ended.
    Ended = 5,
    /// A fiber is to raise something, or to be given it.
    Interrupted = 6,
    /// A fiber, that of the track `other`, woke another one, which went on at the end.
    Woken = 7,
}

/// How what a record is of ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself.
    Complete = 0,
    /// Its time was up.
    Timeout = 1,
    /// Something was to be raised, or given.
    Interrupt = 2,
    /// Not at all, while the trace was taken.
    Open = 3,
}

/// What something is called: records have its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Name {
    Word(&'static str),
    /// As this class is.
    Class(Value),
    /// As this String says.
    Text(Value),
}

/// What is not known of a record.
pub const UNKNOWN: i32 = i32::MIN;

/// What happened, and when.
#[derive(Clone, Copy, Debug)]
pub struct Record {
    /// Nanoseconds since the trace began.
    pub start: u64,
    /// Nanoseconds it took.
    pub length: u64,
    pub track: u32,
    pub kind: Kind,
    pub end: End,
    /// The number of what it is called.
    pub name: u16,
    /// A descriptor, or a track.
    pub other: i32,
    pub result: i32,
}

impl Record {
    /// As lib/uringmachine/trace.rb reads it.
    pub fn bytes(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&self.start.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.length.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.track.to_le_bytes());
        (bytes[20], bytes[21]) = (self.kind as u8, self.end as u8);
        bytes[22..24].copy_from_slice(&self.name.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.other.to_le_bytes());
        bytes[28..].copy_from_slice(&self.result.to_le_bytes());
        bytes
    }
}

/// What the machines of a trace share.
#[derive(Debug)]
pub struct Budget {
    /// When the trace began.
    start: u64,
    /// Records that there is room for, and that no machine has taken yet.
    left: AtomicUsize,
    tracks: AtomicU32,
}

/// Records that a machine takes room for at a time.
const CHUNK: usize = 1024;

impl Budget {
    /// One of a trace that begins, of `limit` records at most.
    pub fn new(limit: usize) -> Self {
        Self {
            start: clock::now(),
            left: AtomicUsize::new(limit),
            tracks: AtomicU32::new(0),
        }
    }

    /// Nanoseconds since the trace began.
    pub fn now(&self) -> u64 {
        clock::now() - self.start
    }

    /// The number of a new track: the first is 1.
    pub fn track(&self) -> u32 {
        self.tracks.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// Room for some records.
    fn take(&self) -> usize {
        let rest = |left: usize| left.checked_sub(left.min(CHUNK)).filter(|_| left > 0);
        let before = (self.left).fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest);
        before.map_or(0, |left| left.min(CHUNK))
    }
}

/// The records of one machine, the oldest first. When there is no room left, new ones are dropped.
#[derive(Debug)]
pub struct Records {
    pub budget: Arc<Budget>,
    chunks: Vec<Vec<Record>>,
    /// How many are in the last chunk, and how many may be.
    room: usize,
    dropped: u64,
}

impl Records {
    /// None yet.
    pub fn new(budget: Arc<Budget>) -> Self {
        Self {
            budget,
            chunks: Vec::new(),
            room: 0,
            dropped: 0,
        }
    }

    /// Adds one, if there is room.
    pub fn push(&mut self, record: Record) {
        if self.room == 0 {
            self.room = self.budget.take();
            if self.room == 0 {
                self.dropped += 1;
                return;
            }
            self.chunks.push(Vec::with_capacity(self.room));
        }
        if let Some(chunk) = self.chunks.last_mut() {
            chunk.push(record);
            self.room -= 1;
        }
    }

    /// How many there was no room for.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// The bytes of each chunk, whose memory goes as they are taken.
    pub fn into_bytes(self) -> impl Iterator<Item = Vec<u8>> {
        (self.chunks.into_iter()).map(|chunk| chunk.iter().flat_map(Record::bytes).collect())
    }
}

impl Record {
    /// One that something else is yet to be said of.
    pub fn new(kind: Kind, track: u32, start: u64, until: u64) -> Self {
        Self {
            start,
            length: until.saturating_sub(start),
            track,
            kind,
            end: End::Complete,
            name: 0,
            other: UNKNOWN,
            result: UNKNOWN,
        }
    }

    /// With what it is called, and what it is on.
    pub fn named(self, name: u16, other: RawFd) -> Self {
        Self {
            name,
            other,
            ..self
        }
    }

    /// With its result, and how it ended.
    pub fn ended(self, result: i32, end: End) -> Self {
        Self {
            result,
            end,
            ..self
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fill(records: &mut Records, count: usize) {
        for number in 0..count {
            let start = number as u64;
            records.push(Record::new(Kind::Run, 1, start, start));
        }
    }

    #[test]
    fn machines_share_the_room_and_the_oldest_are_kept() {
        let budget = Arc::new(Budget::new(CHUNK + 10));
        let mut first = Records::new(Arc::clone(&budget));
        let mut second = Records::new(budget);
        fill(&mut first, 1);
        fill(&mut second, 20);
        fill(&mut first, CHUNK);
        assert_eq!((first.dropped(), second.dropped()), (1, 10));
        let sizes = |records: Records| records.into_bytes().map(|bytes| bytes.len()).sum::<usize>();
        assert_eq!((sizes(first), sizes(second)), (32 * CHUNK, 32 * 10));
    }

    #[test]
    fn tracks_have_numbers_of_their_own() {
        let budget = Budget::new(0);
        assert_eq!([budget.track(), budget.track()], [1, 2]);
    }
}
