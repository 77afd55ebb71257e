//! Files that are registered with the ring (io_uring_register(2), IORING_REGISTER_FILES2): an operation on one need
//! not look its descriptor up, nor count itself as a user of it. Whoever registers a file holds it open until it is
//! taken out again, whatever becomes of the descriptor.

use std::io;
use std::os::fd::RawFd;

use io_uring::{opcode, squeue, IoUring};

use crate::faults;

/// The slots of a ring's table. The kernel allows no more than the process may have descriptors.
const SLOTS: usize = 1024;
const FREE: RawFd = -1;
const ABANDONED: RawFd = -2;

/// The registered files of one ring.
#[derive(Debug, Default)]
pub struct RegisteredFiles {
    /// The descriptor that a slot's file was registered by.
    slots: Vec<RawFd>,
    /// The slot of a descriptor, one more than its number; 0 is none.
    by_fd: Vec<u16>,
    count: usize,
    /// Slots whose descriptor is closed, to be emptied by the ring's own thread.
    abandoned: Vec<u16>,
}

impl RegisteredFiles {
    /// Registers the file of a descriptor; again, if the descriptor is another file's by now.
    pub fn register(&mut self, uring: &IoUring, fd: RawFd) -> io::Result<()> {
        if fd < 0 {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        if self.slots.is_empty() {
            let slots = SLOTS.min(descriptors_allowed());
            faults::fails("register")?;
            uring.submitter().register_files_sparse(slots as u32)?;
            self.slots = vec![FREE; slots];
        }
        let slot = match self.slot(fd) {
            Some(slot) => slot as usize,
            None => self
                .slots
                .iter()
                .position(|taken| *taken == FREE)
                .ok_or_else(|| io::Error::from_raw_os_error(libc::ENOBUFS))?,
        };
        uring
            .submitter()
            .register_files_update(slot as u32, &[fd])?;
        let place = fd as usize;
        if self.by_fd.len() <= place {
            self.by_fd.resize(place + 1, 0);
        }
        self.count += usize::from(self.slots[slot] == FREE);
        self.slots[slot] = fd;
        self.by_fd[place] = slot as u16 + 1;
        Ok(())
    }

    /// Takes the file that was registered by a descriptor out of the ring; false if there is none. Operations that
    /// have been submitted keep it.
    pub fn unregister(&mut self, uring: &IoUring, fd: RawFd) -> bool {
        let Some(slot) = self.slot(fd) else {
            return false;
        };
        // It fails for no slot that holds a file.
        let _ = uring.submitter().register_files_update(slot, &[FREE]);
        self.slots[slot as usize] = FREE;
        self.by_fd[fd as usize] = 0;
        self.count -= 1;
        true
    }

    /// Forgets the file that was registered by a descriptor, by any thread; the ring lets go of it at the next
    /// [`RegisteredFiles::release_abandoned`]. False if there is none.
    pub fn abandon(&mut self, fd: RawFd) -> bool {
        let Some(slot) = self.slot(fd) else {
            return false;
        };
        self.slots[slot as usize] = ABANDONED;
        self.by_fd[fd as usize] = 0;
        self.count -= 1;
        self.abandoned.push(slot as u16);
        true
    }

    /// Whether files are to be let go of.
    #[inline]
    pub fn has_abandoned(&self) -> bool {
        !self.abandoned.is_empty()
    }

    /// Has the ring let go of the files that were forgotten. Operations that have been submitted keep them.
    pub fn release_abandoned(&mut self, uring: &IoUring) {
        while let Some(slot) = self.abandoned.pop() {
            // It fails for no slot that holds a file.
            let _ = uring
                .submitter()
                .register_files_update(u32::from(slot), &[FREE]);
            self.slots[usize::from(slot)] = FREE;
        }
    }

    /// Takes all files out of the ring.
    pub fn clear(&mut self, uring: &IoUring) {
        if self.count > 0 {
            let _ = (uring.submitter()).register_files_update(0, &vec![FREE; self.slots.len()]);
            self.slots.fill(FREE);
            self.by_fd.clear();
            self.abandoned.clear();
            self.count = 0;
        }
    }

    /// Whether a descriptor's file is registered.
    #[inline]
    pub fn has(&self, fd: RawFd) -> bool {
        self.count > 0 && self.slot(fd).is_some()
    }

    #[inline]
    fn slot(&self, fd: RawFd) -> Option<u32> {
        let slot = *self.by_fd.get(usize::try_from(fd).ok()?)?;
        u32::from(slot).checked_sub(1)
    }

    /// Has an operation use the registered file of its descriptor, if there is one.
    #[inline]
    pub fn redirect(&self, entry: squeue::Entry) -> squeue::Entry {
        if self.count == 0 {
            return entry;
        }
        self.redirect_registered(entry)
    }

    fn redirect_registered(&self, mut entry: squeue::Entry) -> squeue::Entry {
        const OPCODE: usize = 0;
        const DESCRIPTOR: usize = 4;
        // SAFETY: an Entry is a struct io_uring_sqe, with the 8-bit `opcode` at byte 0 and the 32-bit `fd` at byte 4
        // (linux/io_uring.h).
        unsafe {
            let bytes = (&raw mut entry).cast::<u8>();
            let operation = *bytes.add(OPCODE);
            let descriptor = bytes.add(DESCRIPTOR).cast::<i32>();
            match self.slot(*descriptor) {
                Some(slot) if takes_registered(operation) => {
                    *descriptor = slot as i32;
                    entry.flags(squeue::Flags::FIXED_FILE)
                }
                _ => entry,
            }
        }
    }
}

/// Whether an operation's `fd` is a file that it reads, writes or polls. (Others have a directory there, or
/// nothing, or the descriptor itself is what they are about.)
fn takes_registered(operation: u8) -> bool {
    matches!(
        operation,
        opcode::Read::CODE
            | opcode::Write::CODE
            | opcode::Readv::CODE
            | opcode::Writev::CODE
            | opcode::ReadFixed::CODE
            | opcode::WriteFixed::CODE
            | opcode::ReadMulti::CODE
            | opcode::Recv::CODE
            | opcode::Send::CODE
            | opcode::SendZc::CODE
            | opcode::RecvMsg::CODE
            | opcode::SendMsg::CODE
            | opcode::Accept::CODE
            | opcode::Connect::CODE
            | opcode::PollAdd::CODE
            | opcode::Fsync::CODE
    )
}

fn descriptors_allowed() -> usize {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: a valid place for the answer.
    match unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } {
        0 => usize::try_from(limit.rlim_cur).unwrap_or(usize::MAX),
        _ => SLOTS,
    }
}
