//! What the machine remembers of a descriptor between operations.
//!
//! Hints only: a descriptor may be closed and given to another file without the machine's hearing of
//! it (dup2(2) by a library), so every path copes with a wrong hint, and a new IO object drops it. What would wait
//! on another file than it is for, a write to the page cache, is done by a hint that is no older than the collector's
//! last run: until then no other object can be taken for the IO.

use std::cell::Cell;
use std::os::fd::RawFd;

use crate::os::fd::Fd;
pub use crate::os::file::Kind;
use crate::os::file_system;
use crate::ruby::Value;

#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    io: Value,
    /// The collector's run that it was looked up after.
    run: u32,
    pub kind: Kind,
    /// The last attempt without waiting found nothing, or took all there was: ask the ring at once.
    pub drained: bool,
    /// How many attempts to read in a row were in vain.
    misses: u8,
    /// RWF_NOWAIT is refused on it.
    pub no_nowait: bool,
    /// Whether a write ends in the page cache; unknown before the first.
    cached: Option<bool>,
}

impl Descriptor {
    /// Whether the last attempt to read was in vain.
    #[inline]
    pub fn has_missed(&self) -> bool {
        self.misses != 0
    }
}

/// Hints by descriptor.
#[derive(Default)]
pub struct Descriptors {
    table: Vec<Option<Descriptor>>,
    /// Counts the collector's runs.
    runs: Cell<u32>,
}

/// Descriptors above this are not remembered, so that the table stays small.
const REMEMBERED: usize = 65_536;

impl Descriptors {
    /// The hint for a descriptor reached through `io`, looked up with fstat(2) when there is none.
    #[inline]
    pub fn get(&mut self, fd: RawFd, io: Value) -> Descriptor {
        if let Some(Some(descriptor)) = self.table.get(fd as usize) {
            if descriptor.io == io {
                return *descriptor;
            }
        }
        self.learn(fd, io)
    }

    /// As [`Descriptors::get`], looked up anew if the IO may be another one since the collector ran.
    #[inline]
    pub fn get_fresh(&mut self, fd: RawFd, io: Value) -> Descriptor {
        let descriptor = self.get(fd, io);
        if descriptor.run == self.runs.get() {
            descriptor
        } else {
            self.learn(fd, io)
        }
    }

    /// The collector runs: objects may be freed, and their places given to others.
    pub fn collected(&self) {
        self.runs.set(self.runs.get().wrapping_add(1));
    }

    #[cold]
    fn learn(&mut self, fd: RawFd, io: Value) -> Descriptor {
        let descriptor = Descriptor {
            io,
            run: self.runs.get(),
            kind: Fd(fd).kind(),
            drained: false,
            misses: 0,
            no_nowait: false,
            cached: None,
        };
        let place = fd as usize;
        if fd >= 0 && place < REMEMBERED {
            if self.table.len() <= place {
                self.table.resize(place + 1, None);
            }
            self.table[place] = Some(descriptor);
        }
        descriptor
    }

    /// Whether a descriptor is known to be no socket's.
    pub fn is_no_socket(&self, fd: RawFd) -> bool {
        matches!(self.table.get(fd as usize), Some(Some(known)) if !known.kind.is_socket())
    }

    /// Whether a descriptor is known to be of a file whose writes may go further than the page cache, so that its
    /// close may wait for them (NFS, FUSE).
    pub fn is_slow_file(&self, fd: RawFd) -> bool {
        matches!(self.table.get(fd as usize), Some(Some(known)) if known.cached == Some(false))
    }

    /// Notes whether the next read should try without waiting first.
    #[inline]
    pub fn set_drained(&mut self, fd: RawFd, drained: bool) {
        if let Some(Some(descriptor)) = self.table.get_mut(fd as usize) {
            descriptor.drained = drained;
        }
    }

    /// Notes whether an attempt to read found anything.
    #[inline]
    pub fn set_missed(&mut self, fd: RawFd, missed: bool) {
        if let Some(Some(descriptor)) = self.table.get_mut(fd as usize) {
            descriptor.misses = match missed {
                true => descriptor.misses.saturating_add(1),
                false => 0,
            };
        }
    }

    /// Whether a read should be attempted without waiting: not after several that were in vain, but for one in a while,
    /// since the peer of a connection may change its ways.
    #[inline]
    pub fn expects(&mut self, fd: RawFd) -> bool {
        const IN_VAIN: u8 = 3;
        const AGAIN: u8 = 24;
        match self.table.get_mut(fd as usize) {
            Some(Some(descriptor)) if descriptor.misses >= IN_VAIN => {
                descriptor.misses += 1;
                let again = descriptor.misses >= AGAIN;
                if again {
                    descriptor.misses = IN_VAIN - 1;
                }
                again
            }
            _ => true,
        }
    }

    pub fn set_no_nowait(&mut self, fd: RawFd) {
        if let Some(Some(descriptor)) = self.table.get_mut(fd as usize) {
            descriptor.no_nowait = true;
        }
    }

    /// Whether a write to a file ends in the page cache, looked up before the first.
    #[inline]
    pub fn writes_to_cache(&mut self, fd: RawFd) -> bool {
        match self.table.get_mut(fd as usize) {
            Some(Some(descriptor)) => *descriptor
                .cached
                .get_or_insert_with(|| file_system::writes_to_cache(fd)),
            _ => false,
        }
    }

    /// Forgets a descriptor that is being closed, or that was not what it seemed.
    #[inline]
    pub fn forget(&mut self, fd: RawFd) {
        if let Some(descriptor) = self.table.get_mut(fd as usize) {
            *descriptor = None;
        }
    }
}
