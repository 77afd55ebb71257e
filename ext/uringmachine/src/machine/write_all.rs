//! Writing all of several buffers.

use uringmachine_runtime::position::catch_up;
use uringmachine_runtime::{opcode, types, Entry};

use super::caller::Caller;
use super::switch::{self, Ended, Failure};
use crate::lending::Source;
use crate::ruby::{Raise, NIL, VALUE};

/// How [`write_all`] writes.
#[derive(Clone, Copy)]
pub enum Sink {
    /// By writev, at a position or the current one.
    Write(Option<u64>),
    /// By sendmsg, with these flags.
    Send(i32),
}

/// The most pieces that one call takes (UIO_MAXIOV).
const MOST_PIECES: usize = 1024;

/// Writes every byte of every buffer, together. What comes when some are written ends it with their count: see
/// [`Caller::keep`].
pub unsafe fn write_all(
    caller: &Caller,
    fd: i32,
    buffers: &[VALUE],
    sink: Sink,
) -> Result<u64, Failure> {
    // SAFETY: the sources keep the memory in place until they are released, and their objects are
    // held by the core meanwhile; waits are protected, so this frame's vectors are dropped.
    unsafe {
        let core = caller.core;
        let mut sources = Vec::with_capacity(buffers.len());
        let mut failed = None;
        for buffer in buffers {
            match Source::new(core, *buffer, None, "buffer") {
                Ok(source) => sources.push(source),
                Err(raise) => {
                    failed = Some(raise);
                    break;
                }
            }
        }
        let result = match failed {
            Some(raise) => Err(Failure::Raise(raise)),
            None => {
                let held = sources.iter().map(Source::held).collect();
                let hold = (*core).lending.holds.insert(held);
                let write = || write_sources(caller, fd, &sources, sink);
                let result = match sink {
                    Sink::Write(Some(_)) => caller.after_work(fd, write),
                    _ => caller.in_turn(fd, write),
                };
                (*core).lending.holds.remove(hold);
                result
            }
        };
        for source in sources {
            source.release(core);
        }
        result
    }
}

unsafe fn write_sources(
    caller: &Caller,
    fd: i32,
    sources: &[Source],
    sink: Sink,
) -> Result<u64, Failure> {
    let mut pieces: Vec<libc::iovec> = sources
        .iter()
        .filter(|source| source.length > 0)
        .map(|source| libc::iovec {
            iov_base: source.pointer.cast_mut().cast(),
            iov_len: source.length,
        })
        .collect();
    if pieces.is_empty() || pieces.len() > MOST_PIECES {
        // SAFETY: the core is alive while one of its fibers runs a method.
        if !unsafe { (*caller.core).is_of_messages(fd) } {
            if pieces.is_empty() {
                return Ok(0);
            }
        } else if !pieces.is_empty() {
            // They are one message.
            return Err(Raise::errno(libc::EMSGSIZE).into());
        }
    }
    let mut left = pieces.as_mut_slice();
    let mut total = 0_u64;
    let mut stepped = false;
    // SAFETY: the core is alive while one of its fibers runs a method; the pieces are on this frame.
    unsafe {
        let result = loop {
            let moved = match write_once(caller, fd, left, sink, total) {
                Ok(moved) => moved,
                Err(failure) if total > 0 => break caller.keep(failure).map(|()| total),
                Err(failure) => break Err(failure),
            };
            total += moved as u64;
            left = advance(left, moved);
            if matches!(sink, Sink::Write(None)) && !left.is_empty() {
                catch_up(fd, moved);
            }
            if left.is_empty() {
                break Ok(total);
            }
            stepped = true;
            (*caller.core).waiter(caller.me).stepping = true;
        };
        if stepped {
            let waiter = (*caller.core).waiter(caller.me);
            waiter.stepping = false;
            waiter.closed_by = NIL;
        }
        result
    }
}

/// Writes once what is left after `total` bytes.
///
/// # Safety
/// The pieces stay in place until this returns.
unsafe fn write_once(
    caller: &Caller,
    fd: i32,
    left: &mut [libc::iovec],
    sink: Sink,
    total: u64,
) -> Result<usize, Failure> {
    let count = left.len().min(MOST_PIECES);
    // SAFETY: the message is on this frame, which `operate` does not leave before the kernel is done with it.
    let moved = unsafe {
        match sink {
            Sink::Write(position) => {
                let offset = position.map_or(crate::ruby::arguments::CURRENT, |at| at + total);
                let entry = opcode::Writev::new(types::Fd(fd), left.as_ptr(), count as u32)
                    .offset(offset)
                    .build();
                caller.operate(entry)?
            }
            Sink::Send(flags) => {
                let mut message: libc::msghdr = std::mem::zeroed();
                message.msg_iov = left.as_mut_ptr();
                message.msg_iovlen = count;
                let message = &raw const message;
                let entry = |flags: i32| {
                    opcode::SendMsg::new(types::Fd(fd), message)
                        .flags(flags as u32)
                        .build()
                };
                if total == 0 {
                    send_once(caller, fd, flags, entry)?
                } else {
                    // A stream, since it took a part.
                    caller.operate(entry(flags))?
                }
            }
        }
    };
    Ok(moved as usize)
}

/// The pieces without their first `moved` bytes.
fn advance(mut left: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = left.first_mut() {
        if moved < first.iov_len {
            // SAFETY: the piece is longer than what is taken off it.
            first.iov_base = unsafe { first.iov_base.cast::<u8>().add(moved).cast() };
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        left = &mut left[1..];
    }
    left
}

/// Sends once. A message is never left to the kernel to send again when there is room for it: that one would be cut
/// off, or empty, since the kernel goes on after the bytes that it has read for the first attempt.
pub unsafe fn send_once(
    caller: &Caller,
    fd: i32,
    flags: i32,
    entry: impl Fn(i32) -> Entry,
) -> Result<i32, Failure> {
    // How long until the next attempt, in nanoseconds, where poll(2) does not tell when there is room: for a message
    // to a UNIX socket that is not connected.
    const LATER: u64 = 1_000_000;
    let at_once = (flags & !libc::MSG_WAITALL) | libc::MSG_DONTWAIT;
    let mut polled = false;
    // SAFETY: the caller keeps what the entries point to.
    unsafe {
        loop {
            let caller = caller.again();
            let result = caller.operate(entry(at_once));
            let is_full = matches!(result, Err(Failure::Raise(Raise::Errno(libc::EAGAIN))));
            if !is_full || flags & libc::MSG_DONTWAIT != 0 {
                return result;
            }
            if !(*caller.core).is_of_messages(fd) {
                return caller.operate(entry(flags));
            }
            if std::mem::replace(&mut polled, true) {
                let later = uringmachine_runtime::clock::now() + LATER;
                if let Ended::Scheduled(value) = switch::pause(caller.core, caller.me, Some(later))?
                {
                    return Err(Failure::Scheduled(value));
                }
            }
            let room = opcode::PollAdd::new(types::Fd(fd), libc::POLLOUT as u32).build();
            caller.operate(room)?;
        }
    }
}
