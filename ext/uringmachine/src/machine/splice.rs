//! Moving bytes from one descriptor to another within the kernel: sendfile(2) and splice(2), without the
//! thread's waiting for anything but the page cache.
//!
//! Descriptors that never wait (O_NONBLOCK) are asked at once and polled through the ring when they have
//! nothing; what could wait (a pipe or a socket in blocking mode, a file as the target) is a splice of the
//! ring's. Two ends of which neither is a pipe have one of the machine's between them; bytes that are
//! still in it when the move ends are the caller's to put back.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use uringmachine_runtime::memory::Part;
use uringmachine_runtime::operations::{Read, Splice, Write, CURRENT};
use uringmachine_runtime::{Operation, TaskId};

use super::operate::{Failure, Yields};
use super::poll::wait_ready;
use super::Machine;
use crate::os::fd::{self, Fd};
use crate::os::file::Kind;
use crate::os::{transfer, Errno};
use crate::ruby::{duration, Raise, NIL};

/// The most that is moved before other fibers may run.
const CHUNK: usize = 1 << 20;
/// The most that one call takes.
const MOST: u64 = 0x7fff_f000;

/// Pipes between ends of which neither is one, kept for reuse while they are empty.
#[derive(Default)]
pub struct Pipes {
    free: Vec<Pipe>,
}

/// A pipe, closed when it is dropped.
struct Pipe {
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Pipes {
    fn take(&mut self) -> Result<Pipe, Errno> {
        if let Some(pipe) = self.free.pop() {
            return Ok(pipe);
        }
        let (reader, writer) = fd::pipe_without_waiting()?;
        // A pipe that may not be made larger does too.
        let _ = Fd(writer.as_raw_fd()).set_pipe_size(CHUNK as i32);
        Ok(Pipe { reader, writer })
    }

    fn give(&mut self, pipe: Pipe) {
        const KEPT: usize = 4;
        if self.free.len() < KEPT {
            self.free.push(pipe);
        }
    }
}

/// One end of a move.
#[derive(Clone, Copy)]
pub struct End {
    pub fd: RawFd,
    /// How long a wait for it may last, in nanoseconds: `io.timeout`.
    pub timeout: Option<u64>,
}

impl End {
    fn never_waits(self) -> bool {
        Fd(self.fd).never_waits()
    }

    fn is_file(self) -> bool {
        Fd(self.fd).kind() == Kind::File
    }

    fn is_pipe(self) -> bool {
        Fd(self.fd).is_pipe()
    }
}

/// What a move came to.
pub struct Moved {
    /// The bytes that have arrived.
    pub count: u64,
    /// Bytes that were taken from the source and have not arrived.
    pub left: Vec<u8>,
    /// How it ended; an errno is negative.
    pub ended: Result<(), Ended>,
}

/// Why a move ended early.
pub enum Ended {
    Errno(i32),
    /// A wait lasted too long.
    Timeout,
    Failure(Failure),
}

impl From<Failure> for Ended {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Timeout => Self::Timeout,
            failure => Self::Failure(failure),
        }
    }
}

impl From<Raise> for Ended {
    fn from(raise: Raise) -> Self {
        Self::Failure(raise.into())
    }
}

impl From<Errno> for Ended {
    fn from(errno: Errno) -> Self {
        Self::Errno(errno.0)
    }
}

/// The fiber that moves, and both ends.
struct Mover<'a> {
    machine: &'a Machine,
    me: TaskId,
    source: End,
    target: End,
}

/// Moves bytes until `length` have arrived, or the source ends. A regular file is read from `offset`, if
/// that is given, and its position left alone.
pub fn run(
    machine: &Machine,
    me: TaskId,
    source: End,
    target: End,
    length: Option<u64>,
    offset: Option<i64>,
) -> Moved {
    let mover = Mover {
        machine,
        me,
        source,
        target,
    };
    let mut moved = Moved {
        count: 0,
        left: Vec::new(),
        ended: Ok(()),
    };
    let length = length.unwrap_or(u64::MAX);
    machine.parts().begin_steps(me);
    let is_socket = Fd(target.fd).kind() == Kind::Socket;
    if source.is_file() && is_socket && target.never_waits() {
        moved.ended = mover.send_file(length, offset, &mut moved.count);
    } else if source.is_pipe() || target.is_pipe() {
        moved.ended = mover.splice(length, offset, &mut moved.count);
    } else {
        mover.through_pipe(length, offset, &mut moved);
    }
    machine.parts().end_steps(me, false);
    moved
}

impl Mover<'_> {
    /// Before each step that is made at once: the descriptors are still those of the two ends.
    fn check(&self) -> Result<(), Ended> {
        let mut parts = self.machine.parts();
        match std::mem::replace(&mut parts.waiter(self.me).closed_by, NIL) {
            NIL => Ok(()),
            exception => Err(Raise::Exception(exception).into()),
        }
    }

    fn wait(&self, end: End, events: i16) -> Result<(), Ended> {
        let deadline = end.timeout.map(duration::from_now);
        match wait_ready(self.machine, self.me, end.fd, i64::from(events), deadline)? {
            0 => Err(Ended::Timeout),
            _ => Ok(()),
        }
    }

    /// Lets others run after a chunk.
    fn pause(&self) -> Result<(), Ended> {
        Ok(self.machine.yield_now(self.me)?)
    }

    /// From a regular file to a socket that never waits.
    fn send_file(&self, length: u64, offset: Option<i64>, count: &mut u64) -> Result<(), Ended> {
        let (from, to) = (Fd(self.source.fd), Fd(self.target.fd));
        let mut position = offset;
        // Where the part of the file ends that has been seen in the page cache.
        let (mut at, mut cached) = (0, 0);
        while *count < length {
            let most = (length - *count).min(CHUNK as u64) as usize;
            if at >= cached {
                at = position.or_else(|| from.position()).unwrap_or(-1);
                cached = at + most as i64;
                self.read_ahead(at, most)?;
            }
            self.check()?;
            match to.send_file(from, position.as_mut(), most) {
                Ok(0) => return Ok(()),
                Ok(sent) => {
                    *count += sent as u64;
                    at += sent as i64;
                    self.pause()?;
                }
                Err(Errno(libc::EAGAIN)) => self.wait(self.target, libc::POLLOUT)?,
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Has the ring bring a file's bytes to the page cache, if they are not there.
    fn read_ahead(&self, start: i64, length: usize) -> Result<(), Ended> {
        let fd = self.source.fd;
        let mut byte = [0_u8; 1];
        for at in [start, start + length as i64 / 2, start + length as i64 - 1] {
            let tried = transfer::preadv2(fd, &mut &mut byte[..], at, libc::RWF_NOWAIT);
            if tried != Err(Errno(libc::EAGAIN)) {
                continue;
            }
            let _ = Fd(fd).advise(at, length as i64, libc::POSIX_FADV_WILLNEED);
            let mut read = Read {
                fd,
                memory: &mut byte[..],
                offset: at as u64,
            };
            self.machine.operate(self.me, &mut read, None)?;
        }
        Ok(())
    }

    /// One splice, of at most `most` bytes, waiting if it must. `moved` is how many it were, also when the fiber is
    /// to raise; 0 is the end.
    fn splice_once(
        &self,
        from: End,
        to: End,
        most: usize,
        position: Option<&mut i64>,
        moved: &mut usize,
    ) -> Result<(), Ended> {
        *moved = 0;
        self.check()?;
        let is_quick = !from.is_file() && !to.is_file() && from.never_waits() && to.never_waits();
        if !is_quick {
            return self.splice_by_ring(from, to, most, position, moved);
        }
        loop {
            match Fd(from.fd).splice_now(Fd(to.fd), most) {
                Ok(count) => {
                    *moved = count;
                    return Ok(());
                }
                Err(Errno(libc::EAGAIN)) => {
                    self.wait_for(from, to)?;
                    self.check()?;
                }
                Err(Errno(libc::EINTR)) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    fn splice_by_ring(
        &self,
        from: End,
        to: End,
        most: usize,
        position: Option<&mut i64>,
        moved: &mut usize,
    ) -> Result<(), Ended> {
        let mut splice = Splice {
            from: from.fd,
            from_offset: position.as_ref().map(|position| **position as u64),
            to: to.fd,
            to_offset: None,
            length: most as u32,
            flags: libc::SPLICE_F_MOVE,
        };
        loop {
            let mut seen = 0;
            let result = self.operate(&mut splice, &mut seen);
            if seen >= 0 {
                *moved = seen as usize;
                if let Some(position) = position {
                    *position += i64::from(seen);
                }
                return result.map(drop);
            }
            // A descriptor in non-blocking mode answers the ring's thread too.
            match -result? {
                libc::EAGAIN => {
                    self.wait_for(from, to)?;
                    self.check()?;
                }
                libc::EINTR => {}
                errno => return Err(Ended::Errno(errno)),
            }
        }
    }

    /// An operation of the ring's; `seen` is its result, also when the fiber is to raise.
    fn operate(&self, operation: &mut impl Operation, seen: &mut i32) -> Result<i32, Ended> {
        *seen = -libc::ECANCELED;
        let (machine, yields) = (self.machine, Yields::Count);
        Ok(machine.operate_noting(self.me, operation, None, yields, seen)?)
    }

    /// Waits for whichever end is not ready.
    fn wait_for(&self, from: End, to: End) -> Result<(), Ended> {
        if Fd(from.fd).events_now(libc::POLLIN) == 0 {
            return self.wait(from, libc::POLLIN);
        }
        self.wait(to, libc::POLLOUT)
    }

    /// From or to a pipe.
    fn splice(&self, length: u64, offset: Option<i64>, count: &mut u64) -> Result<(), Ended> {
        let mut position = offset;
        while *count < length {
            let most = (length - *count).min(CHUNK as u64) as usize;
            let (from, to) = (self.source, self.target);
            let mut moved = 0;
            let result = self.splice_once(from, to, most, position.as_mut(), &mut moved);
            *count += moved as u64;
            result?;
            if moved == 0 {
                return Ok(());
            }
            self.pause()?;
        }
        Ok(())
    }

    /// Between two ends of which neither is a pipe.
    fn through_pipe(&self, length: u64, offset: Option<i64>, moved: &mut Moved) {
        let pipe = self.machine.parts().pipes.take();
        let pipe = match pipe {
            Ok(pipe) => pipe,
            Err(errno) => {
                moved.ended = Err(errno.into());
                return;
            }
        };
        let mut inside = 0;
        moved.ended = self.pump(&pipe, length, offset, &mut moved.count, &mut inside);
        if inside > 0 {
            moved.left = drain(&pipe, inside);
        } else {
            self.machine.parts().pipes.give(pipe);
        }
    }

    fn pump(
        &self,
        pipe: &Pipe,
        length: u64,
        offset: Option<i64>,
        count: &mut u64,
        inside: &mut usize,
    ) -> Result<(), Ended> {
        let mut position = offset;
        let end = |fd: &OwnedFd| End {
            fd: fd.as_raw_fd(),
            timeout: None,
        };
        while *count < length {
            let most = (length - *count).min(CHUNK as u64).min(MOST) as usize;
            let (input, output) = (end(&pipe.writer), end(&pipe.reader));
            self.splice_once(self.source, input, most, position.as_mut(), inside)?;
            if *inside == 0 {
                return Ok(());
            }
            while *inside > 0 {
                let mut given = 0;
                let result = self.splice_once(output, self.target, *inside, None, &mut given);
                *inside -= given;
                *count += given as u64;
                result?;
                if given == 0 {
                    return Err(Ended::Errno(libc::EPIPE));
                }
            }
            self.pause()?;
        }
        Ok(())
    }

    fn write(&self, bytes: &[u8], written: &mut usize) -> Result<(), Ended> {
        let target = self.target;
        let is_quick = !target.is_file() && target.never_waits();
        while *written < bytes.len() {
            self.check()?;
            let rest = &bytes[*written..];
            let result = if is_quick {
                match transfer::write(target.fd, &rest) {
                    Ok(0) => return Err(Ended::Errno(libc::EIO)),
                    Ok(count) => {
                        *written += count;
                        0
                    }
                    Err(errno) => errno.negative(),
                }
            } else {
                let mut write = Write {
                    fd: target.fd,
                    memory: Part::new(rest, 0, CHUNK as u32),
                    offset: CURRENT,
                };
                let mut seen = 0;
                let result = self.operate(&mut write, &mut seen);
                *written += seen.max(0) as usize;
                result?.min(0)
            };
            match -result {
                0 | libc::EINTR => {}
                libc::EAGAIN => self.wait(target, libc::POLLOUT)?,
                errno => return Err(Ended::Errno(errno)),
            }
        }
        Ok(())
    }
}

/// Writes bytes to a descriptor. `written` counts them, also when it fails.
pub fn write(
    machine: &Machine,
    me: TaskId,
    target: End,
    bytes: &[u8],
    written: &mut usize,
) -> Result<(), Ended> {
    let mover = Mover {
        machine,
        me,
        source: target,
        target,
    };
    machine.parts().begin_steps(me);
    let result = mover.write(bytes, written);
    machine.parts().end_steps(me, false);
    result
}

/// Takes the bytes that are in a pipe.
fn drain(pipe: &Pipe, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut taken = 0;
    while taken < count {
        match transfer::read(pipe.reader.as_raw_fd(), &mut &mut bytes[taken..]) {
            Ok(read) if read > 0 => taken += read,
            _ => break,
        }
    }
    bytes.truncate(taken);
    bytes
}

/// The error of a move that ended by an errno before anything arrived, or what is to be raised.
pub fn failure(ended: Ended, timed_out: impl FnOnce() -> Raise) -> Result<i32, Failure> {
    match ended {
        Ended::Errno(errno) => Ok(-errno),
        Ended::Timeout => Err(Failure::Raise(timed_out())),
        Ended::Failure(failure) => Err(failure),
    }
}
