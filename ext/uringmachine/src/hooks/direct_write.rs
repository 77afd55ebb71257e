//! IO#write, where Ruby has nothing to write before: what a socket, a pipe or the page cache takes at once is written without its
//! way to `io_write`, which costs four times as much; the rest, and whatever Ruby has to look at, is Ruby's own.

use std::os::fd::RawFd;

use magnus::prelude::*;
use magnus::{method, Error, RClass, RModule};
use uringmachine_runtime::faults::{self, Attempt};

use super::direct_read::note_failed;
use super::io_transfer::WRITTEN_AT_ONCE;
use crate::classes::fiber_scheduler::{with_plain, with_running};
use crate::classes::turns::{elements, whole};
use crate::machine::hints::Kind;
use crate::machine::positions::CURRENT;
use crate::machine::Machine;
use crate::os::{transfer, Errno};
use crate::ruby::call::call_super;
use crate::ruby::{
    buffered, classes, fiber, fixnum, is_a, is_string, keep_until_here, string, Outcome, Raise,
    Value, NIL,
};

/// As IO#write. What a socket is given is one message, or segment.
fn write(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let parts = crate::ruby::values(arguments);
    match (fiber::current_scheduler(), parts) {
        (NIL, _) => call_super(parts, false),
        (scheduler, [part]) => write_one(scheduler, io, *part),
        (scheduler, [_, _, ..]) if is_socket(io)? && runs_here(scheduler) => {
            let whole = whole(io, parts)?;
            let written = match elements(whole)[..] {
                [part] => write_one(scheduler, io, part),
                ref parts => call_super(parts, false),
            };
            keep_until_here(whole);
            written
        }
        _ => call_super(parts, false),
    }
}

/// Whether a scheduler runs fibers by a machine of this thread.
fn runs_here(scheduler: Value) -> bool {
    with_plain(scheduler, |_| ())
        .or_else(|| with_running(scheduler, |_| ()))
        .is_some()
}

fn is_socket(io: Value) -> Result<bool, Raise> {
    Ok(is_a(io, classes::at("BasicSocket")?))
}

fn write_one(scheduler: Value, io: Value, part: Value) -> Outcome {
    // Nothing is no message.
    let written = if is_string(part) && string::length(part) > 0 {
        with_plain(scheduler, |machine| write_now(machine, io, part))
    } else {
        None
    };
    let length = written.unwrap_or(Ok(0))?;
    let size = string::length(part);
    if length == 0 {
        return call_super(&[part], false);
    }
    if length < size {
        // It is Ruby's to wait.
        let rest = string::part(part, length, size - length)?;
        call_super(&[rest], false)?;
    }
    Ok(fixnum(size as i64))
}

/// Writes as much of a String as is taken at once; nothing if there is anything else to look at first.
#[inline]
fn write_now(machine: &Machine, io: Value, string: Value) -> Result<usize, Raise> {
    let has_held_long = machine.parts().turns.has_held_long();
    if has_held_long {
        machine.let_go(machine.current_task())?;
    }
    // Others may have run.
    let Some(fd) = buffered::writes_bytes(io) else {
        return Ok(0);
    };
    if !machine.writes_now() || faults::is_in_vain(Attempt::Write) {
        return Ok(0);
    }
    let Some(kind) = kind(machine, io, fd, string::length(string)) else {
        return Ok(0);
    };
    let sent = string::with_bytes(string, |bytes| match kind {
        Kind::Stream => transfer::pwritev2(fd, &bytes, CURRENT, libc::RWF_NOWAIT),
        Kind::File => transfer::pwritev2(fd, &bytes, CURRENT, 0),
        _ => transfer::send(fd, &bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL),
    });
    match sent {
        // After a part of it nobody else has a turn before `io_write` looks after the descriptor's close.
        Ok(count) if count < string::length(string) => Ok(count),
        Ok(count) => {
            machine.parts().turns.count_at_once(count);
            Ok(count)
        }
        // What is no socket, or cannot take any now.
        Err(Errno(libc::EAGAIN | libc::EINTR | libc::ENOTSOCK | libc::EOPNOTSUPP)) => Ok(0),
        Err(errno) => {
            note_failed(machine, machine.current_task(), io, errno);
            Ok(0)
        }
    }
}

/// What a descriptor is of that may be written to now without waiting, or waits no longer than a copy takes.
#[inline]
fn kind(machine: &Machine, io: Value, fd: RawFd, size: usize) -> Option<Kind> {
    let mut parts = machine.parts();
    let features = parts.driver.features();
    let descriptor = parts.descriptors.get(fd, io);
    let writes = match descriptor.kind {
        Kind::Socket | Kind::Messages => true,
        Kind::Stream => features.nowait && !descriptor.no_nowait,
        // By what is known for sure: a write to another file might wait.
        Kind::File => {
            size <= WRITTEN_AT_ONCE
                && parts.descriptors.get_fresh(fd, io).kind == Kind::File
                && parts.descriptors.writes_to_cache(fd)
        }
        Kind::Terminal => false,
    };
    writes.then_some(descriptor.kind)
}

/// CoreGaps.define_write(module): defines `write`.
fn define_write(_module: Value, to: RModule) -> Result<(), Error> {
    to.define_method("write", method!(write, -1))
}

/// Defines what lib/uringmachine/core_ext/io.rb has it by.
pub fn define(class: RClass) -> Result<(), Error> {
    let gaps = class.define_module("CoreGaps")?;
    gaps.define_singleton_method("define_write", method!(define_write, 1))
}
