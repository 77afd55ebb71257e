//! How bytes move between a descriptor and a buffer, beneath io_read, io_write, io_pread and io_pwrite.
//!
//! Each tries without waiting first, unless the descriptor's last attempt says that there is nothing to be had. Only
//! then a socket's or a file's memory is given to the kernel, and [`switch::operate`] takes it back before the hook
//! returns; a pipe or a terminal is polled and then tried again. Where a call may wait although the descriptor is
//! ready, it is made on a thread.

use std::cell::Cell;
use std::ffi::c_void;
use std::os::fd::RawFd;

use magnus::{Error, Ruby, Value};
use nix::errno::Errno;
use uringmachine_runtime::operations::poll_first;
use uringmachine_runtime::{opcode, types, Entry, TaskId};

use crate::classes::fiber_scheduler::Scheduler;
use crate::lending;
use crate::machine::hints::{never_waits, Descriptor, Kind};
use crate::machine::poll::wait_ready;
use crate::machine::positions::{self, CURRENT};
use crate::machine::switch::{self, Failure};
use crate::machine::{Core, Lost};
use crate::ruby::method::{raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, version, Outcome, Raise, NIL, VALUE};

/// The most that is copied to the page cache in one call on the scheduler's thread: a fraction of a millisecond. More
/// is written on another.
const WRITTEN_AT_ONCE: usize = 1 << 20;

/// What a pipe that is ready takes without waiting (pipe(7), PIPE_BUF).
const PIPE_TAKES: usize = 4096;

/// One call of a hook: where the bytes are, and how many are wanted.
pub struct Transfer {
    pub core: *mut Core,
    pub me: TaskId,
    pub io: VALUE,
    pub fd: RawFd,
    pub buffer: VALUE,
    /// Where the bytes are, within the buffer and in memory. Looked up anew after each wait: what is not
    /// locked may be freed meanwhile, or be another buffer's.
    pub offset: usize,
    pub base: Cell<*mut u8>,
    /// The bytes that may be moved.
    pub size: usize,
    /// The bytes that must be moved, unless the file ends; 0 for one attempt.
    pub minimum: usize,
    /// The position in the file, or [`CURRENT`].
    pub position: i64,
    /// Whether the hook may answer -EAGAIN instead of waiting.
    pub single: bool,
    pub writes: bool,
    /// It has waited: the descriptor may be closed by now, and another file's.
    pub stepping: Cell<bool>,
}

/// A count, or -errno.
type Moved = Result<isize, Raise>;

/// What one way of moving bytes came to.
enum Step {
    /// A count, or -errno.
    Done(isize),
    /// The descriptor is not what it was taken for.
    Mistaken,
}

impl Transfer {
    /// Moves bytes until the minimum is reached (all of them, for a write), and returns the count.
    pub unsafe fn run(&self) -> Outcome {
        // SAFETY: `core` is alive while a hook of its scheduler runs.
        unsafe {
            if let Some(raise) = (*self.core).take_lost(self.me, self.io, self.fd) {
                return Err(raise);
            }
            if (*self.core).has_held_long() {
                switch::let_go(self.core, self.me)?;
            }
            let result = self.move_bytes();
            if self.stepping.get() {
                let waiter = (*self.core).waiter(self.me);
                waiter.stepping = false;
                let exception = std::mem::replace(&mut waiter.closed_by, NIL);
                if exception != NIL && result.is_ok() {
                    (*self.core).note_lost(Lost {
                        task: self.me,
                        io: self.io,
                        fd: self.fd,
                        exception,
                    });
                }
            }
            result.map(|count| ruby::fixnum(count as i64))
        }
    }

    unsafe fn move_bytes(&self) -> Moved {
        let minimum = match (self.single, self.writes) {
            (true, _) => 0,
            // A short write inside a flush is lost (scheduler_contract, trap 2).
            (false, true) => self.size,
            (false, false) => self.minimum,
        };
        let mut moved = 0;
        loop {
            // SAFETY: the bytes from `moved` on are within the buffer; the rest as `run`.
            let result = unsafe {
                match (*self.core).closed(self.me) {
                    Some(raise) if self.stepping.get() => Err(raise),
                    _ => self.once(moved),
                }
            };
            let count = match result {
                // What was to be raised is raised at the next wait; the end of `io.timeout`, or of the IO, shows in
                // the next operation.
                Err(raise) if moved > 0 => {
                    // SAFETY: as `run`.
                    unsafe { self.keep(raise)? };
                    0
                }
                result => result?,
            };
            if count <= 0 {
                // An error after progress shows at the next operation.
                return Ok(if moved > 0 { moved as isize } else { count });
            }
            moved += count as usize;
            if moved >= minimum {
                return Ok(moved as isize);
            }
        }
    }

    /// Keeps what is to be raised for later, since bytes have moved.
    #[cold]
    unsafe fn keep(&self, raise: Raise) -> Result<(), Raise> {
        // SAFETY: a type check; the rest as `run`.
        unsafe {
            match raise {
                Raise::Exception(error) if ruby::is_a(error, ruby::io_timeout_error()) => Ok(()),
                Raise::Exception(error) if error == (*self.core).waiter(self.me).closed_by => {
                    Ok(())
                }
                raise => (*self.core).keep_raise(self.me, raise),
            }
        }
    }

    /// Moves bytes once, waiting if it must.
    unsafe fn once(&self, done: usize) -> Moved {
        // SAFETY: as `run`.
        unsafe {
            loop {
                let descriptor = (*self.core).descriptors.get(self.fd, self.io);
                let step = match descriptor.kind {
                    Kind::File => Step::Done(self.with_file(done)?),
                    _ if self.position != CURRENT && self.has_no_position(descriptor.kind) => {
                        Step::Done(-(libc::ESPIPE as isize))
                    }
                    Kind::Messages if self.writes => self.with_socket(descriptor, done)?,
                    // Nothing is to be moved, and no message of nothing.
                    _ if self.size == done => Step::Done(0),
                    Kind::Socket | Kind::Messages => self.with_socket(descriptor, done)?,
                    Kind::Stream => self.with_stream(descriptor, done)?,
                    Kind::Terminal if self.writes => Step::Done(self.write_to_terminal(done)?),
                    Kind::Terminal => Step::Done(self.read_terminal(done)?),
                };
                match step {
                    Step::Done(count) => return Ok(count),
                    Step::Mistaken => (*self.core).descriptors.forget(self.fd),
                }
            }
        }
    }

    fn has_no_position(&self, kind: Kind) -> bool {
        kind.is_socket() || positions::position(self.fd).is_none()
    }

    /// A regular file: what the page cache has, or takes, is moved at once.
    unsafe fn with_file(&self, done: usize) -> Moved {
        // SAFETY: as `run`.
        unsafe {
            let size = self.size - done;
            if self.writes {
                let descriptor = (*self.core).descriptors.get_fresh(self.fd, self.io);
                if descriptor.kind != Kind::File {
                    return self.once(done);
                }
                if size <= WRITTEN_AT_ONCE && (*self.core).descriptors.writes_to_cache(self.fd) {
                    return Ok(self.at_once(Kind::File, done));
                }
                if self.position == CURRENT {
                    return self.write_on_thread(done);
                }
                return self.submit(Kind::File, done);
            }
            let features = (*self.core).driver.features();
            let descriptor = (*self.core).descriptors.get(self.fd, self.io);
            if features.nowait && !descriptor.no_nowait {
                match self.at_once(Kind::File, done) {
                    again if again == -(libc::EAGAIN as isize) => {}
                    refused if refused == -(libc::EOPNOTSUPP as isize) => {
                        (*self.core).descriptors.set_no_nowait(self.fd);
                    }
                    result => return Ok(result),
                }
            }
            self.submit(Kind::File, done)
        }
    }

    unsafe fn with_socket(&self, descriptor: Descriptor, done: usize) -> Result<Step, Raise> {
        const NO_SOCKET: isize = -(libc::ENOTSOCK as isize);
        // SAFETY: as `run`.
        unsafe {
            let tries = (*self.core).driver.features().dontwait;
            // A message whose room the ring waits for is sent empty, or twice, by kernels that retry it: so it waits for
            // room first.
            let by_ring = self.writes && descriptor.kind == Kind::Socket;
            let mut first = tries && (self.writes || !descriptor.drained);
            if by_ring && self.has_company() {
                first = false;
            } else if self.writes && !by_ring {
                first = true;
            }
            loop {
                if first {
                    match self.at_once(descriptor.kind, done) {
                        again if again == -(libc::EAGAIN as isize) => {}
                        NO_SOCKET => return Ok(Step::Mistaken),
                        count => {
                            self.note_drained(descriptor, count, done);
                            return Ok(Step::Done(count));
                        }
                    }
                    if self.writes && !by_ring {
                        self.wait(libc::POLLOUT)?;
                        continue;
                    }
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
    }

    /// Notes whether the next read should try without waiting first.
    unsafe fn note_drained(&self, descriptor: Descriptor, count: isize, done: usize) {
        if self.writes {
            return;
        }
        let drained = count < (self.size - done) as isize;
        if drained != descriptor.drained {
            // SAFETY: as `run`.
            unsafe { (*self.core).descriptors.set_drained(self.fd, drained) };
        }
    }

    /// Whether others are about to send as well, so that one system call does for all. Measured: 15 % less CPU for a
    /// request to an HTTP server with 64 connections. With many more fibers than the caches hold, what is saved in the
    /// kernel is lost by switching to each once more.
    unsafe fn has_company(&self) -> bool {
        const LEAST: usize = 4;
        const MOST: usize = 256;
        // SAFETY: as `run`.
        let tasks = unsafe { &(*self.core).driver.tasks };
        tasks.queued() >= LEAST && tasks.waiting() <= MOST
    }

    /// A pipe and the like.
    unsafe fn with_stream(&self, descriptor: Descriptor, done: usize) -> Result<Step, Raise> {
        // SAFETY: as `run`.
        unsafe {
            let mut tries = (*self.core).driver.features().nowait && !descriptor.no_nowait;
            let mut first = self.writes || !descriptor.drained || self.position != CURRENT;
            let mut was_ready = false;
            loop {
                if first && tries {
                    match self.at_once(Kind::Stream, done) {
                        again if again == -(libc::EAGAIN as isize) => {
                            // What poll calls ready, and is not, is no stream.
                            if std::mem::replace(&mut was_ready, false)
                                && crate::machine::hints::kind(self.fd) != Kind::Stream
                            {
                                return Ok(Step::Mistaken);
                            }
                        }
                        refused if refused == -(libc::EOPNOTSUPP as isize) => {
                            (*self.core).descriptors.set_no_nowait(self.fd);
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
                        return Ok(Step::Done(-(libc::EAGAIN as isize)));
                    }
                    first = true;
                    continue;
                }
                if !tries {
                    return self.without_nowait(done).map(Step::Done);
                }
                self.wait(self.events())?;
                (first, was_ready) = (true, true);
            }
        }
    }

    /// A stream that has no RWF_NOWAIT (a FIFO that was opened by its name; a pipe before Linux 6.5). It waits by poll:
    /// the ring, once the stream is ready, writes to it as if it never waited, whatever there is room for.
    unsafe fn without_nowait(&self, done: usize) -> Moved {
        // SAFETY: as `run`.
        unsafe {
            loop {
                if !never_waits(self.fd) {
                    self.wait(self.events())?;
                }
                if self.writes && self.size - done > PIPE_TAKES && !never_waits(self.fd) {
                    return self.write_on_thread(done);
                }
                match self.read_or_write(done) {
                    again if again == -(libc::EAGAIN as isize) => self.wait(self.events())?,
                    again if again == -(libc::EINTR as isize) => {}
                    result => return Ok(result),
                }
            }
        }
    }

    /// read(2) of a terminal, which waits as its settings say (termios(3), "Canonical and noncanonical mode").
    unsafe fn read_terminal(&self, done: usize) -> Moved {
        // SAFETY: as `run`; the settings are filled by the call, or it fails.
        unsafe {
            if self.is_nonblocking_read() {
                return Ok(self.read_now(done));
            }
            loop {
                if never_waits(self.fd) {
                    match self.read_or_write(done) {
                        again if again == -(libc::EAGAIN as isize) => self.wait(libc::POLLIN)?,
                        again if again == -(libc::EINTR as isize) => {}
                        result => return Ok(result),
                    }
                    continue;
                }
                let mut settings: libc::termios = std::mem::zeroed();
                let raw = libc::tcgetattr(self.fd, &mut settings) == 0
                    && settings.c_lflag & libc::ICANON == 0;
                let least = settings.c_cc[libc::VMIN];
                let tenths = u64::from(settings.c_cc[libc::VTIME]);
                match (raw, least, tenths) {
                    (true, 0, 0) => return Ok(self.read_or_write(done)),
                    // The time is for the first byte.
                    (true, 0, tenths) => {
                        let limit = duration::from_now(tenths * 100_000_000);
                        if !self.wait_until(libc::POLLIN, limit)? {
                            return Ok(0);
                        }
                    }
                    // The time is for each byte after the first.
                    (true, _, 1..) => {
                        self.wait(libc::POLLIN)?;
                        return self.read_on_thread(done);
                    }
                    _ => self.wait(libc::POLLIN)?,
                }
                match self.read_now(done) {
                    again if again == -(libc::EAGAIN as isize) => {}
                    again if again == -(libc::EINTR as isize) => {}
                    result => return Ok(result),
                }
            }
        }
    }

    /// A terminal that is ready has room for some of the bytes, and waits for the rest.
    unsafe fn write_to_terminal(&self, done: usize) -> Moved {
        // SAFETY: as `run`.
        unsafe {
            self.wait(libc::POLLOUT)?;
            while never_waits(self.fd) {
                match self.read_or_write(done) {
                    again if again == -(libc::EAGAIN as isize) => self.wait(libc::POLLOUT)?,
                    again if again == -(libc::EINTR as isize) => {}
                    result => return Ok(result),
                }
            }
            self.write_on_thread(done)
        }
    }

    /// `read_nonblock` comes to this hook by the same arguments as a blocking read (io.c,
    /// io_read_memory_call), except on a socket.
    unsafe fn is_nonblocking_read(&self) -> bool {
        // SAFETY: called from within the hook.
        self.single || unsafe { ruby::called_from(b"io_read", b"read_nonblock") }
    }

    fn events(&self) -> i16 {
        if self.writes {
            libc::POLLOUT
        } else {
            libc::POLLIN
        }
    }

    /// Tries without waiting: a count, or -errno.
    unsafe fn at_once(&self, kind: Kind, done: usize) -> isize {
        // SAFETY: base + done is within the buffer, and size - done bytes follow it; `core` as in `run`.
        unsafe {
            let base = self.base.get().add(done);
            let size = self.size - done;
            let vector = libc::iovec {
                iov_base: base.cast(),
                iov_len: size,
            };
            let position = self.position_after(done);
            loop {
                let result = match (kind.is_socket(), self.writes) {
                    (true, true) => {
                        let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
                        libc::send(self.fd, base.cast(), size, flags)
                    }
                    (true, false) => libc::recv(self.fd, base.cast(), size, libc::MSG_DONTWAIT),
                    // Most file systems refuse RWF_NOWAIT for buffered writes, and the ring would hand
                    // each to a kernel thread, for ten times the cost of the copy.
                    (false, true) if kind == Kind::File => {
                        libc::pwritev2(self.fd, &vector, 1, position, 0)
                    }
                    (false, true) => {
                        libc::pwritev2(self.fd, &vector, 1, position, libc::RWF_NOWAIT)
                    }
                    (false, false) => {
                        libc::preadv2(self.fd, &vector, 1, position, libc::RWF_NOWAIT)
                    }
                };
                if result >= 0 {
                    (*self.core).count_at_once(result as usize);
                    return result;
                }
                match Errno::last_raw() {
                    libc::EINTR => {}
                    errno => {
                        (*self.core).count_at_once(0);
                        return -(errno as isize);
                    }
                }
            }
        }
    }

    /// Reads what is there from a stream that has no RWF_NOWAIT: the count, or a negative errno. Ruby has put what it
    /// calls read_nonblock of into non-blocking mode; what is not is asked first.
    fn read_now(&self, done: usize) -> isize {
        let mut poll = libc::pollfd {
            fd: self.fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd.
        if !never_waits(self.fd) && unsafe { libc::poll(&mut poll, 1, 0) } <= 0 {
            return -(libc::EAGAIN as isize);
        }
        self.read_or_write(done)
    }

    /// read(2) or write(2): a count, or -errno.
    fn read_or_write(&self, done: usize) -> isize {
        // SAFETY: base + done is within the buffer, and size - done bytes follow it; errno is of the call before.
        unsafe {
            let base = self.base.get().add(done).cast();
            let size = self.size - done;
            let result = if self.writes {
                libc::write(self.fd, base, size)
            } else {
                libc::read(self.fd, base, size)
            };
            if result >= 0 {
                result
            } else {
                -(Errno::last_raw() as isize)
            }
        }
    }

    fn position_after(&self, done: usize) -> i64 {
        if self.position == CURRENT {
            CURRENT
        } else {
            self.position + done as i64
        }
    }

    /// Lets the ring do it.
    unsafe fn submit(&self, kind: Kind, done: usize) -> Moved {
        // SAFETY: what the entries point to is lent until the closure returns.
        unsafe {
            let deadline = self.deadline()?;
            self.lend(done, |base, size, fixed| {
                let fd = types::Fd(self.fd);
                let at = |position: i64| -> Entry {
                    let offset = position as u64;
                    match (self.writes, fixed) {
                        (false, Some(index)) => opcode::ReadFixed::new(fd, base, size, index)
                            .offset(offset)
                            .build(),
                        (true, Some(index)) => opcode::WriteFixed::new(fd, base, size, index)
                            .offset(offset)
                            .build(),
                        (false, None) => opcode::Read::new(fd, base, size).offset(offset).build(),
                        (true, None) => opcode::Write::new(fd, base, size).offset(offset).build(),
                    }
                };
                let entry = match (kind.is_socket(), self.writes) {
                    // Most receives come here after an attempt that found the socket empty; data that came since
                    // is found by the poll.
                    (true, false) => poll_first(opcode::Recv::new(fd, base, size).build()),
                    (true, true) => opcode::Send::new(fd, base, size)
                        .flags(libc::MSG_NOSIGNAL)
                        .build(),
                    (false, _) => {
                        (*self.core).fixed += u64::from(fixed.is_some());
                        if self.position == CURRENT {
                            return positions::read(self.core, self.me, self.fd, deadline, at);
                        }
                        at(self.position_after(done))
                    }
                };
                switch::operate(self.core, self.me, entry, deadline)
            })
        }
    }

    /// Has a thread write what may wait although the descriptor is ready.
    unsafe fn write_on_thread(&self, done: usize) -> Moved {
        let mut written = 0;
        // SAFETY: the memory is lent until the closure returns.
        unsafe {
            self.lend(done, |base, size, fixed| {
                let fd = self.fd;
                if let Some(index) = fixed {
                    (*self.core).fixed += 1;
                    let length = size as usize;
                    return positions::write_registered(self.core, self.me, fd, length, |at| {
                        opcode::WriteFixed::new(types::Fd(fd), base, size, index)
                            .offset(at as u64)
                            .build()
                    });
                }
                let size = size as usize;
                match positions::write(self.core, self.me, fd, base, size, &mut written) {
                    // What was written counts, though the fiber is to raise.
                    Err(Failure::Raise(raise)) if written > 0 => {
                        (*self.core).keep_raise(self.me, raise)?;
                        Ok(written as i32)
                    }
                    result => result,
                }
            })
        }
    }

    /// Has a thread read what may wait although the descriptor is ready.
    unsafe fn read_on_thread(&self, done: usize) -> Moved {
        // SAFETY: as `write_on_thread`.
        unsafe {
            self.lend(done, |base, size, _| {
                positions::read_stream(self.core, self.me, self.fd, base, size as usize)
            })
        }
    }

    /// Lends the memory to the kernel, or a thread, locked meanwhile. `work` is given the bytes, how many, and the
    /// registered buffer that they lie in; it is done with them when it returns.
    unsafe fn lend(
        &self,
        done: usize,
        work: impl FnOnce(*mut u8, u32, Option<u16>) -> Result<i32, Failure>,
    ) -> Moved {
        // SAFETY: the lock keeps the memory in place, and is taken off in every case.
        unsafe {
            let base = self.base.get().add(done);
            let size = u32::try_from(self.size - done)
                .unwrap_or(u32::MAX)
                .min(1 << 30);
            let fixed = (*self.core).driver.registered_index(base, size as usize);
            // A lock on a slice does not keep the memory, which is another buffer's.
            let mut copy = Vec::new();
            let base = if fixed.is_none() && lending::is_slice(self.buffer) {
                copy.extend_from_slice(std::slice::from_raw_parts(base, size as usize));
                copy.as_mut_ptr()
            } else {
                base
            };
            let (mut ignored, mut length) = (std::ptr::null_mut(), 0);
            let flags = ruby::rb_io_buffer_get_bytes(self.buffer, &mut ignored, &mut length);
            let unlocked = flags & ruby::IO_BUFFER_LOCKED == 0;
            if unlocked {
                ruby::rb_io_buffer_lock(self.buffer);
                (*self.core).waiter(self.me).held = self.buffer;
            }
            (*self.core).lending.in_use.begin(fixed);
            self.step();
            let result = work(base, size, fixed);
            (*self.core).lending.in_use.end(fixed);
            (*self.core).waiter(self.me).held = NIL;
            // In a child of fork `lending::take_over` has done that.
            if unlocked && !(*self.core).is_forked() {
                ruby::rb_io_buffer_unlock(self.buffer);
            }
            self.locate()?;
            if let (Ok(count @ 1..), false, false) = (&result, self.writes, copy.is_empty()) {
                let place = self.base.get().add(done);
                std::ptr::copy_nonoverlapping(copy.as_ptr(), place, *count as usize);
            }
            match result {
                Ok(result) => Ok(result as isize),
                // Ruby looks at interrupts and comes again.
                Err(Failure::Scheduled(_)) => Ok(-(libc::EINTR as isize)),
                Err(failure) => Err(timed_out(failure)),
            }
        }
    }

    /// Finds the buffer's memory after a wait.
    unsafe fn locate(&self) -> Result<(), Raise> {
        let (mut base, mut size) = (std::ptr::null_mut::<c_void>(), 0);
        // SAFETY: an IO::Buffer; the accessor does not raise, and finds nothing in one that was freed.
        unsafe {
            ruby::rb_io_buffer_get_bytes(self.buffer, &mut base, &mut size);
            if base.is_null() || self.offset + self.size > size {
                return Err(Raise::misuse(
                    "the buffer was freed or made smaller meanwhile",
                ));
            }
            self.base.set(base.cast::<u8>().add(self.offset));
        }
        Ok(())
    }

    /// Waits until the descriptor is ready, for `io.timeout` at most.
    unsafe fn wait(&self, events: i16) -> Result<(), Raise> {
        // SAFETY: as `run`.
        unsafe {
            let deadline = self.deadline()?;
            if self.wait_ready(events, deadline)? {
                Ok(())
            } else {
                Err(timed_out(Failure::Timeout))
            }
        }
    }

    /// The same, and at most until `limit`, which is no error: then it says that it is not ready.
    unsafe fn wait_until(&self, events: i16, limit: u64) -> Result<bool, Raise> {
        // SAFETY: as `run`.
        unsafe {
            let deadline = self.deadline()?;
            let ready =
                self.wait_ready(events, Some(deadline.map_or(limit, |at| at.min(limit))))?;
            if !ready && deadline.is_some_and(|deadline| deadline < limit) {
                return Err(timed_out(Failure::Timeout));
            }
            Ok(ready)
        }
    }

    unsafe fn wait_ready(&self, events: i16, deadline: Option<u64>) -> Result<bool, Raise> {
        // SAFETY: as `run`.
        unsafe {
            self.step();
            let events = wait_ready(self.core, self.me, self.fd, i64::from(events), deadline)?;
            if let Some(raise) = (*self.core).closed(self.me) {
                return Err(raise);
            }
            self.locate()?;
            Ok(events != 0)
        }
    }

    /// What comes after a wait names the descriptor again: its close counts until the end of the hook.
    unsafe fn step(&self) {
        self.stepping.set(true);
        // SAFETY: as `run`.
        unsafe { (*self.core).waiter(self.me).stepping = true };
    }

    /// `io.timeout` counted from now: Ruby leaves it to the hook.
    unsafe fn deadline(&self) -> Result<Option<u64>, Raise> {
        // SAFETY: `io` is an IO, or answers as one.
        match unsafe { ruby::rb_io_timeout(self.io) } {
            NIL => Ok(None),
            timeout => duration::deadline(timeout),
        }
    }
}

impl Transfer {
    /// Reads the arguments (io, buffer[, from], a, b), where (a, b) is (length, offset) or, from
    /// interface 4 on, (offset, length).
    unsafe fn new(
        this: This<Scheduler>,
        arguments: &[VALUE],
        positioned: bool,
        writes: bool,
    ) -> Result<Self, Raise> {
        // SAFETY: the accessors raise for wrong types; nothing on this frame needs dropping.
        unsafe {
            let least = 2 + usize::from(positioned);
            if !(least..=least + 2).contains(&arguments.len()) {
                return Err(Raise::argument(&format!(
                    "wrong number of arguments (given {}, expected {least}..{})",
                    arguments.len(),
                    least + 2
                )));
            }
            let core = this.core()?;
            let (io, buffer) = (arguments[0], arguments[1]);
            let fd = ruby::rb_io_descriptor(io);
            let position = if positioned {
                let from = rb_sys::rb_num2ll(arguments[2]);
                if from < 0 {
                    return Err(Raise::errno(libc::EINVAL));
                }
                from
            } else {
                CURRENT
            };
            let number = |place: usize, name: &str| match arguments.get(place) {
                None => Ok(None),
                Some(value) => match usize::try_from(rb_sys::rb_num2ll(*value)) {
                    Ok(number) => Ok(Some(number)),
                    Err(_) => Err(Raise::argument(&format!("{name} can't be negative"))),
                },
            };
            let single = !version::has_minimum();
            let (length, offset) = if single {
                (number(least + 1, "Length")?, number(least, "Offset")?)
            } else {
                (number(least, "Length")?, number(least + 1, "Offset")?)
            };
            let (mut base, mut size) = (std::ptr::null_mut::<c_void>(), 0);
            if writes {
                ruby::rb_io_buffer_get_bytes_for_reading(buffer, (&raw mut base).cast(), &mut size);
            } else {
                ruby::rb_io_buffer_get_bytes_for_writing(buffer, &mut base, &mut size);
            }
            let offset = offset.unwrap_or(0);
            let length = length.unwrap_or(0);
            if offset > size {
                return Err(Raise::argument(
                    "Specified offset is bigger than the buffer size!",
                ));
            }
            let left = size - offset;
            if length > left {
                return Err(Raise::argument(
                    "Specified offset+length is bigger than the buffer size!",
                ));
            }
            let (size, minimum) = if single { (length, 0) } else { (left, length) };
            let me = (*core).current_task();
            Ok(Self {
                core,
                me,
                io,
                fd,
                buffer,
                offset,
                base: Cell::new(base.cast::<u8>().add(offset)),
                size,
                minimum,
                position,
                single,
                writes,
                stepping: Cell::new(false),
            })
        }
    }
}

/// The error that a failed operation raises; IO::TimeoutError after `io.timeout`.
pub fn timed_out(failure: Failure) -> Raise {
    match failure {
        Failure::Raise(raise) => raise,
        Failure::Scheduled(_) => Raise::errno(libc::EINTR),
        // SAFETY: a constant of IO.
        Failure::Timeout => Raise::new(
            unsafe { ruby::io_timeout_error() },
            "Blocking operation timed out!",
        ),
    }
}

/// Runs a hook of a transfer.
pub fn transfer(
    ruby: &Ruby,
    this: This<Scheduler>,
    arguments: &[Value],
    positioned: bool,
    writes: bool,
) -> Result<Value, Error> {
    // SAFETY: see `switch`.
    settle(ruby, || unsafe {
        Transfer::new(this, raw(arguments), positioned, writes)?.run()
    })
}
