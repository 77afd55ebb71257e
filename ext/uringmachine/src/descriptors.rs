//! What the machine remembers of a descriptor between operations.
//!
//! Hints only: a descriptor may be closed and given to another file without the machine's hearing of
//! it (Ruby 3.4), so every path copes with a wrong hint, and a new IO object drops it.

use std::os::fd::RawFd;

use crate::file_systems;
use crate::sys::VALUE;

/// Whether a descriptor is in non-blocking mode.
pub fn never_waits(fd: RawFd) -> bool {
    // SAFETY: fcntl takes any descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK != 0 }
}

/// What kind of file a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// recv and send work on it.
    Socket,
    /// A regular file or a block device: always ready, but slow.
    File,
    /// A pipe, a terminal, an eventfd …: poll works on it.
    Stream,
}

#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    io: VALUE,
    pub kind: Kind,
    /// The last attempt without waiting found nothing, or took all there was: ask the ring at once.
    pub drained: bool,
    /// RWF_NOWAIT is refused on it.
    pub no_nowait: bool,
    /// Whether a write ends in the page cache; unknown before the first.
    cached: Option<bool>,
}

/// Hints by descriptor.
#[derive(Default)]
pub struct Descriptors {
    table: Vec<Option<Descriptor>>,
}

/// Descriptors above this are not remembered, so that the table stays small.
const REMEMBERED: usize = 65_536;

impl Descriptors {
    /// The hint for a descriptor reached through `io`, looked up with fstat(2) when there is none.
    #[inline]
    pub fn get(&mut self, fd: RawFd, io: VALUE) -> Descriptor {
        if let Some(Some(descriptor)) = self.table.get(fd as usize) {
            if descriptor.io == io {
                return *descriptor;
            }
        }
        self.learn(fd, io)
    }

    #[cold]
    fn learn(&mut self, fd: RawFd, io: VALUE) -> Descriptor {
        let descriptor = Descriptor {
            io,
            kind: kind(fd),
            drained: false,
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
        matches!(self.table.get(fd as usize), Some(Some(known)) if known.kind != Kind::Socket)
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
                .get_or_insert_with(|| file_systems::writes_to_cache(fd)),
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

/// What kind of file a descriptor is.
pub fn kind(fd: RawFd) -> Kind {
    // SAFETY: an all-zero stat is valid, and fstat fills it or fails.
    let mode = unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &mut status) != 0 {
            return Kind::Stream;
        }
        status.st_mode & libc::S_IFMT
    };
    match mode {
        libc::S_IFSOCK => Kind::Socket,
        libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR => Kind::File,
        _ => Kind::Stream,
    }
}
