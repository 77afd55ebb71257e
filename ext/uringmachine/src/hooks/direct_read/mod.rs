//! IO#readpartial, #gets and their like, where Ruby has read nothing ahead: the bytes are read without its way to `io_read`,
//! which costs several times as much, and waits with all its frames and an IO::Buffer.
//!
//! Whatever is more than one attempt, or than waiting for the first bytes to come, is Ruby's own.

mod reading;
mod sink;

use magnus::prelude::*;
use magnus::{method, Error, RClass, RModule};
use uringmachine_runtime::faults::{self, Attempt};

use crate::classes::fiber_scheduler::with_plain;
use crate::machine::hints::Kind;
use crate::machine::Machine;
use crate::os::transfer;
use crate::ruby::call::{call_super, keyword_given};
use crate::ruby::{
    as_fixnum, block_given, buffered, fiber, fixnum, is_frozen, is_string, string, values, Outcome,
    Raise, Value, NIL,
};
pub(super) use reading::note_failed;
use reading::{Read, Reading};
use sink::{Ahead, Into, Sink};

/// Does something by the machine of the current fiber's scheduler, if that is one of ours.
#[inline]
pub fn with_scheduler<T>(body: impl FnOnce(&Machine) -> T) -> Option<T> {
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

/// Whether what `gets` is given has it read: a limit of 0 does not, nor does what it refuses.
#[inline]
fn asks_for_bytes(arguments: &[Value], has_keywords: bool) -> bool {
    let limits = match arguments.split_last() {
        None => return true,
        Some((_keywords, limits)) if has_keywords => limits,
        _ => arguments,
    };
    let is_limit = |value: &Value| {
        *value == NIL || is_string(*value) || as_fixnum(*value).is_some_and(|limit| limit != 0)
    };
    limits.len() <= 2 && limits.iter().all(is_limit)
}

/// As IO#readline.
fn readline(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let (arguments, has_keywords) = (values(arguments), keyword_given());
    if asks_for_bytes(arguments, has_keywords) {
        read(io, &mut Ahead(io))?;
    }
    call_super(arguments, has_keywords)
}

/// As IO#each_line: without a block it reads nothing yet.
fn each_line(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let (arguments, has_keywords) = (values(arguments), keyword_given());
    if block_given() && asks_for_bytes(arguments, has_keywords) {
        read(io, &mut Ahead(io))?;
    }
    call_super(arguments, has_keywords)
}

/// A method without arguments that reads from what Ruby has read ahead.
fn ahead_plainly(io: Value) -> Outcome {
    read(io, &mut Ahead(io))?;
    call_super(&[], false)
}

/// As IO#gets.
fn gets(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let (arguments, has_keywords) = (values(arguments), keyword_given());
    if asks_for_bytes(arguments, has_keywords) {
        read(io, &mut Ahead(io))?;
    }
    if arguments.is_empty() && buffered::separates_lines() {
        return buffered::gets(io);
    }
    call_super(arguments, has_keywords)
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
    to.define_method("readline", method!(readline, -1))?;
    to.define_method("each_line", method!(each_line, -1))?;
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
