//! Moving bytes from one descriptor to another within the kernel: sendfile(2) and splice(2), without the
//! thread's waiting for anything but the page cache.
//!
//! Descriptors that never wait (O_NONBLOCK) are asked at once and polled through the ring when they have
//! nothing; what could wait (a pipe or a socket in blocking mode, a file as the target) is a splice of the
//! ring's. Two ends of which neither is a pipe have one of the machine's between them; bytes that are
//! still in it when the move ends are the caller's to put back.

use std::os::fd::RawFd;

use nix::errno::Errno;
use uringmachine_runtime::{opcode, types, Entry, TaskId};

use crate::machine::hints::{kind, never_waits, Kind};
use crate::machine::poll::wait_ready;
use crate::machine::switch::{self, Failure, Yields};
use crate::machine::Core;
use crate::ruby::{Raise, NIL};

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
    reader: RawFd,
    writer: RawFd,
}

impl Drop for Pipe {
    fn drop(&mut self) {
        // SAFETY: the descriptors are this pipe's.
        unsafe {
            libc::close(self.reader);
            libc::close(self.writer);
        }
    }
}

impl Pipes {
    fn take(&mut self) -> Result<Pipe, i32> {
        if let Some(pipe) = self.free.pop() {
            return Ok(pipe);
        }
        let mut fds = [0; 2];
        // SAFETY: two valid places. A pipe that may not be made larger does too.
        unsafe {
            if libc::pipe2(fds.as_mut_ptr(), libc::O_CLOEXEC | libc::O_NONBLOCK) != 0 {
                return Err(Errno::last_raw());
            }
            libc::fcntl(fds[1], libc::F_SETPIPE_SZ, CHUNK as i32);
        }
        Ok(Pipe {
            reader: fds[0],
            writer: fds[1],
        })
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

fn is_pipe(fd: RawFd) -> bool {
    // SAFETY: F_GETPIPE_SZ is refused for all but pipes.
    unsafe { libc::fcntl(fd, libc::F_GETPIPE_SZ) >= 0 }
}

/// The fiber that moves, and both ends.
struct Mover {
    core: *mut Core,
    me: TaskId,
    source: End,
    target: End,
}

/// Moves bytes until `length` have arrived, or the source ends. A regular file is read from `offset`, if
/// that is given, and its position left alone.
///
/// # Safety
/// Called by the fiber of `me`, on a core that lives as long as it waits.
pub unsafe fn run(
    core: *mut Core,
    me: TaskId,
    source: End,
    target: End,
    length: Option<u64>,
    offset: Option<i64>,
) -> Moved {
    let mover = Mover {
        core,
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
    // SAFETY: the caller's promise.
    unsafe {
        mover.begin();
        let sends = kind(source.fd) == Kind::File
            && kind(target.fd) == Kind::Socket
            && never_waits(target.fd);
        if sends {
            moved.ended = mover.send_file(length, offset, &mut moved.count);
        } else if is_pipe(source.fd) || is_pipe(target.fd) {
            moved.ended = mover.splice(length, offset, &mut moved.count);
        } else {
            mover.through_pipe(length, offset, &mut moved);
        }
        mover.end();
    }
    moved
}

impl Mover {
    unsafe fn begin(&self) {
        // SAFETY: the promise of `run`.
        unsafe { (*self.core).waiter(self.me).stepping = true };
    }

    unsafe fn end(&self) {
        // SAFETY: the promise of `run`.
        unsafe {
            let waiter = (*self.core).waiter(self.me);
            waiter.stepping = false;
            waiter.closed_by = NIL;
        }
    }

    /// Before each step that is made at once: the descriptors are still those of the two ends.
    unsafe fn check(&self) -> Result<(), Ended> {
        // SAFETY: the promise of `run`.
        match unsafe { std::mem::replace(&mut (*self.core).waiter(self.me).closed_by, NIL) } {
            NIL => Ok(()),
            exception => Err(Ended::Failure(Raise::Exception(exception).into())),
        }
    }

    unsafe fn wait(&self, end: End, events: i16) -> Result<(), Ended> {
        let deadline = end.timeout.map(crate::ruby::duration::from_now);
        // SAFETY: the promise of `run`.
        match unsafe { wait_ready(self.core, self.me, end.fd, i64::from(events), deadline) } {
            Ok(0) => Err(Ended::Timeout),
            Ok(_) => Ok(()),
            Err(raise) => Err(Ended::Failure(Failure::Raise(raise))),
        }
    }

    /// Lets others run after a chunk.
    unsafe fn pause(&self) -> Result<(), Ended> {
        // SAFETY: as `wait`.
        unsafe { switch::yield_now(self.core, self.me) }
            .map_err(|raise| Failure::from(raise).into())
    }

    /// From a regular file to a socket that never waits.
    unsafe fn send_file(
        &self,
        length: u64,
        offset: Option<i64>,
        count: &mut u64,
    ) -> Result<(), Ended> {
        let mut position = offset.unwrap_or(0);
        // SAFETY: as `wait`; the position is on this frame.
        unsafe {
            while *count < length {
                let most = (length - *count).min(CHUNK as u64) as usize;
                self.read_ahead(offset.map(|_| position), most)?;
                self.check()?;
                let place = match offset {
                    Some(_) => &raw mut position,
                    None => std::ptr::null_mut(),
                };
                let sent = libc::sendfile(self.target.fd, self.source.fd, place, most);
                match sent {
                    0 => return Ok(()),
                    sent if sent > 0 => {
                        *count += sent as u64;
                        self.pause()?;
                    }
                    _ => match Errno::last_raw() {
                        libc::EAGAIN => self.wait(self.target, libc::POLLOUT)?,
                        libc::EINTR => {}
                        errno => return Err(Ended::Errno(errno)),
                    },
                }
            }
            Ok(())
        }
    }

    /// Has the ring bring a file's bytes to the page cache, if they are not there.
    unsafe fn read_ahead(&self, position: Option<i64>, length: usize) -> Result<(), Ended> {
        let mut byte = [0_u8; 1];
        // SAFETY: one byte, on this frame until the ring's read is over.
        unsafe {
            let start = match position {
                Some(position) => position,
                None => libc::lseek(self.source.fd, 0, libc::SEEK_CUR),
            };
            for at in [start, start + length as i64 / 2, start + length as i64 - 1] {
                let vector = libc::iovec {
                    iov_base: byte.as_mut_ptr().cast(),
                    iov_len: 1,
                };
                if libc::preadv2(self.source.fd, &vector, 1, at, libc::RWF_NOWAIT) >= 0
                    || Errno::last_raw() != libc::EAGAIN
                {
                    continue;
                }
                libc::posix_fadvise(self.source.fd, at, length as i64, libc::POSIX_FADV_WILLNEED);
                let fd = types::Fd(self.source.fd);
                let entry = opcode::Read::new(fd, byte.as_mut_ptr(), 1)
                    .offset(at as u64)
                    .build();
                switch::operate(self.core, self.me, entry, None)?;
            }
        }
        Ok(())
    }

    /// One splice, of at most `most` bytes, waiting if it must. `moved` is how many it were, also when the fiber is
    /// to raise; 0 is the end.
    unsafe fn splice_once(
        &self,
        from: End,
        to: End,
        most: usize,
        position: Option<&mut i64>,
        moved: &mut usize,
    ) -> Result<(), Ended> {
        *moved = 0;
        // SAFETY: as `wait`.
        unsafe { self.check()? };
        let quick = kind(from.fd) != Kind::File
            && kind(to.fd) != Kind::File
            && never_waits(from.fd)
            && never_waits(to.fd);
        // SAFETY: as `wait`; a position is on the caller's frame.
        unsafe {
            if !quick {
                let at = position.as_ref().map_or(-1, |position| **position);
                let (source, target) = (types::Fd(from.fd), types::Fd(to.fd));
                let entry = opcode::Splice::new(source, at, target, -1, most as u32)
                    .flags(libc::SPLICE_F_MOVE)
                    .build();
                return loop {
                    let mut seen = 0;
                    let result = self.operate(entry.clone(), &mut seen);
                    if seen >= 0 {
                        *moved = seen as usize;
                        if let Some(position) = position {
                            *position += i64::from(seen);
                        }
                        break result.map(drop);
                    }
                    // A descriptor in non-blocking mode answers the ring's thread too.
                    match result? {
                        again if again == -libc::EAGAIN => {
                            self.wait_for(from, to)?;
                            self.check()?;
                        }
                        again if again == -libc::EINTR => {}
                        errno => break Err(Ended::Errno(-errno)),
                    }
                };
            }
            loop {
                let flags = libc::SPLICE_F_MOVE | libc::SPLICE_F_NONBLOCK;
                let null = std::ptr::null_mut();
                match libc::splice(from.fd, null, to.fd, null, most, flags) {
                    count if count >= 0 => {
                        *moved = count as usize;
                        return Ok(());
                    }
                    _ => match Errno::last_raw() {
                        libc::EAGAIN => {
                            self.wait_for(from, to)?;
                            self.check()?;
                        }
                        libc::EINTR => {}
                        errno => return Err(Ended::Errno(errno)),
                    },
                }
            }
        }
    }

    /// An operation of the ring's; `seen` is its result, also when the fiber is to raise.
    unsafe fn operate(&self, entry: Entry, seen: &mut i32) -> Result<i32, Ended> {
        let (core, me) = (self.core, self.me);
        *seen = -libc::ECANCELED;
        // SAFETY: the entry points to nothing that goes before `run` returns.
        unsafe { switch::operate_noting(core, me, entry, None, Yields::Count, seen) }
            .map_err(Ended::from)
    }

    /// Waits for whichever end is not ready.
    unsafe fn wait_for(&self, from: End, to: End) -> Result<(), Ended> {
        let mut poll = libc::pollfd {
            fd: from.fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one entry, on this frame.
        unsafe {
            if libc::poll(&mut poll, 1, 0) == 0 {
                return self.wait(from, libc::POLLIN);
            }
            self.wait(to, libc::POLLOUT)
        }
    }

    /// From or to a pipe.
    unsafe fn splice(
        &self,
        length: u64,
        offset: Option<i64>,
        count: &mut u64,
    ) -> Result<(), Ended> {
        let mut position = offset;
        // SAFETY: as `wait`.
        unsafe {
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
    }

    /// Between two ends of which neither is a pipe.
    unsafe fn through_pipe(&self, length: u64, offset: Option<i64>, moved: &mut Moved) {
        // SAFETY: as `wait`; the core is not borrowed across a wait.
        unsafe {
            let pipe = match (*self.core).pipes.take() {
                Ok(pipe) => pipe,
                Err(errno) => {
                    moved.ended = Err(Ended::Errno(errno));
                    return;
                }
            };
            let mut inside = 0;
            moved.ended = self.pump(&pipe, length, offset, &mut moved.count, &mut inside);
            if inside > 0 {
                moved.left = drain(&pipe, inside);
            } else {
                (*self.core).pipes.give(pipe);
            }
        }
    }

    unsafe fn pump(
        &self,
        pipe: &Pipe,
        length: u64,
        offset: Option<i64>,
        count: &mut u64,
        inside: &mut usize,
    ) -> Result<(), Ended> {
        let mut position = offset;
        let end = |fd| End { fd, timeout: None };
        // SAFETY: as `wait`.
        unsafe {
            while *count < length {
                let most = (length - *count).min(CHUNK as u64).min(MOST) as usize;
                let (input, output) = (end(pipe.writer), end(pipe.reader));
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
    }
}

/// Writes bytes to a descriptor. `written` counts them, also when it fails.
///
/// # Safety
/// As [`run`].
pub unsafe fn write(
    core: *mut Core,
    me: TaskId,
    target: End,
    bytes: &[u8],
    written: &mut usize,
) -> Result<(), Ended> {
    let mover = Mover {
        core,
        me,
        source: target,
        target,
    };
    // SAFETY: the caller's promise.
    unsafe { mover.begin() };
    let result = mover.write(bytes, written);
    // SAFETY: as above.
    unsafe { mover.end() };
    result
}

impl Mover {
    fn write(&self, bytes: &[u8], written: &mut usize) -> Result<(), Ended> {
        let target = self.target;
        let quick = kind(target.fd) != Kind::File && never_waits(target.fd);
        while *written < bytes.len() {
            // SAFETY: the promise of `write`.
            unsafe { self.check()? };
            let rest = &bytes[*written..];
            // SAFETY: the bytes outlive the call; an operation of the ring's is over when `operate` returns.
            let result = unsafe {
                if quick {
                    match libc::write(target.fd, rest.as_ptr().cast(), rest.len()) {
                        count if count >= 0 => count as i32,
                        _ => -Errno::last_raw(),
                    }
                } else {
                    let length = rest.len().min(CHUNK) as u32;
                    let entry = opcode::Write::new(types::Fd(target.fd), rest.as_ptr(), length)
                        .offset(crate::ruby::arguments::CURRENT)
                        .build();
                    let mut seen = 0;
                    let result = self.operate(entry, &mut seen);
                    *written += seen.max(0) as usize;
                    result?.min(0)
                }
            };
            match result {
                0 if quick => return Err(Ended::Errno(libc::EIO)),
                count if count >= 0 => *written += count as usize,
                again if again == -libc::EAGAIN => unsafe { self.wait(target, libc::POLLOUT)? },
                again if again == -libc::EINTR => {}
                errno => return Err(Ended::Errno(-errno)),
            }
        }
        Ok(())
    }
}

/// Takes the bytes that are in a pipe.
fn drain(pipe: &Pipe, count: usize) -> Vec<u8> {
    let mut bytes = vec![0; count];
    let mut taken = 0;
    while taken < count {
        // SAFETY: the room is the vector's.
        let read = unsafe {
            libc::read(
                pipe.reader,
                bytes[taken..].as_mut_ptr().cast(),
                count - taken,
            )
        };
        match usize::try_from(read) {
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
