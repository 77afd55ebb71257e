//! io_read, io_write, io_pread, io_pwrite.
//!
//! Each tries without waiting first, unless the descriptor's last attempt says that there is nothing to
//! be had. Only then a socket's or a file's memory is given to the kernel, and [`switch::operate`] takes
//! it back before the hook returns; a pipe or a terminal is polled and then tried again.

use std::cell::Cell;
use std::ffi::{c_int, c_void};
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI64, Ordering};

use uringmachine_runtime::ring::poll_first;
use uringmachine_runtime::{opcode, types, TaskId};

use crate::core::Core;
use crate::descriptors::{never_waits, Kind};
use crate::durations;
use crate::hooks::readiness::wait_ready;
use crate::memory;
use crate::scheduler::get;
use crate::switch::{self, Failure};
use crate::sys::{self, Outcome, Raise, NIL, VALUE};

/// The scheduler interface of the running Ruby (RUBY_FIBER_SCHEDULER_VERSION): 2 is Ruby 3.4, 3 is
/// 4.0, 4 is 4.1.
static INTERFACE: AtomicI64 = AtomicI64::new(3);
/// Up to this interface the arguments are (length, offset), and length is a minimum.
const LAST_WITH_MINIMUM: i64 = 3;
/// From this interface on IO#pwrite calls its hook with the GVL (scheduler_contract, trap 9).
const FIRST_WITH_PWRITE: i64 = 3;

/// The current position of a file, as an offset of preadv2(2) and of io_uring.
const CURRENT: i64 = -1;

/// The most that is copied to the page cache in one call on the scheduler's thread; more goes through
/// the ring.
const WRITTEN_AT_ONCE: usize = 256 << 10;

/// One call of a hook: where the bytes are, and how many are wanted.
struct Transfer {
    core: *mut Core,
    me: TaskId,
    io: VALUE,
    fd: RawFd,
    buffer: VALUE,
    /// Where the bytes are, within the buffer and in memory. Looked up anew after each wait: what is not
    /// locked may be freed meanwhile, or be another buffer's.
    offset: usize,
    base: Cell<*mut u8>,
    /// The bytes that may be moved.
    size: usize,
    /// The bytes that must be moved, unless the file ends; 0 for one attempt.
    minimum: usize,
    /// The position in the file, or [`CURRENT`].
    position: i64,
    /// Whether the hook may answer -EAGAIN instead of waiting.
    single: bool,
    writes: bool,
}

/// A count, or -errno.
type Moved = Result<isize, Raise>;

impl Transfer {
    /// Reads the arguments (io, buffer[, from], a, b), where (a, b) is (length, offset) or, from
    /// interface 4 on, (offset, length).
    unsafe fn new(
        this: VALUE,
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
            let core = get(this).core()?;
            let (io, buffer) = (arguments[0], arguments[1]);
            let fd = sys::rb_io_descriptor(io);
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
            let single = INTERFACE.load(Ordering::Relaxed) > LAST_WITH_MINIMUM;
            let (length, offset) = if single {
                (number(least + 1, "Length")?, number(least, "Offset")?)
            } else {
                (number(least, "Length")?, number(least + 1, "Offset")?)
            };
            let (mut base, mut size) = (std::ptr::null_mut::<c_void>(), 0);
            if writes {
                sys::rb_io_buffer_get_bytes_for_reading(buffer, (&raw mut base).cast(), &mut size);
            } else {
                sys::rb_io_buffer_get_bytes_for_writing(buffer, &mut base, &mut size);
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
            })
        }
    }

    /// Moves bytes until the minimum is reached (all of them, for a write), and returns the count.
    unsafe fn run(&self) -> Outcome {
        let minimum = match (self.single, self.writes) {
            (true, _) => 0,
            // A short write inside a flush is lost (scheduler_contract, trap 2).
            (false, true) => self.size,
            (false, false) => self.minimum,
        };
        let mut moved = 0;
        if self.size == 0 {
            return Ok(sys::fixnum(0));
        }
        loop {
            // SAFETY: the bytes from `moved` on are within the buffer.
            let count = unsafe { self.once(moved)? };
            if count <= 0 {
                // An error after progress shows at the next operation.
                let result = if moved > 0 {
                    moved as i64
                } else {
                    count as i64
                };
                return Ok(sys::fixnum(result));
            }
            moved += count as usize;
            if moved >= minimum {
                return Ok(sys::fixnum(moved as i64));
            }
        }
    }

    /// Moves bytes once, waiting if it must.
    unsafe fn once(&self, done: usize) -> Moved {
        // SAFETY: as `run`; `core` is alive while a hook of its scheduler runs.
        unsafe {
            let mut descriptor = (*self.core).descriptors.get(self.fd, self.io);
            let features = (*self.core).machine.features();
            let mut first = self.writes || !descriptor.drained || self.position != CURRENT;
            if self.writes && descriptor.kind == Kind::Socket && self.has_company() {
                let result = self.submit(descriptor.kind, done)?;
                if result != -(libc::ENOTSOCK as isize) {
                    return Ok(result);
                }
                descriptor = self.relearn();
            }
            loop {
                let may_try = match descriptor.kind {
                    Kind::Socket => features.dontwait,
                    Kind::File if self.writes => {
                        self.size - done <= WRITTEN_AT_ONCE
                            && (*self.core).descriptors.writes_to_cache(self.fd)
                    }
                    _ => features.nowait && !descriptor.no_nowait,
                };
                if first && may_try {
                    match self.attempt(descriptor.kind, done) {
                        Ok(count) => {
                            if !self.writes && descriptor.kind != Kind::File {
                                let drained = count < self.size - done;
                                if drained != descriptor.drained {
                                    (*self.core).descriptors.set_drained(self.fd, drained);
                                }
                            }
                            return Ok(count as isize);
                        }
                        Err(libc::EAGAIN) => {}
                        Err(libc::EINTR) => continue,
                        Err(libc::EOPNOTSUPP) if descriptor.kind != Kind::Socket => {
                            (*self.core).descriptors.set_no_nowait(self.fd);
                            descriptor.no_nowait = true;
                        }
                        Err(libc::ENOTSOCK) if descriptor.kind == Kind::Socket => {
                            descriptor = self.relearn();
                            continue;
                        }
                        Err(errno) => return Ok(-(errno as isize)),
                    }
                }
                match descriptor.kind {
                    Kind::Stream => {
                        if !self.writes && self.is_nonblocking_read() {
                            if !may_try || descriptor.no_nowait {
                                return Ok(self.read_now(done));
                            }
                            if first {
                                return Ok(-(libc::EAGAIN as isize));
                            }
                            first = true;
                            continue;
                        }
                        if descriptor.no_nowait || !features.nowait {
                            // A terminal and the like: the ring waits, unless O_NONBLOCK forbids it.
                            match self.submit(descriptor.kind, done)? {
                                result if result == -(libc::EAGAIN as isize) => {}
                                result => return Ok(result),
                            }
                        }
                        self.wait()?;
                        first = true;
                    }
                    Kind::Socket if self.writes => {
                        self.wait()?;
                        if !features.dontwait {
                            return self.submit(descriptor.kind, done);
                        }
                    }
                    Kind::Socket => {
                        let result = self.submit(descriptor.kind, done)?;
                        if result == -(libc::ENOTSOCK as isize) {
                            descriptor = self.relearn();
                            first = true;
                            continue;
                        }
                        let drained = result < (self.size - done) as isize;
                        if drained != descriptor.drained {
                            (*self.core).descriptors.set_drained(self.fd, drained);
                        }
                        return Ok(result);
                    }
                    Kind::File => return self.submit(descriptor.kind, done),
                }
            }
        }
    }

    /// Whether others are about to send as well, so that one system call does for all. Measured: 15 % less CPU for a
    /// request to an HTTP server with 64 connections. With many more fibers than the caches hold, what is saved in the
    /// kernel is lost by switching to each once more.
    unsafe fn has_company(&self) -> bool {
        const LEAST: usize = 4;
        const MOST: usize = 256;
        // SAFETY: as `once`.
        let tasks = unsafe { &(*self.core).machine.tasks };
        tasks.queued() >= LEAST && tasks.waiting() <= MOST
    }

    unsafe fn relearn(&self) -> crate::descriptors::Descriptor {
        // SAFETY: as `once`.
        unsafe {
            (*self.core).descriptors.forget(self.fd);
            (*self.core).descriptors.get(self.fd, self.io)
        }
    }

    /// `read_nonblock` comes to this hook by the same arguments as a blocking read (io.c,
    /// io_read_memory_call), except on a socket.
    unsafe fn is_nonblocking_read(&self) -> bool {
        // SAFETY: called from within the hook.
        self.single || unsafe { sys::called_from(b"io_read", b"read_nonblock") }
    }

    /// Tries without waiting: a count, or the errno.
    unsafe fn attempt(&self, kind: Kind, done: usize) -> Result<usize, i32> {
        // SAFETY: base + done is within the buffer, and size - done bytes follow it.
        let result = unsafe {
            let base = self.base.get().add(done);
            let size = self.size - done;
            if kind == Kind::Socket {
                if self.writes {
                    libc::send(
                        self.fd,
                        base.cast(),
                        size,
                        libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL,
                    )
                } else {
                    libc::recv(self.fd, base.cast(), size, libc::MSG_DONTWAIT)
                }
            } else {
                let vector = libc::iovec {
                    iov_base: base.cast(),
                    iov_len: size,
                };
                let position = self.position_after(done);
                if self.writes && kind == Kind::File {
                    // Most file systems refuse RWF_NOWAIT for buffered writes, and the ring would hand
                    // each to a kernel thread, for ten times the cost of the copy.
                    libc::pwritev2(self.fd, &vector, 1, position, 0)
                } else if self.writes {
                    libc::pwritev2(self.fd, &vector, 1, position, libc::RWF_NOWAIT)
                } else {
                    libc::preadv2(self.fd, &vector, 1, position, libc::RWF_NOWAIT)
                }
            }
        };
        usize::try_from(result).map_err(|_| {
            // SAFETY: errno of the call above.
            unsafe { *libc::__errno_location() }
        })
    }

    /// Reads what is there from a stream that has no RWF_NOWAIT (a terminal; a pipe before Linux 6.5): the count, or a
    /// negative errno. Ruby has put what it calls read_nonblock of into non-blocking mode; what is not is asked first.
    fn read_now(&self, done: usize) -> isize {
        let mut poll = libc::pollfd {
            fd: self.fd,
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one pollfd; base + done is within the buffer, and size - done bytes follow it.
        unsafe {
            if !never_waits(self.fd) && libc::poll(&mut poll, 1, 0) <= 0 {
                return -(libc::EAGAIN as isize);
            }
            let base = self.base.get().add(done);
            match libc::read(self.fd, base.cast(), self.size - done) {
                count if count >= 0 => count,
                _ => -(*libc::__errno_location() as isize),
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

    /// Lets the ring do it, with the buffer locked meanwhile.
    unsafe fn submit(&self, kind: Kind, done: usize) -> Moved {
        // SAFETY: `operate` returns only when the kernel is done with the memory, which the lock keeps
        // in place. The lock is taken off in every case.
        unsafe {
            let base = self.base.get().add(done);
            let size = u32::try_from(self.size - done)
                .unwrap_or(u32::MAX)
                .min(1 << 30);
            let fd = types::Fd(self.fd);
            let position = self.position_after(done) as u64;
            let fixed = (*self.core).machine.fixed_index(base, size as usize);
            let deadline = self.deadline()?;
            // A lock on a slice does not keep the memory, which is another buffer's.
            let mut copy = Vec::new();
            let base = if fixed.is_none() && memory::is_slice(self.buffer) {
                copy.extend_from_slice(std::slice::from_raw_parts(base, size as usize));
                copy.as_mut_ptr()
            } else {
                base
            };
            let entry = match (kind, self.writes) {
                // Most receives come here after an attempt that found the socket empty; data that came since
                // is found by the poll.
                (Kind::Socket, false) => poll_first(opcode::Recv::new(fd, base, size).build()),
                (Kind::Socket, true) => opcode::Send::new(fd, base, size)
                    .flags(libc::MSG_NOSIGNAL)
                    .build(),
                (_, writes) => {
                    (*self.core).fixed += u64::from(fixed.is_some());
                    match (writes, fixed) {
                        (false, Some(index)) => opcode::ReadFixed::new(fd, base, size, index)
                            .offset(position)
                            .build(),
                        (true, Some(index)) => opcode::WriteFixed::new(fd, base, size, index)
                            .offset(position)
                            .build(),
                        (false, None) => opcode::Read::new(fd, base, size).offset(position).build(),
                        (true, None) => opcode::Write::new(fd, base, size).offset(position).build(),
                    }
                }
            };
            let (mut ignored, mut length) = (std::ptr::null_mut(), 0);
            let flags = sys::rb_io_buffer_get_bytes(self.buffer, &mut ignored, &mut length);
            let unlocked = flags & sys::IO_BUFFER_LOCKED == 0;
            if unlocked {
                sys::rb_io_buffer_lock(self.buffer);
                (*self.core).waiter(self.me).held = self.buffer;
            }
            (*self.core).waits.begin(self.fd, self.me);
            (*self.core).fixed_use.begin(fixed);
            let result = switch::operate(self.core, self.me, entry, deadline);
            (*self.core).fixed_use.end(fixed);
            (*self.core).waits.end(self.fd, self.me);
            (*self.core).waiter(self.me).held = NIL;
            // In a child of fork `memory::take_over` has done that.
            if unlocked && !(*self.core).is_forked() {
                sys::rb_io_buffer_unlock(self.buffer);
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
            sys::rb_io_buffer_get_bytes(self.buffer, &mut base, &mut size);
            if base.is_null() || self.offset + self.size > size {
                return Err(Raise::misuse(
                    "the buffer was freed or made smaller meanwhile",
                ));
            }
            self.base.set(base.cast::<u8>().add(self.offset));
        }
        Ok(())
    }

    /// Waits until the descriptor is ready.
    unsafe fn wait(&self) -> Result<(), Raise> {
        let events = if self.writes {
            libc::POLLOUT
        } else {
            libc::POLLIN
        };
        // SAFETY: as `once`.
        unsafe {
            let deadline = self.deadline()?;
            match wait_ready(self.core, self.me, self.fd, i64::from(events), deadline)? {
                0 => Err(timed_out(Failure::Timeout)),
                _ => self.locate(),
            }
        }
    }

    /// `io.timeout` counted from now: Ruby leaves it to the hook.
    unsafe fn deadline(&self) -> Result<Option<u64>, Raise> {
        // SAFETY: `io` is an IO, or answers as one.
        match unsafe { sys::rb_io_timeout(self.io) } {
            NIL => Ok(None),
            timeout => durations::deadline(timeout),
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
            unsafe { sys::io_timeout_error() },
            "Blocking operation timed out!",
        ),
    }
}

unsafe fn transfer(
    argc: c_int,
    argv: *const VALUE,
    this: VALUE,
    positioned: bool,
    writes: bool,
) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        sys::method(|| {
            let arguments = std::slice::from_raw_parts(argv, argc as usize);
            Transfer::new(this, arguments, positioned, writes)?.run()
        })
    }
}

/// Reads from an IO into a buffer. `io.timeout` is honoured.
///
/// @method UringMachine::FiberScheduler#io_read(io, buffer, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_read(io, buffer, 0, 0) #=> 5
unsafe extern "C" fn io_read(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, false, false) }
}

/// Writes a buffer to an IO: all of it from `offset` on. `io.timeout` is honoured.
///
/// @method UringMachine::FiberScheduler#io_write(io, buffer, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno if nothing was written
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_write(io, buffer, 0, 0) #=> 5
unsafe extern "C" fn io_write(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, false, true) }
}

/// Reads as `io_read`, at a position of the file.
///
/// @method UringMachine::FiberScheduler#io_pread(io, buffer, from, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file, in bytes
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, 0 at the end of the file, or a negative errno
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_pread(file, buffer, 4096, 0, 0) #=> 4096
unsafe extern "C" fn io_pread(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, true, false) }
}

/// Writes as `io_write`, at a position of the file. Not on Ruby 3.4, which would call it without its lock.
///
/// @method UringMachine::FiberScheduler#io_pwrite(io, buffer, from, length = 0, offset = 0)
/// @param io [IO]
/// @param buffer [IO::Buffer]
/// @param from [Integer] where in the file, in bytes
/// @param length [Integer] the least to move unless the file ends; 0 is one attempt. From scheduler
///   interface 4 on (Ruby 4.1) the order is offset, length, and length is the most
/// @param offset [Integer] where in the buffer
/// @return [Integer] bytes, or a negative errno if nothing was written
/// @raise [IO::TimeoutError] after io.timeout
/// @kernel 5.6
/// @example
///   scheduler.io_pwrite(file, buffer, 4096, 0, 0) #=> 4096
unsafe extern "C" fn io_pwrite(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: as `transfer`.
    unsafe { transfer(argc, argv, this, true, true) }
}

/// The interface of the running Ruby. The variable lets a test call the hooks as a later Ruby will.
unsafe fn interface() -> i64 {
    if let Some(version) = std::env::var("UM_SCHEDULER_INTERFACE")
        .ok()
        .and_then(|text| text.parse().ok())
    {
        return version;
    }
    // SAFETY: constants are looked up on classes that exist since Ruby 3.1; dlsym takes any name.
    unsafe {
        let buffer = rb_sys::rb_const_get(rb_sys::rb_cIO, sys::id("Buffer"));
        let version = sys::id("VERSION");
        if rb_sys::rb_const_defined_from(buffer, version) != 0
            && sys::as_fixnum(rb_sys::rb_const_get(buffer, version)).is_some_and(|v| v >= 3)
        {
            return 4;
        }
        let symbol = c"rb_fiber_scheduler_fiber_interrupt";
        if libc::dlsym(libc::RTLD_DEFAULT, symbol.as_ptr()).is_null() {
            2
        } else {
            3
        }
    }
}

/// The scheduler interface that the hooks speak: RUBY_FIBER_SCHEDULER_VERSION of the running Ruby.
///
/// @method UringMachine::FiberScheduler.interface_version
/// @return [Integer] 2 is Ruby 3.4, 3 is 4.0, 4 is 4.1
/// @example
///   UM::FiberScheduler.interface_version #=> 3
unsafe extern "C" fn interface_version(_class: VALUE) -> VALUE {
    sys::fixnum(INTERFACE.load(Ordering::Relaxed))
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        INTERFACE.store(interface(), Ordering::Relaxed);
        sys::define_singleton_method(
            class,
            c"interface_version",
            interface_version as *const (),
            0,
        );
        sys::define_method(class, c"io_read", io_read as *const (), -1);
        sys::define_method(class, c"io_write", io_write as *const (), -1);
        sys::define_method(class, c"io_pread", io_pread as *const (), -1);
        if INTERFACE.load(Ordering::Relaxed) >= FIRST_WITH_PWRITE {
            sys::define_method(class, c"io_pwrite", io_pwrite as *const (), -1);
        }
    }
}
