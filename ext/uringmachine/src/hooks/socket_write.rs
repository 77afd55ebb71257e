//! BasicSocket#write. What a socket takes at once is written without Ruby's way to `io_write`, which costs four times as much;
//! the rest, and whatever Ruby has to look at, is Ruby's own.

use magnus::prelude::*;
use magnus::{method, Error, RClass, RModule};
use uringmachine_runtime::faults::{self, Attempt};

use crate::classes::fiber_scheduler::{with_plain, with_running};
use crate::classes::turns::{elements, whole};
use crate::machine::Machine;
use crate::os::{transfer, Errno};
use crate::ruby::call::call_super;
use crate::ruby::{
    fiber, fixnum, io, is_string, keep_until_here, string, Outcome, Raise, Value, NIL,
};

/// As IO#write: one message, or segment, whatever it is given.
fn write(socket: Value, arguments: &[magnus::Value]) -> Outcome {
    let scheduler = fiber::current_scheduler();
    match crate::ruby::values(arguments) {
        parts if scheduler == NIL => call_super(parts, false),
        [part] => write_one(scheduler, socket, *part),
        parts @ [_, _, ..] if with_running(scheduler, |_| ()).is_some() => {
            let whole = whole(socket, parts)?;
            let written = match elements(whole)[..] {
                [part] => write_one(scheduler, socket, part),
                ref parts => call_super(parts, false),
            };
            keep_until_here(whole);
            written
        }
        parts => call_super(parts, false),
    }
}

fn write_one(scheduler: Value, socket: Value, part: Value) -> Outcome {
    let written = if is_string(part) {
        with_plain(scheduler, |machine| write_now(machine, socket, part))
    } else {
        None
    };
    let length = match written {
        None | Some(Ok(0)) => return call_super(&[part], false),
        Some(result) => result?,
    };
    let size = string::length(part);
    if length < size {
        // It is Ruby's to wait.
        let rest = string::part(part, length, size - length)?;
        call_super(&[rest], false)?;
    }
    Ok(fixnum(size as i64))
}

/// Writes as much of a String as the socket takes at once; nothing if there is anything else to look at first.
#[inline]
fn write_now(machine: &Machine, socket: Value, string: Value) -> Result<usize, Raise> {
    let Some(fd) = io::writes_bytes(socket) else {
        return Ok(0);
    };
    let has_held_long = machine.parts().turns.has_held_long();
    if has_held_long {
        // The socket may be closed meanwhile.
        return machine.let_go(machine.current_task()).map(|()| 0);
    }
    if !machine.writes_now() || faults::is_in_vain(Attempt::Write) {
        return Ok(0);
    }
    let sent = string::with_bytes(string, |bytes| {
        transfer::send_bytes(fd, bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL)
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
        Err(Errno(errno)) => Err(Raise::errno(errno)),
    }
}

/// CoreGaps.define_socket_write(module): defines `write`.
fn define_socket_write(_module: Value, to: RModule) -> Result<(), Error> {
    to.define_method("write", method!(write, -1))
}

/// Defines what lib/uringmachine/core_ext/io.rb has it by.
pub fn define(class: RClass) -> Result<(), Error> {
    let gaps = class.define_module("CoreGaps")?;
    gaps.define_singleton_method("define_socket_write", method!(define_socket_write, 1))
}
