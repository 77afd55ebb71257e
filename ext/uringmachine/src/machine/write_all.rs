//! Writing all of several buffers.

use uringmachine_runtime::clock;
use uringmachine_runtime::memory::{Memory, Several, MOST_PIECES};
use uringmachine_runtime::operations::{Poll, SendMsg, Writev, CURRENT};
use uringmachine_runtime::position::catch_up;

use super::caller::Caller;
use super::operate::Failure;
use super::wait::Ended;
use crate::ruby::{Raise, Value};

/// How [`write_all`] writes.
#[derive(Clone, Copy)]
pub enum Sink {
    /// By writev, at a position or the current one.
    Write(Option<u64>),
    /// By sendmsg, with these flags.
    Send(i32),
}

/// Writes every byte of every buffer, together. What comes when some are written ends it with their count: see
/// [`Caller::keep`].
pub fn write_all(caller: &Caller, fd: i32, buffers: &[Value], sink: Sink) -> Result<u64, Failure> {
    let mut sources = Vec::with_capacity(buffers.len());
    for buffer in buffers {
        sources.push(caller.source(*buffer, None, "buffer")?);
    }
    let pieces: Vec<_> = sources.iter().flat_map(|source| source.pieces()).collect();
    let write = || write_pieces(caller, fd, pieces, sink);
    match sink {
        Sink::Write(Some(_)) => caller.after_work(fd, write),
        _ => caller.in_turn(fd, write),
    }
}

fn write_pieces<M: Memory>(
    caller: &Caller,
    fd: i32,
    pieces: Vec<M>,
    sink: Sink,
) -> Result<u64, Failure> {
    if pieces.is_empty() || pieces.len() > MOST_PIECES {
        let is_of_messages = caller.machine.is_of_messages(fd);
        if pieces.is_empty() && !is_of_messages {
            return Ok(0);
        }
        if !pieces.is_empty() && is_of_messages {
            // They are one message.
            return Err(Raise::errno(libc::EMSGSIZE).into());
        }
    }
    let mut left = Several::new(pieces);
    let mut total = 0_u64;
    // A close may cut the first one short, too, and the rest is not to be written.
    caller.machine.parts().begin_steps(caller.me);
    let result = loop {
        let moved = match write_once(caller, fd, &mut left, sink, total) {
            Ok(moved) => moved,
            Err(failure) if total > 0 => break caller.keep(failure).map(|()| total),
            Err(failure) => break Err(failure),
        };
        total += moved as u64;
        left.skip(moved);
        if left.left() == 0 {
            break Ok(total);
        }
        if matches!(sink, Sink::Write(None)) {
            catch_up(fd, moved);
        }
    };
    caller.machine.parts().end_steps(caller.me, false);
    result
}

/// Writes once what is left after `total` bytes.
fn write_once<M: Memory>(
    caller: &Caller,
    fd: i32,
    pieces: &mut Several<M>,
    sink: Sink,
    total: u64,
) -> Result<usize, Failure> {
    let moved = match sink {
        Sink::Write(position) => caller.operate(&mut Writev {
            fd,
            pieces,
            offset: position.map_or(CURRENT, |at| at + total),
        })?,
        Sink::Send(flags) => {
            let mut message = SendMsg::new(fd, pieces, flags);
            if total == 0 {
                send_once(caller, fd, flags, |caller, flags| {
                    message.flags = flags;
                    caller.operate(&mut message)
                })?
            } else {
                // A stream, since it took a part.
                caller.operate(&mut message)?
            }
        }
    };
    Ok(moved as usize)
}

/// Sends once, by `send`, which is given the flags. A message is never left to the kernel to send again when there is room
/// for it: that one would be cut off, or empty, since the kernel goes on after the bytes that it has read for the first
/// attempt.
pub fn send_once(
    caller: &Caller,
    fd: i32,
    flags: i32,
    mut send: impl FnMut(&Caller, i32) -> Result<i32, Failure>,
) -> Result<i32, Failure> {
    // How long until the next attempt, in nanoseconds, where poll(2) does not tell when there is room: for a message
    // to a UNIX socket that is not connected.
    const LATER: u64 = 1_000_000;
    let at_once = (flags & !libc::MSG_WAITALL) | libc::MSG_DONTWAIT;
    let mut polled = false;
    loop {
        let caller = caller.again();
        let result = send(&caller, at_once);
        let is_full = matches!(result, Err(Failure::Raise(Raise::Errno(libc::EAGAIN))));
        if !is_full || flags & libc::MSG_DONTWAIT != 0 {
            return result;
        }
        if !caller.machine.is_of_messages(fd) {
            return send(&caller, flags);
        }
        if std::mem::replace(&mut polled, true) {
            let later = clock::now() + LATER;
            if let Ended::Scheduled(value) = caller.machine.pause(caller.me, Some(later))? {
                return Err(Failure::Scheduled(value));
            }
        }
        let events = libc::POLLOUT as u32;
        caller.operate(&mut Poll { fd, events })?;
    }
}
