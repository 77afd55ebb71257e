//! How bytes move, by what a descriptor is of.

use uringmachine_runtime::Features;

use super::{Moved, Step, Transfer};
use crate::machine::hints::{Descriptor, Kind};
use crate::machine::positions::CURRENT;
use crate::os::fd::{Fd, RawTerminal};
use crate::ruby::{duration, Raise};

/// The most that is copied to the page cache in one call on the scheduler's thread: a fraction of a millisecond. More
/// is written on another.
pub(in crate::hooks) const WRITTEN_AT_ONCE: usize = 1 << 20;

/// What a pipe that is ready takes without waiting (pipe(7), PIPE_BUF).
const PIPE_TAKES: usize = 4096;

pub(super) const AGAIN: isize = -(libc::EAGAIN as isize);
const INTERRUPTED: isize = -(libc::EINTR as isize);
const REFUSED: isize = -(libc::EOPNOTSUPP as isize);
const NO_SOCKET: isize = -(libc::ENOTSOCK as isize);

impl Transfer<'_> {
    /// A regular file: what the page cache has, or takes, is moved at once.
    pub(super) fn with_file(
        &self,
        descriptor: Descriptor,
        features: Features,
        done: usize,
    ) -> Moved {
        if self.writes {
            return self.write_file(done);
        }
        if features.nowait && !descriptor.no_nowait {
            match self.at_once(Kind::File, done) {
                AGAIN => {}
                REFUSED => self.machine.parts().descriptors.set_no_nowait(self.fd),
                result => return Ok(result),
            }
        }
        self.submit(Kind::File, done)
    }

    fn write_file(&self, done: usize) -> Moved {
        let size = self.part.length() - done;
        let (kind, is_cached) = {
            let descriptors = &mut self.machine.parts().descriptors;
            let kind = descriptors.get_fresh(self.fd, self.io).kind;
            let looks = kind == Kind::File && size <= WRITTEN_AT_ONCE;
            (kind, looks && descriptors.writes_to_cache(self.fd))
        };
        if kind != Kind::File {
            return self.once(done);
        }
        if is_cached {
            return Ok(self.at_once(Kind::File, done));
        }
        if self.position == CURRENT {
            return self.write_on_thread(done);
        }
        self.submit(Kind::File, done)
    }

    pub(super) fn with_socket(
        &self,
        descriptor: Descriptor,
        features: Features,
        done: usize,
    ) -> Result<Step, Raise> {
        let tries = features.dontwait;
        // A message whose room the ring waits for is sent empty, or twice, by kernels that retry it: so it waits for
        // room first.
        let by_ring = self.writes && descriptor.kind == Kind::Socket;
        let mut first = tries && (self.writes || !descriptor.drained && self.expects(descriptor));
        if by_ring && self.has_company() {
            first = false;
        } else if self.writes && !by_ring {
            first = true;
        }
        loop {
            if first {
                match self.at_once(descriptor.kind, done) {
                    AGAIN => self.note_missed(),
                    NO_SOCKET => return Ok(Step::Mistaken),
                    count => {
                        if descriptor.has_missed() && !self.writes {
                            self.machine.parts().descriptors.set_missed(self.fd, false);
                        }
                        self.note_drained(descriptor, count, done);
                        return Ok(Step::Done(count));
                    }
                }
                if self.writes && !by_ring {
                    self.wait(libc::POLLOUT)?;
                    continue;
                }
            }
            if self.is_ahead {
                // Others may put bytes there meanwhile, so the kernel does not have it.
                if let Some(count) = self.wait_to_read_ahead()? {
                    return Ok(Step::Done(count));
                }
                first = true;
                continue;
            }
            return Ok(match self.submit(descriptor.kind, done)? {
                NO_SOCKET => Step::Mistaken,
                count => {
                    self.note_drained(descriptor, count, done);
                    Step::Done(count)
                }
            });
        }
    }

    /// Whether a read should try without waiting first, though the last one left something or filled its buffer.
    fn expects(&self, descriptor: Descriptor) -> bool {
        !descriptor.has_missed() || self.machine.parts().descriptors.expects(self.fd)
    }

    /// Notes that an attempt was in vain.
    fn note_missed(&self) {
        if !self.writes {
            self.machine.parts().descriptors.set_missed(self.fd, true);
        }
    }

    /// Notes whether the next read should try without waiting first.
    fn note_drained(&self, descriptor: Descriptor, count: isize, done: usize) {
        if self.writes {
            return;
        }
        let drained = count < (self.part.length() - done) as isize;
        if drained != descriptor.drained {
            let descriptors = &mut self.machine.parts().descriptors;
            descriptors.set_drained(self.fd, drained);
        }
    }

    /// Whether others are about to send as well, so that one system call does for all. Measured: 15 % less CPU for a
    /// request to an HTTP server with 64 connections. With many more fibers than the caches hold, what is saved in the
    /// kernel is lost by switching to each once more; so it is where each switch may be a turn of somebody else's loop.
    fn has_company(&self) -> bool {
        const LEAST: usize = 4;
        let parts = self.machine.parts();
        parts.driver.tasks.queued() >= LEAST && !parts.fibers.has_detours
    }

    /// A pipe and the like.
    pub(super) fn with_stream(
        &self,
        descriptor: Descriptor,
        features: Features,
        done: usize,
    ) -> Result<Step, Raise> {
        let mut tries = features.nowait && !descriptor.no_nowait;
        let mut first = self.writes || !descriptor.drained || self.position != CURRENT;
        let mut was_ready = false;
        loop {
            if first && tries {
                match self.at_once(Kind::Stream, done) {
                    AGAIN => {
                        // What poll calls ready, and is not, is no stream.
                        if std::mem::replace(&mut was_ready, false)
                            && Fd(self.fd).kind() != Kind::Stream
                        {
                            return Ok(Step::Mistaken);
                        }
                    }
                    REFUSED => {
                        self.machine.parts().descriptors.set_no_nowait(self.fd);
                        tries = false;
                    }
                    count => {
                        self.note_drained(descriptor, count, done);
                        return Ok(Step::Done(count));
                    }
                }
            }
            if !self.writes && self.is_nonblocking_read() {
                if !tries {
                    return Ok(Step::Done(self.read_now(done)));
                }
                if first {
                    return Ok(Step::Done(AGAIN));
                }
                first = true;
                continue;
            }
            if !tries {
                return self.without_nowait(done).map(Step::Done);
            }
            if self.is_ahead {
                if let Some(count) = self.wait_to_read_ahead()? {
                    return Ok(Step::Done(count));
                }
            } else {
                self.wait(self.events())?;
            }
            (first, was_ready) = (true, true);
        }
    }

    /// A stream that has no RWF_NOWAIT (a FIFO that was opened by its name; a pipe before Linux 6.5). It waits by poll:
    /// the ring, once the stream is ready, writes to it as if it never waited, whatever there is room for.
    fn without_nowait(&self, done: usize) -> Moved {
        loop {
            if !self.never_waits() {
                self.wait(self.events())?;
            }
            if self.writes && self.part.length() - done > PIPE_TAKES && !self.never_waits() {
                return self.write_on_thread(done);
            }
            match self.read_or_write(done) {
                AGAIN => self.wait(self.events())?,
                INTERRUPTED => {}
                result => return Ok(result),
            }
        }
    }

    /// read(2) of a terminal, which waits as its settings say (termios(3), "Canonical and noncanonical mode").
    pub(super) fn read_terminal(&self, done: usize) -> Moved {
        if self.is_nonblocking_read() {
            return Ok(self.read_now(done));
        }
        loop {
            if self.never_waits() {
                match self.read_or_write(done) {
                    AGAIN => self.wait(libc::POLLIN)?,
                    INTERRUPTED => {}
                    result => return Ok(result),
                }
                continue;
            }
            match Fd(self.fd).raw_terminal() {
                Some(RawTerminal {
                    least: 0,
                    tenths: 0,
                }) => return Ok(self.read_or_write(done)),
                // The time is for the first byte.
                Some(RawTerminal { least: 0, tenths }) => {
                    let limit = duration::from_now(u64::from(tenths) * 100_000_000);
                    if !self.wait_until(libc::POLLIN, limit)? {
                        return Ok(0);
                    }
                }
                // The time is for each byte after the first.
                Some(RawTerminal { tenths: 1.., .. }) => {
                    self.wait(libc::POLLIN)?;
                    return self.read_on_thread(done);
                }
                _ => self.wait(libc::POLLIN)?,
            }
            match self.read_now(done) {
                AGAIN | INTERRUPTED => {}
                result => return Ok(result),
            }
        }
    }

    /// A terminal that is ready has room for some of the bytes, and waits for the rest.
    pub(super) fn write_to_terminal(&self, done: usize) -> Moved {
        self.wait(libc::POLLOUT)?;
        while self.never_waits() {
            match self.read_or_write(done) {
                AGAIN => self.wait(libc::POLLOUT)?,
                INTERRUPTED => {}
                result => return Ok(result),
            }
        }
        self.write_on_thread(done)
    }
}
