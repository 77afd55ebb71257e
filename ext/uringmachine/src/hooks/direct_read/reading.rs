//! One attempt to read, or wait for the first bytes to come.

use std::os::fd::RawFd;

use uringmachine_runtime::faults::{self, Attempt};
use uringmachine_runtime::TaskId;

use super::sink::Sink;
use crate::hooks::io_transfer::timed_out;
use crate::lending::scratch::WAITING_SIZE;
use crate::machine::closing::{Ending, Lost};
use crate::machine::hints::{Descriptor, Kind};
use crate::machine::operate::Failure;
use crate::machine::poll::wait_ready;
use crate::machine::positions::CURRENT;
use crate::machine::Machine;
use crate::os::{transfer, Errno};
use crate::ruby::{buffered, duration, io, Raise, Value};

/// What became of a read.
pub enum Read {
    Done,
    /// It is Ruby's to do.
    Plain,
    /// It is Ruby's to raise.
    Failed(Errno),
}

/// One read of an IO.
pub struct Reading<'a, S> {
    pub machine: &'a Machine,
    pub me: TaskId,
    pub io: Value,
    pub sink: &'a mut S,
}

impl<S: Sink> Reading<'_, S> {
    pub fn run(&mut self) -> Result<Read, Raise> {
        let mut has_waited = false;
        loop {
            // Others may have run.
            let Some(fd) = buffered::reads_bytes(self.io) else {
                return Ok(Read::Plain);
            };
            let has_held_long = self.machine.parts().turns.has_held_long();
            if has_held_long {
                self.machine.let_go(self.me)?;
                continue;
            }
            let Some(descriptor) = self.descriptor(fd) else {
                return Ok(Read::Plain);
            };
            let (is_file, most) = (descriptor.kind == Kind::File, self.sink.most());
            if has_waited || is_file || self.expects(fd, descriptor) {
                match self.attempt(fd, descriptor)? {
                    // What is ready, and gives nothing, is looked at by `io_read`.
                    Err(Errno(libc::EAGAIN)) if !has_waited && !is_file => {
                        self.machine.parts().descriptors.set_missed(fd, true);
                    }
                    Err(Errno(libc::EINTR)) => continue,
                    result => {
                        if result.is_ok() && descriptor.has_missed() {
                            self.machine.parts().descriptors.set_missed(fd, false);
                        }
                        return Ok(self.ended(fd, descriptor, result, most));
                    }
                }
            }
            if descriptor.kind != Kind::Socket {
                self.wait(fd)?;
                has_waited = true;
            } else if let Some(result) = self.receive(fd)? {
                let most = most.min(WAITING_SIZE);
                return Ok(self.ended(fd, descriptor, result, most));
            }
        }
    }

    /// What is known of the descriptor, if it can be read without Ruby.
    #[inline]
    pub fn descriptor(&self, fd: RawFd) -> Option<Descriptor> {
        let mut parts = self.machine.parts();
        let features = parts.driver.features();
        let descriptor = parts.descriptors.get(fd, self.io);
        let tries = match descriptor.kind {
            Kind::Socket => features.dontwait,
            Kind::Stream | Kind::File => features.nowait && !descriptor.no_nowait,
            _ => false,
        };
        (tries && parts.lost.is_empty()).then_some(descriptor)
    }

    /// Whether to try before waiting.
    #[inline]
    fn expects(&self, fd: RawFd, descriptor: Descriptor) -> bool {
        !descriptor.drained
            && !faults::is_in_vain(Attempt::Read)
            && (!descriptor.has_missed() || self.machine.parts().descriptors.expects(fd))
    }

    /// Reads what there is, without waiting.
    #[inline]
    fn attempt(
        &mut self,
        fd: RawFd,
        descriptor: Descriptor,
    ) -> Result<Result<usize, Errno>, Raise> {
        let is_socket = descriptor.kind.is_socket();
        let received = self.sink.take(self.machine, |room| match is_socket {
            true => transfer::recv(fd, room, libc::MSG_DONTWAIT),
            false => transfer::preadv2(fd, room, CURRENT, libc::RWF_NOWAIT),
        })?;
        let turns = &mut self.machine.parts().turns;
        turns.count_at_once(received.unwrap_or(0));
        Ok(received)
    }

    /// Notes how a read has ended.
    #[inline]
    fn ended(
        &self,
        fd: RawFd,
        descriptor: Descriptor,
        result: Result<usize, Errno>,
        most: usize,
    ) -> Read {
        let descriptors = &mut self.machine.parts().descriptors;
        match result {
            Ok(count) => {
                // At the end Ruby asks once more, and is not to wait for it.
                let drained = count > 0 && count < most;
                if drained != descriptor.drained {
                    descriptors.set_drained(fd, drained);
                }
                if count > 0 {
                    Read::Done
                } else {
                    Read::Plain
                }
            }
            Err(Errno(libc::EAGAIN | libc::ENOTSOCK | libc::EOPNOTSUPP)) => Read::Plain,
            Err(errno) => Read::Failed(errno),
        }
    }

    /// Waits for the bytes of a socket; `None` if they are to be waited for again.
    fn receive(&mut self, fd: RawFd) -> Result<Option<Result<usize, Errno>>, Raise> {
        let deadline = self.deadline()?;
        let most = self.sink.most();
        let was_part = self.machine.parts().begin_steps(self.me);
        let (result, received) = self.machine.receive(self.me, fd, most, deadline);
        // Then it is not read from any more.
        let is_lost =
            (self.machine.parts()).end_steps_on(self.me, was_part, self.io, fd, result.is_ok());
        let put = match (&result, received.bytes()) {
            (_, []) => Ok(()),
            (Ok(_), bytes) => self.sink.put(bytes),
            (Err(_), _) => Err(Raise::errno(libc::EINTR)),
        };
        if put.is_err() {
            // They are the next that are read, unless the IO is closed.
            let _ = buffered::put(self.io, received.bytes());
        }
        received.end(self.machine);
        match result {
            Ok(count @ 0..) => {
                put?;
                let count = count as usize;
                let is_full = S::TAKES_MORE && count == WAITING_SIZE && self.sink.most() > 0;
                match is_full && !is_lost {
                    true => Ok(Some(Ok(count + self.receive_more(fd)?))),
                    false => Ok(Some(Ok(count))),
                }
            }
            Ok(errno) if [-libc::EINTR, -libc::EAGAIN].contains(&errno) => Ok(None),
            Ok(errno) => Ok(Some(Err(Errno(-errno)))),
            Err(Failure::Scheduled(_)) => Ok(None),
            Err(failure) => Err(timed_out(failure)),
        }
    }

    /// Receives what there is more than the machine's block had room for; says how many bytes.
    fn receive_more(&mut self, fd: RawFd) -> Result<usize, Raise> {
        if buffered::reads_bytes(self.io) != Some(fd) {
            return Ok(0);
        }
        let flags = libc::MSG_DONTWAIT;
        let more = (self.sink).take(self.machine, |room| transfer::recv(fd, room, flags))?;
        if let Err(errno) = more {
            note_failed(self.machine, self.me, self.io, errno);
        }
        // The end shows at the next read.
        Ok(more.unwrap_or(0))
    }

    /// Waits until there is something to be read.
    fn wait(&self, fd: RawFd) -> Result<(), Raise> {
        let (machine, me) = (self.machine, self.me);
        let deadline = self.deadline()?;
        let was_part = machine.parts().begin_steps(me);
        let ready = wait_ready(machine, me, fd, i64::from(libc::POLLIN), deadline);
        let closed = {
            let mut parts = machine.parts();
            let closed = parts.closed(me);
            parts.end_steps(me, was_part);
            closed
        };
        match (ready?, closed) {
            (_, Some(raise)) => Err(raise),
            (0, None) => Err(timed_out(Failure::Timeout)),
            _ => Ok(()),
        }
    }

    /// `io.timeout` counted from now.
    fn deadline(&self) -> Result<Option<u64>, Raise> {
        duration::deadline(io::timeout(self.io)?)
    }
}

/// Has the coming `io_read` answer what has failed already: the kernel tells of it once.
#[cold]
pub fn note_failed(machine: &Machine, task: TaskId, io: Value, errno: Errno) {
    if errno == Errno(libc::EAGAIN) {
        return;
    }
    if let Ok(fd) = io::descriptor(io) {
        let ending = Ending::Answers(errno.0);
        machine.parts().note_lost(Lost {
            task,
            io,
            fd,
            ending,
        });
    }
}
