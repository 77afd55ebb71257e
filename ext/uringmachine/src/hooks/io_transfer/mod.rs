//! How bytes move between a descriptor and a buffer, beneath io_read, io_write, io_pread and io_pwrite.
//!
//! Each tries without waiting first, unless the descriptor's last attempt says that there is nothing to be had. Only
//! then a socket's or a file's memory is given to the kernel, and [`Machine::operate`](crate::machine::Machine::operate) takes it back before the hook
//! returns; a pipe or a terminal is polled and then tried again. Where a call may wait although the descriptor is
//! ready, it is made on a thread.

mod attempt;
mod by_kind;
mod lend;

pub(super) use by_kind::WRITTEN_AT_ONCE;

use std::cell::Cell;
use std::os::fd::RawFd;

use uringmachine_runtime::faults::{self, Attempt};
use uringmachine_runtime::TaskId;

use crate::classes::fiber_scheduler::Scheduler;
use crate::lending::hooked::Part;
use crate::machine::closing::Ending;
use crate::machine::hints::Kind;
use crate::machine::operate::Failure;
use crate::machine::positions::CURRENT;
use crate::machine::Machine;
use crate::os::fd::Fd;
use crate::ruby::call::called_from;
use crate::ruby::io_buffer::Buffer;
use crate::ruby::this::This;
use crate::ruby::{buffered, classes, fixnum, io, to_long, values, version, Outcome, Raise, Value};

/// One call of a hook: where the bytes are, and how many are wanted.
struct Transfer<'a> {
    machine: &'a Machine,
    me: TaskId,
    io: Value,
    fd: RawFd,
    /// The bytes that may be moved.
    part: Part,
    /// The bytes that must be moved, unless the file ends; 0 for one attempt.
    minimum: usize,
    /// The position in the file, or [`CURRENT`].
    position: i64,
    /// Whether the hook may answer -EAGAIN instead of waiting.
    single: bool,
    writes: bool,
    /// Ruby reads ahead: the bytes go to the IO's own buffer, which reads without a hook fill as well (`direct_read`).
    is_ahead: bool,
    /// It has waited: the descriptor may be closed by now, and another file's.
    stepping: Cell<bool>,
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

impl<'a> Transfer<'a> {
    /// Reads the arguments (io, buffer[, from], a, b), where (a, b) is (length, offset) or, from
    /// interface 4 on, (offset, length).
    fn new(
        machine: &'a Machine,
        arguments: &[Value],
        positioned: bool,
        writes: bool,
    ) -> Result<Self, Raise> {
        let least = 2 + usize::from(positioned);
        if !(least..=least + 2).contains(&arguments.len()) {
            return Err(Raise::argument(&format!(
                "wrong number of arguments (given {}, expected {least}..{})",
                arguments.len(),
                least + 2
            )));
        }
        let (io, buffer) = (arguments[0], arguments[1]);
        let fd = io::descriptor(io)?;
        let position = if positioned {
            match to_long(arguments[2])? {
                from if from >= 0 => from,
                _ => return Err(Raise::errno(libc::EINVAL)),
            }
        } else {
            CURRENT
        };
        let single = !version::has_minimum();
        let (length, offset) = match single {
            true => (least + 1, least),
            false => (least, least + 1),
        };
        let length = number(arguments.get(length), "Length")?;
        let offset = number(arguments.get(offset), "Offset")?;
        let (buffer, bytes) = if writes {
            Buffer::to_be_read(buffer)?
        } else {
            Buffer::to_be_written(buffer)?
        };
        if offset > bytes.length {
            return Err(Raise::argument(
                "Specified offset is bigger than the buffer size!",
            ));
        }
        let left = bytes.length - offset;
        if length > left {
            return Err(Raise::argument(
                "Specified offset+length is bigger than the buffer size!",
            ));
        }
        let (size, minimum) = if single { (length, 0) } else { (left, length) };
        let is_ahead = !writes && !positioned && buffered::is_ahead(io, bytes.base);
        Ok(Self {
            machine,
            me: machine.current_task(),
            io,
            fd,
            part: Part::new(buffer, bytes, offset, size),
            minimum,
            position,
            single,
            writes,
            is_ahead,
            stepping: Cell::new(false),
        })
    }

    /// Moves bytes until the minimum is reached (all of them, for a write), and returns the count.
    fn run(&self) -> Outcome {
        let lost = self.machine.parts().take_lost(self.me, self.io, self.fd);
        match lost {
            None => {}
            Some(Ending::Raises(exception)) => return Err(Raise::Exception(exception)),
            Some(Ending::Answers(errno)) => return Ok(fixnum(-i64::from(errno))),
        }
        let result = self.move_bytes();
        if self.stepping.get() {
            // What the close of the descriptor was to raise is for the next operation if this one has moved something.
            (self.machine.parts()).end_steps_on(self.me, false, self.io, self.fd, result.is_ok());
        }
        result.map(|count| fixnum(count as i64))
    }

    fn move_bytes(&self) -> Moved {
        let minimum = match (self.single, self.writes) {
            (true, _) => 0,
            // A short write inside a flush is lost (scheduler_contract, trap 2).
            (false, true) => self.part.length(),
            (false, false) => self.minimum,
        };
        let mut moved = 0;
        loop {
            let closed = match self.stepping.get() {
                true => self.machine.parts().closed(self.me),
                false => None,
            };
            let result = match closed {
                Some(raise) => Err(raise),
                None => self.once(moved),
            };
            let count = match result {
                // What was to be raised is raised at the next wait; the end of `io.timeout`, or of the IO, shows in
                // the next operation.
                Err(raise) if moved > 0 => {
                    self.keep(raise)?;
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
    fn keep(&self, raise: Raise) -> Result<(), Raise> {
        if raise.is_a(classes::io_timeout_error()) {
            return Ok(());
        }
        let mut parts = self.machine.parts();
        match raise {
            Raise::Exception(error) if error == parts.waiter(self.me).closed_by => Ok(()),
            raise => parts.keep_raise(self.me, raise),
        }
    }

    /// Moves bytes once, waiting if it must.
    fn once(&self, done: usize) -> Moved {
        loop {
            let (mut descriptor, features) = {
                let mut parts = self.machine.parts();
                let features = parts.driver.features();
                (parts.descriptors.get(self.fd, self.io), features)
            };
            descriptor.drained |= faults::is_in_vain(Attempt::Read);
            let step = match descriptor.kind {
                Kind::File => Step::Done(self.with_file(descriptor, features, done)?),
                kind if self.position != CURRENT && self.has_no_position(kind) => {
                    Step::Done(-(libc::ESPIPE as isize))
                }
                Kind::Messages if self.writes => self.with_socket(descriptor, features, done)?,
                // Nothing is to be moved, and no message of nothing.
                _ if self.part.length() == done => Step::Done(0),
                Kind::Socket | Kind::Messages => self.with_socket(descriptor, features, done)?,
                Kind::Stream => self.with_stream(descriptor, features, done)?,
                Kind::Terminal if self.writes => Step::Done(self.write_to_terminal(done)?),
                Kind::Terminal => Step::Done(self.read_terminal(done)?),
            };
            match step {
                Step::Done(count) => return Ok(count),
                Step::Mistaken => self.machine.parts().descriptors.forget(self.fd),
            }
        }
    }

    fn has_no_position(&self, kind: Kind) -> bool {
        kind.is_socket() || Fd(self.fd).position().is_none()
    }

    /// `read_nonblock` comes to this hook by the same arguments as a blocking read (io.c,
    /// io_read_memory_call), except on a socket.
    fn is_nonblocking_read(&self) -> bool {
        self.single || called_from(b"io_read", &[b"read_nonblock"])
    }

    fn events(&self) -> i16 {
        if self.writes {
            libc::POLLOUT
        } else {
            libc::POLLIN
        }
    }

    fn position_after(&self, done: usize) -> i64 {
        if self.position == CURRENT {
            CURRENT
        } else {
            self.position + done as i64
        }
    }
}

/// A number of bytes that may be left out.
#[inline(always)]
fn number(value: Option<&Value>, name: &str) -> Result<usize, Raise> {
    match value {
        None => Ok(0),
        Some(value) => usize::try_from(to_long(*value)?).map_err(|_| is_negative(name)),
    }
}

#[cold]
fn is_negative(name: &str) -> Raise {
    Raise::argument(&format!("{name} can't be negative"))
}

/// The error that a failed operation raises; IO::TimeoutError after `io.timeout`.
pub fn timed_out(failure: Failure) -> Raise {
    match failure {
        Failure::Raise(raise) => raise,
        Failure::Scheduled(_) => Raise::errno(libc::EINTR),
        Failure::Timeout => {
            Raise::new(classes::io_timeout_error(), "Blocking operation timed out!")
        }
    }
}

/// Runs a hook of a transfer.
#[inline]
pub fn transfer(
    this: This<Scheduler>,
    arguments: &[magnus::Value],
    positioned: bool,
    writes: bool,
) -> Outcome {
    transfer_on(this.machine()?, arguments, positioned, writes)
}

/// As [`transfer`], on a machine.
#[inline]
pub fn transfer_on(
    machine: &Machine,
    arguments: &[magnus::Value],
    positioned: bool,
    writes: bool,
) -> Outcome {
    // Before the descriptor has a number here, which might be another file's after it.
    let has_held_long = machine.parts().turns.has_held_long();
    if has_held_long {
        machine.let_go(machine.current_task())?;
    }
    Transfer::new(machine, values(arguments), positioned, writes)?.run()
}
