//! What is asked of a descriptor: a number that a program has passed, of whatever it is, or of nothing.

use std::io::IsTerminal;
use std::os::fd::{BorrowedFd, OwnedFd, RawFd};

use nix::fcntl::{fcntl, FcntlArg, OFlag, SpliceFFlags};
use nix::sys::termios::{tcgetattr, LocalFlags, SpecialCharacterIndices};
use nix::unistd::{lseek, Whence};
use uringmachine_runtime::clock;

use super::{checked, Errno, Result};

/// The number of a descriptor. Any number may be one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fd(pub RawFd);

/// How a terminal that hands over its bytes before the line ends waits for them (termios(3), MIN and TIME).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawTerminal {
    /// So many bytes end a read: VMIN.
    pub least: u8,
    /// So many tenths of a second do, of the first byte or between two: VTIME.
    pub tenths: u8,
}

impl Fd {
    /// For one call. EBADF for a negative number.
    #[inline]
    pub(super) fn borrow(&self) -> Result<BorrowedFd<'_>> {
        match self.0 {
            // SAFETY: no number that is not negative is the niche of the type. It is for one system call, which the kernel
            // refuses for a number that is closed: nothing rests on its being open.
            0.. => Ok(unsafe { BorrowedFd::borrow_raw(self.0) }),
            _ => Err(Errno(libc::EBADF)),
        }
    }

    #[inline]
    fn control(self, what: FcntlArg) -> Result<i32> {
        Ok(fcntl(self.borrow()?, what)?)
    }

    /// How the file was opened, O_* (fcntl(2), F_GETFL).
    #[inline]
    pub fn flags(self) -> Result<i32> {
        self.control(FcntlArg::F_GETFL)
    }

    /// Whether it is in non-blocking mode (open(2), O_NONBLOCK). What is closed does not wait either.
    #[inline]
    pub fn never_waits(self) -> bool {
        self.flags()
            .map_or(true, |flags| flags & libc::O_NONBLOCK != 0)
    }

    /// Whether every write goes to the end of the file (open(2), O_APPEND).
    pub fn appends(self) -> bool {
        self.flags().is_ok_and(|flags| flags & libc::O_APPEND != 0)
    }

    /// close(2). It is closed even if a signal has interrupted that (NOTES), which is no error here; EBADF is that it was
    /// before.
    pub fn close(self) -> Result<()> {
        match nix::unistd::close(self.0).map_err(Errno::from) {
            Err(Errno(libc::EINTR)) => Ok(()),
            result => result,
        }
    }

    /// Another descriptor of the same open file, close-on-exec and no standard one (fcntl(2), F_DUPFD_CLOEXEC from 3 on).
    /// The number it was made from may be closed meanwhile, and given to another file.
    pub fn duplicate(self) -> Result<OwnedFd> {
        Ok(self.borrow()?.try_clone_to_owned()?)
    }

    #[inline]
    fn seek(self, offset: i64, whence: Whence) -> Result<i64> {
        Ok(lseek(self.borrow()?, offset, whence)?)
    }

    /// Where a file is; `None` for what has no position (lseek(2), SEEK_CUR).
    #[inline]
    pub fn position(self) -> Option<i64> {
        self.seek(0, Whence::SeekCur).ok()
    }

    /// Moves a file's position to a place (lseek(2), SEEK_SET).
    pub fn seek_to(self, place: i64) -> Result<i64> {
        self.seek(place, Whence::SeekSet)
    }

    /// Moves a file's position on, or back (lseek(2), SEEK_CUR).
    pub fn seek_by(self, distance: i64) -> Result<i64> {
        self.seek(distance, Whence::SeekCur)
    }

    /// Moves a file's position to its end (lseek(2), SEEK_END).
    pub fn seek_end(self) -> Result<i64> {
        self.seek(0, Whence::SeekEnd)
    }

    /// Which of some events are there now (poll(2)): 0 for none. POLLNVAL is of what is closed, but not of a negative
    /// number, for which there is never any.
    #[inline]
    pub fn events_now(self, events: i16) -> i16 {
        let mut polls = [entry(self.0, events)];
        match poll_now(&mut polls) {
            Ok(()) => polls[0].revents,
            Err(_) => 0,
        }
    }

    /// As [`Fd::events_now`], waiting so many milliseconds at the most; for ever, if they are negative.
    pub fn poll(self, events: i16, milliseconds: i32) -> Result<i16> {
        let mut polls = [entry(self.0, events)];
        poll(&mut polls, milliseconds)?;
        Ok(polls[0].revents)
    }

    /// Whether it is of a pipe: F_GETPIPE_SZ is refused for all others (fcntl(2)).
    pub fn is_pipe(self) -> bool {
        self.control(FcntlArg::F_GETPIPE_SZ).is_ok()
    }

    /// Has a pipe hold so many bytes (fcntl(2), F_SETPIPE_SZ): what it holds then, which may be more.
    pub fn set_pipe_size(self, bytes: i32) -> Result<i32> {
        self.control(FcntlArg::F_SETPIPE_SZ(bytes))
    }

    /// sendfile(2) from a file to this: from its position, or from an offset that is moved on.
    pub fn send_file(self, from: Self, offset: Option<&mut i64>, most: usize) -> Result<usize> {
        let (to, from) = (self.borrow()?, from.borrow()?);
        Ok(nix::sys::sendfile::sendfile64(to, from, offset, most)?)
    }

    /// splice(2) to another descriptor, where each is; without waiting for a pipe.
    pub fn splice_now(self, to: Self, most: usize) -> Result<usize> {
        let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
        let (from, to) = (self.borrow()?, to.borrow()?);
        Ok(nix::fcntl::splice(from, None, to, None, most, flags)?)
    }

    /// posix_fadvise(2), by a number of the program's.
    pub fn advise(self, offset: i64, length: i64, advice: i32) -> Result<()> {
        // SAFETY: numbers only.
        match unsafe { libc::posix_fadvise64(self.0, offset, length, advice) } {
            0 => Ok(()),
            errno => Err(Errno(errno)),
        }
    }

    /// ftruncate(2).
    pub fn truncate(self, length: i64) -> Result<()> {
        Ok(nix::unistd::ftruncate(self.borrow()?, length)?)
    }

    /// flock(2), by a number of the program's.
    pub fn lock(self, operation: i32) -> Result<()> {
        // SAFETY: numbers only.
        checked(unsafe { libc::flock(self.0, operation) }).map(drop)
    }

    /// How many bytes are there to be read (ioctl(2), FIONREAD).
    pub fn unread(self) -> Result<i32> {
        let mut bytes: libc::c_int = 0;
        // SAFETY: the request writes an int.
        checked(unsafe { libc::ioctl(self.0, libc::FIONREAD, &raw mut bytes) })?;
        Ok(bytes)
    }

    /// Whether it is a terminal's (isatty(3)).
    pub fn is_terminal(self) -> bool {
        self.borrow().is_ok_and(|fd| fd.is_terminal())
    }

    /// How a read waits, if it is of a terminal that does not keep its bytes until a line ends (tcgetattr(3), ICANON).
    pub fn raw_terminal(self) -> Option<RawTerminal> {
        let settings = tcgetattr(self.borrow().ok()?).ok()?;
        let character = |index: SpecialCharacterIndices| settings.control_chars[index as usize];
        (!settings.local_flags.contains(LocalFlags::ICANON)).then(|| RawTerminal {
            least: character(SpecialCharacterIndices::VMIN),
            tenths: character(SpecialCharacterIndices::VTIME),
        })
    }
}

/// An entry for [`poll`] (struct pollfd).
#[inline]
pub fn entry(fd: RawFd, events: i16) -> libc::pollfd {
    libc::pollfd {
        fd,
        events,
        revents: 0,
    }
}

/// poll(2), waiting so many milliseconds at the most; for ever, if they are negative. How many entries have events.
#[inline]
pub fn poll(polls: &mut [libc::pollfd], milliseconds: i32) -> Result<i32> {
    // SAFETY: the pointer and the count are the slice's.
    checked(unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as _, milliseconds) })
}

/// poll(2) without waiting. It answers EINTR although it does not wait, if a signal is pending.
#[inline]
pub fn poll_now(polls: &mut [libc::pollfd]) -> Result<()> {
    loop {
        match poll(polls, 0) {
            Err(Errno(libc::EINTR)) => {}
            result => return result.map(drop),
        }
    }
}

/// ppoll(2), until a time of the runtime's clock. EINTR, if a signal comes.
pub fn poll_until(polls: &mut [libc::pollfd], deadline: Option<u64>) -> Result<i32> {
    let left = deadline.map(|deadline| {
        let left = deadline.saturating_sub(clock::now());
        libc::timespec {
            tv_sec: (left / 1_000_000_000) as i64,
            tv_nsec: (left % 1_000_000_000) as i64,
        }
    });
    let left = (left.as_ref()).map_or(std::ptr::null(), std::ptr::from_ref);
    let (start, count) = (polls.as_mut_ptr(), polls.len() as _);
    // SAFETY: the pointer and the count are the slice's; the time is on this frame, or there is none.
    checked(unsafe { libc::ppoll(start, count, left, std::ptr::null()) })
}

/// pipe2(2), close-on-exec: the end to read from, and the one to write to.
pub fn pipe() -> Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC)?)
}

/// As [`pipe`], with both ends in non-blocking mode.
pub fn pipe_without_waiting() -> Result<(OwnedFd, OwnedFd)> {
    Ok(nix::unistd::pipe2(OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)?)
}
