//! Attempts to move bytes without waiting.

use uringmachine_runtime::faults::{self, Attempt};

use super::by_kind::AGAIN;
use super::Transfer;
use crate::machine::hints::Kind;
use crate::os::fd::Fd;
use crate::os::{self, transfer, Errno};

impl Transfer<'_> {
    /// Tries without waiting: a count, or -errno.
    #[inline(always)]
    pub(super) fn at_once(&self, kind: Kind, done: usize) -> isize {
        // One that would not wait for a file to be written, or that whoever reads a stream may have asked for.
        let in_vain = match (kind, self.writes) {
            (Kind::File, false) => faults::is_in_vain(Attempt::Read),
            (Kind::File, true) | (_, false) => false,
            (_, true) => faults::is_in_vain(Attempt::Write),
        };
        if in_vain {
            return AGAIN;
        }
        let position = self.position_after(done);
        loop {
            let moved = self.part.at_once(done, |bytes| {
                match (kind.is_socket(), self.writes) {
                    (true, true) => {
                        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                        transfer::send(self.fd, bytes, flags)
                    }
                    (true, false) => transfer::recv(self.fd, bytes, libc::MSG_DONTWAIT),
                    // Most file systems refuse RWF_NOWAIT for buffered writes, and the ring would hand
                    // each to a kernel thread, for ten times the cost of the copy.
                    (false, true) if kind == Kind::File => {
                        transfer::pwritev2(self.fd, bytes, position, 0)
                    }
                    (false, true) => transfer::pwritev2(self.fd, bytes, position, libc::RWF_NOWAIT),
                    (false, false) => transfer::preadv2(self.fd, bytes, position, libc::RWF_NOWAIT),
                }
            });
            if moved == Err(Errno(libc::EINTR)) {
                continue;
            }
            let turns = &mut self.machine.parts().turns;
            turns.count_at_once(moved.unwrap_or(0));
            return as_result(moved);
        }
    }

    /// Reads what is there from a stream that has no RWF_NOWAIT: the count, or a negative errno. Ruby has put what it
    /// calls read_nonblock of into non-blocking mode; what is not is asked first.
    pub(super) fn read_now(&self, done: usize) -> isize {
        if !self.never_waits() && Fd(self.fd).events_now(libc::POLLIN) == 0 {
            return -(libc::EAGAIN as isize);
        }
        self.read_or_write(done)
    }

    /// read(2) or write(2): a count, or -errno.
    pub(super) fn read_or_write(&self, done: usize) -> isize {
        self.part.at_once(done, |bytes| {
            as_result(match self.writes {
                true => transfer::write(self.fd, bytes),
                false => transfer::read(self.fd, bytes),
            })
        })
    }

    pub(super) fn never_waits(&self) -> bool {
        Fd(self.fd).never_waits()
    }
}

fn as_result(moved: os::Result<usize>) -> isize {
    match moved {
        Ok(count) => count as isize,
        Err(errno) => errno.negative() as isize,
    }
}
