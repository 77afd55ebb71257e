//! What the machine remembers of a descriptor between operations.
//!
//! Hints only: a descriptor may be closed and given to another file without the machine's hearing of
//! it (dup2(2) by a library), so every path copes with a wrong hint, and a new IO object drops it. What would wait
//! on another file than it is for, a write to the page cache, is done by a hint that is no older than the collector's
//! last run: until then no other object can be taken for the IO.

use std::cell::Cell;
use std::os::fd::RawFd;

use crate::os::file_system;
use crate::ruby::VALUE;

/// Whether a descriptor is in non-blocking mode.
pub fn never_waits(fd: RawFd) -> bool {
    // SAFETY: fcntl takes any descriptor.
    unsafe { libc::fcntl(fd, libc::F_GETFL) & libc::O_NONBLOCK != 0 }
}

/// What kind of file a descriptor is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A socket of a stream of bytes.
    Socket,
    /// A socket of messages, each of which is sent whole, once (SOCK_DGRAM, SOCK_SEQPACKET …).
    Messages,
    /// A regular file or a block device: always ready, but slow.
    File,
    /// A pipe, an eventfd …: poll works on it.
    Stream,
    /// A terminal: poll works on it, but what is ready may wait all the same (termios(3)).
    Terminal,
}

impl Kind {
    /// Whether recv(2) and send(2) work on it.
    #[inline]
    pub fn is_socket(self) -> bool {
        matches!(self, Self::Socket | Self::Messages)
    }
}

#[derive(Clone, Copy, Debug)]
pub struct Descriptor {
    io: VALUE,
    /// The collector's run that it was looked up after.
    run: u32,
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
    /// Counts the collector's runs.
    runs: Cell<u32>,
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

    /// As [`Descriptors::get`], looked up anew if the IO may be another one since the collector ran.
    #[inline]
    pub fn get_fresh(&mut self, fd: RawFd, io: VALUE) -> Descriptor {
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
    fn learn(&mut self, fd: RawFd, io: VALUE) -> Descriptor {
        let descriptor = Descriptor {
            io,
            run: self.runs.get(),
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

/// What kind of file a descriptor is.
pub fn kind(fd: RawFd) -> Kind {
    // SAFETY: an all-zero stat is valid, and fstat fills it or fails; isatty takes any descriptor.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        if libc::fstat(fd, &mut status) != 0 {
            return Kind::Stream;
        }
        match status.st_mode & libc::S_IFMT {
            libc::S_IFSOCK if is_stream_socket(fd) => Kind::Socket,
            libc::S_IFSOCK => Kind::Messages,
            libc::S_IFREG | libc::S_IFBLK | libc::S_IFDIR => Kind::File,
            libc::S_IFCHR if libc::isatty(fd) == 1 => Kind::Terminal,
            _ => Kind::Stream,
        }
    }
}

fn is_stream_socket(fd: RawFd) -> bool {
    let mut kind = libc::SOCK_STREAM;
    let mut length = std::mem::size_of::<i32>() as libc::socklen_t;
    // SAFETY: an int and its length, as SO_TYPE fills them (socket(7)).
    unsafe {
        let value = (&raw mut kind).cast();
        libc::getsockopt(fd, libc::SOL_SOCKET, libc::SO_TYPE, value, &mut length);
    }
    kind == libc::SOCK_STREAM
}
