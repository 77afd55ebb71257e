//! IO#readpartial, #gets and their like, where Ruby has read nothing ahead: the bytes are read without its way to `io_read`,
//! which costs several times as much, and waits with all its frames and an IO::Buffer.
//!
//! Whatever is more than one attempt, or than waiting for the first bytes to come, is Ruby's own.

use std::os::fd::RawFd;

use magnus::prelude::*;
use magnus::{method, Error, RClass, RModule};
use uringmachine_runtime::faults::{self, Attempt};
use uringmachine_runtime::TaskId;

use super::io_transfer::timed_out;
use crate::classes::fiber_scheduler::with_plain;
use crate::lending::scratch::{SIZE, WAITING_SIZE};
use crate::machine::closing::{Ending, Lost};
use crate::machine::hints::{Descriptor, Kind};
use crate::machine::operate::Failure;
use crate::machine::poll::wait_ready;
use crate::machine::positions::CURRENT;
use crate::machine::Machine;
use crate::os::{transfer, Errno};
use crate::ruby::call::{call_super, keyword_given};
use crate::ruby::room::Room;
use crate::ruby::{
    as_fixnum, buffered, duration, fiber, fixnum, io, is_frozen, is_string, string, values,
    Outcome, Raise, Value, NIL,
};

/// What became of a read.
enum Read {
    Done,
    /// It is Ruby's to do.
    Plain,
    /// It is Ruby's to raise.
    Failed(Errno),
}

/// Where bytes go to.
trait Sink {
    /// Whether it takes what there is more of than has come while it was waited for.
    const TAKES_MORE: bool;

    /// How many there is room for.
    fn most(&self) -> usize;

    /// Has them put there by `receive`, which calls nothing of Ruby's.
    fn take(
        &mut self,
        machine: &Machine,
        receive: impl FnOnce(&mut Room) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Raise>;

    /// Puts bytes there that have come meanwhile.
    fn put(&mut self, machine: &Machine, bytes: &[u8]) -> Result<(), Raise>;

    /// Goes without what it does not need while it waits.
    fn rest(&self, machine: &Machine);
}

/// The buffer that Ruby reads ahead into.
struct Ahead(Value);

impl Ahead {
    /// Has a buffer that another one does without.
    #[inline]
    fn fetch_buffer(&self, machine: &Machine) {
        if buffered::lacks_buffer(self.0) {
            if let Some(spare) = machine.parts().lending.spares.pop() {
                buffered::give_buffer(self.0, spare);
            }
        }
    }
}

impl Sink for Ahead {
    /// It is read ahead when it is wanted.
    const TAKES_MORE: bool = false;

    fn most(&self) -> usize {
        buffered::CAPACITY as usize
    }

    #[inline]
    fn take(
        &mut self,
        machine: &Machine,
        receive: impl FnOnce(&mut Room) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Raise> {
        self.fetch_buffer(machine);
        buffered::fill(self.0, receive)
    }

    fn put(&mut self, machine: &Machine, bytes: &[u8]) -> Result<(), Raise> {
        self.fetch_buffer(machine);
        buffered::put(self.0, bytes)
    }

    /// The buffer is another one's meanwhile: a page less for each that waits, and one that is in the caches for who goes on.
    fn rest(&self, machine: &Machine) {
        const KEPT: usize = 64;
        if let Some(spare) = buffered::take_buffer(self.0) {
            let spares = &mut machine.parts().lending.spares;
            if spares.len() < KEPT {
                spares.push(spare);
            }
        }
    }
}

/// A String; a new one if it is nil.
struct Into {
    string: Value,
    is_new: bool,
    /// How many bytes it has that were read.
    length: usize,
    /// How many it is to have.
    limit: usize,
}

impl Into {
    /// The String, with no more room than it needs.
    fn finish(&self) -> Outcome {
        if self.is_new {
            string::shrink(self.string)?;
        }
        Ok(self.string)
    }

    fn new(string: Value, limit: usize) -> Self {
        Self {
            string,
            is_new: string == NIL,
            length: 0,
            limit,
        }
    }
}

impl Sink for Into {
    const TAKES_MORE: bool = true;

    fn most(&self) -> usize {
        self.limit - self.length
    }

    #[inline]
    fn take(
        &mut self,
        machine: &Machine,
        receive: impl FnOnce(&mut Room) -> Result<usize, Errno>,
    ) -> Result<Result<usize, Errno>, Raise> {
        let received = if self.string != NIL {
            string::receive(self.string, self.length, self.limit, receive)?
        } else if self.limit > SIZE {
            self.string = string::with_capacity(self.limit)?;
            string::receive(self.string, 0, self.limit, receive)?
        } else {
            // A copy costs less than a String with more room than it needs.
            let mut block = machine.parts().lending.scratch.take();
            let received = receive(&mut Room::of(&mut block[..self.limit]));
            let string = match received {
                Ok(count) => string::binary(&block[..count]),
                Err(_) => Ok(NIL),
            };
            machine.parts().lending.scratch.give(block);
            self.string = string?;
            received
        };
        self.length += received.unwrap_or(0);
        Ok(received)
    }

    fn rest(&self, _machine: &Machine) {}

    fn put(&mut self, _machine: &Machine, bytes: &[u8]) -> Result<(), Raise> {
        let end = self.length + bytes.len();
        if self.string == NIL {
            self.string = string::binary(bytes)?;
        } else {
            let put = string::receive(self.string, self.length, end, |room| {
                Ok::<_, Errno>(room.put(bytes))
            });
            put.map(drop)?;
        }
        self.length = end;
        Ok(())
    }
}

/// One read of an IO.
struct Reading<'a, S> {
    machine: &'a Machine,
    me: TaskId,
    io: Value,
    sink: &'a mut S,
}

impl<S: Sink> Reading<'_, S> {
    fn run(&mut self) -> Result<Read, Raise> {
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
    fn descriptor(&self, fd: RawFd) -> Option<Descriptor> {
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
        self.sink.rest(self.machine);
        let was_part = self.machine.parts().begin_steps(self.me);
        let (result, received) = self.machine.receive(self.me, fd, most, deadline);
        let is_lost = self.end_steps(fd, was_part, result.is_ok());
        let put = match (&result, received.bytes()) {
            (_, []) => Ok(()),
            (Ok(_), bytes) => self.sink.put(self.machine, bytes),
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

    /// The descriptor may have been closed, and not by the IO, and be another file's: then it is not read from any more, and the
    /// next read, if this one has an answer, raises that. Says whether that is so.
    fn end_steps(&self, fd: RawFd, was_part: bool, has_answer: bool) -> bool {
        let mut parts = self.machine.parts();
        let exception = parts.waiter(self.me).closed_by;
        parts.end_steps(self.me, was_part);
        if exception == NIL {
            return false;
        }
        if has_answer {
            parts.note_lost(Lost {
                task: self.me,
                io: self.io,
                fd,
                ending: Ending::Raises(exception),
            });
        }
        true
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
        match io::timeout(self.io)? {
            NIL => Ok(None),
            timeout => duration::deadline(timeout),
        }
    }
}

/// Does something by the machine of the current fiber's scheduler, if that is one of ours.
#[inline]
fn with_scheduler<T>(body: impl FnOnce(&Machine) -> T) -> Option<T> {
    match fiber::current_scheduler() {
        NIL => None,
        scheduler => with_plain(scheduler, body),
    }
}

/// Reads without Ruby, if that can be.
#[inline]
fn read(io: Value, sink: &mut impl Sink) -> Result<Read, Raise> {
    if buffered::reads_bytes(io).is_none() {
        return Ok(Read::Plain);
    }
    let read = with_scheduler(|machine| {
        let me = machine.current_task();
        let read = Reading {
            machine,
            me,
            io,
            sink,
        }
        .run();
        if let Ok(Read::Failed(errno)) = read {
            note_failed(machine, me, io, errno);
        }
        read
    });
    read.unwrap_or(Ok(Read::Plain))
}

/// Has the coming `io_read` answer what has failed already: the kernel tells of it once.
#[cold]
pub(super) fn note_failed(machine: &Machine, task: TaskId, io: Value, errno: Errno) {
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

/// A method that reads from what Ruby has read ahead.
fn ahead(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    read(io, &mut Ahead(io))?;
    call_super(values(arguments), has_keywords)
}

/// The same, without arguments.
fn ahead_plainly(io: Value) -> Outcome {
    read(io, &mut Ahead(io))?;
    call_super(&[], false)
}

/// As IO#gets.
fn gets(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    read(io, &mut Ahead(io))?;
    if arguments.is_empty() && buffered::separates_lines() {
        return buffered::gets(io);
    }
    call_super(values(arguments), has_keywords)
}

/// The most that is read at once without Ruby.
const MOST: i64 = 1 << 20;

/// A length, and the String that is to have the bytes, if one is given; `None` for what Ruby has to look at.
fn into(arguments: &[Value]) -> Option<Into> {
    let (length, string) = match *arguments {
        [length] => (length, NIL),
        [length, NIL] => (length, NIL),
        [length, string] if is_string(string) && !is_fixed(string) => (length, string),
        _ => return None,
    };
    match as_fixnum(length) {
        Some(length @ 1..=MOST) => Some(Into::new(string, length as usize)),
        _ => None,
    }
}

/// Whether a String cannot be changed.
fn is_fixed(string: Value) -> bool {
    is_frozen(string) || string::is_locked(string)
}

/// As IO#readpartial.
fn readpartial(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    let arguments = values(arguments);
    if let Some(mut into) = into(arguments) {
        if let Read::Done = read(io, &mut into)? {
            return into.finish();
        }
    }
    call_super(arguments, has_keywords)
}

/// As IO#read.
fn read_length(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    let arguments = values(arguments);
    let Some(mut into) = into(arguments) else {
        return call_super(arguments, has_keywords);
    };
    while into.most() > 0 {
        match read(io, &mut into) {
            Ok(Read::Done) => {}
            Ok(_) if into.length == 0 => return call_super(arguments, has_keywords),
            Ok(_) => return read_rest(io, &into),
            Err(raise) => {
                put_back(io, &into);
                return Err(raise);
            }
        }
    }
    into.finish()
}

/// Has Ruby read what is left of a length.
#[cold]
fn read_rest(io: Value, into: &Into) -> Outcome {
    match call_super(&[fixnum(into.most() as i64)], false) {
        Ok(NIL) => {}
        Ok(rest) => string::append_string(into.string, rest)?,
        Err(raise) => {
            put_back(io, into);
            return Err(raise);
        }
    }
    into.finish()
}

/// Has what was read half way be the next that is read.
#[cold]
fn put_back(io: Value, into: &Into) {
    let bytes = string::copy(into.string);
    if into.length > 0 && into.length <= bytes.len() {
        // One that is closed by now has no next.
        let _ = buffered::unread(io, &bytes[..into.length]);
    }
}

/// As IO#pread.
fn pread(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    let arguments = values(arguments);
    if let [length, from, string @ ..] = arguments {
        let from = as_fixnum(*from).filter(|from| *from >= 0);
        let sink = into(&[&[*length], string].concat());
        if let (Some(from), Some(mut into)) = (from, sink) {
            if read_at(io, &mut into, from)? {
                return into.finish();
            }
        }
    }
    call_super(arguments, has_keywords)
}

/// Reads from a place in a file what the page cache has; says whether it had any.
fn read_at(io: Value, into: &mut Into, from: i64) -> Result<bool, Raise> {
    let Some(fd) = buffered::reads(io) else {
        return Ok(false);
    };
    let found = with_scheduler(|machine| {
        machine.take_turns_with(0)?;
        let reading = Reading {
            machine,
            me: machine.current_task(),
            io,
            sink: into,
        };
        match reading.descriptor(fd) {
            Some(descriptor) if descriptor.kind == Kind::File => {}
            _ => return Ok(false),
        }
        if faults::is_in_vain(Attempt::Read) || buffered::reads(io) != Some(fd) {
            return Ok(false);
        }
        let flags = libc::RWF_NOWAIT;
        let read = into.take(machine, |room| transfer::preadv2(fd, room, from, flags))?;
        Ok(matches!(read, Ok(1..)))
    });
    found.unwrap_or(Ok(false))
}

/// CoreGaps.define_reads(module): defines the methods.
fn define_reads(_module: Value, to: RModule) -> Result<(), Error> {
    to.define_method("gets", method!(gets, -1))?;
    for name in ["each_line", "readline"] {
        to.define_method(name, method!(ahead, -1))?;
    }
    for name in ["getc", "getbyte", "readchar", "readbyte", "eof", "eof?"] {
        to.define_method(name, method!(ahead_plainly, 0))?;
    }
    to.define_method("pread", method!(pread, -1))?;
    to.define_method("readpartial", method!(readpartial, -1))?;
    to.define_method("read", method!(read_length, -1))
}

/// Defines what lib/uringmachine/core_ext/io.rb has it by.
pub fn define(class: RClass) -> Result<(), Error> {
    let gaps = class.define_module("CoreGaps")?;
    gaps.define_singleton_method("define_reads", method!(define_reads, 1))
}
