//! Attempts: bytes read, written, received and sent at once, by system calls of their own. Whoever makes one knows that it
//! will not wait, or says so by its flags.
//!
//! The memory may be shared with Ruby and the kernel, so it is no slice: its own traits promise that it is there.

use std::os::fd::RawFd;

use uringmachine_runtime::faults::{self, Attempt};
use uringmachine_runtime::memory::{Memory, MemoryMut};

use super::{Errno, Result};

#[inline]
fn count(result: isize) -> Result<usize> {
    usize::try_from(result).map_err(|_| Errno::last())
}

#[inline]
fn piece(memory: &impl Memory) -> libc::iovec {
    libc::iovec {
        iov_base: memory.pointer().cast_mut().cast(),
        iov_len: memory.length() as usize,
    }
}

#[inline]
fn piece_mut(memory: &mut impl MemoryMut) -> libc::iovec {
    libc::iovec {
        iov_base: memory.pointer_mut().cast(),
        iov_len: memory.length() as usize,
    }
}

/// read(2).
#[inline]
pub fn read(fd: RawFd, memory: &mut impl MemoryMut) -> Result<usize> {
    let room = piece_mut(memory);
    // SAFETY: the memory's own promise.
    count(unsafe { libc::read(fd, room.iov_base, room.iov_len) })
}

/// write(2).
#[inline]
pub fn write(fd: RawFd, memory: &impl Memory) -> Result<usize> {
    let bytes = piece(memory);
    // SAFETY: the memory's own promise.
    count(unsafe { libc::write(fd, bytes.iov_base, bytes.iov_len) })
}

/// recv(2).
#[inline]
pub fn recv(fd: RawFd, memory: &mut impl MemoryMut, flags: i32) -> Result<usize> {
    let mut room = piece_mut(memory);
    room.iov_len = faults::attempted(Attempt::Read, fd, room.iov_len);
    // SAFETY: the memory's own promise.
    count(unsafe { libc::recv(fd, room.iov_base, room.iov_len, flags) })
}

/// send(2).
#[inline]
pub fn send(fd: RawFd, memory: &impl Memory, flags: i32) -> Result<usize> {
    let mut bytes = piece(memory);
    bytes.iov_len = faults::attempted(Attempt::Write, fd, bytes.iov_len);
    // SAFETY: the memory's own promise.
    count(unsafe { libc::send(fd, bytes.iov_base, bytes.iov_len, flags) })
}

/// preadv2(2) of one piece; the position -1 is the file's own.
#[inline]
pub fn preadv2(fd: RawFd, memory: &mut impl MemoryMut, position: i64, flags: i32) -> Result<usize> {
    let mut room = piece_mut(memory);
    room.iov_len = faults::attempted(Attempt::Read, fd, room.iov_len);
    // SAFETY: one piece, on this frame, of memory that promises to be there.
    count(unsafe { libc::preadv2(fd, &raw const room, 1, position, flags) })
}

/// pwritev2(2) of one piece; the position -1 is the file's own.
#[inline]
pub fn pwritev2(fd: RawFd, memory: &impl Memory, position: i64, flags: i32) -> Result<usize> {
    let mut bytes = piece(memory);
    bytes.iov_len = faults::attempted(Attempt::Write, fd, bytes.iov_len);
    // SAFETY: one piece, on this frame, of memory that promises to be there.
    count(unsafe { libc::pwritev2(fd, &raw const bytes, 1, position, flags) })
}

/// What recvmsg(2) tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Received {
    /// How many bytes there are.
    pub count: usize,
    /// How many bytes of control messages there are.
    pub control: usize,
    /// MSG_TRUNC and others.
    pub flags: i32,
}

/// recvmsg(2) of one piece, with room for control messages: see [`super::control_message`].
pub fn recvmsg(
    fd: RawFd,
    memory: &mut impl MemoryMut,
    control: &mut [u8],
    flags: i32,
) -> Result<Received> {
    let mut room = piece_mut(memory);
    let mut message = message(&mut room, control.as_mut_ptr(), control.len());
    // SAFETY: the message's parts are on this frame, and the caller's.
    let count = count(unsafe { libc::recvmsg(fd, &raw mut message, flags) })?;
    Ok(Received {
        count,
        control: message.msg_controllen as _,
        flags: message.msg_flags,
    })
}

/// sendmsg(2) of one piece, with control messages: see [`super::control_message`].
pub fn sendmsg(fd: RawFd, memory: &impl Memory, control: &[u8], flags: i32) -> Result<usize> {
    let mut bytes = piece(memory);
    let message = message(&mut bytes, control.as_ptr().cast_mut(), control.len());
    // SAFETY: the message's parts are on this frame, and the caller's; sendmsg(2) only reads them.
    count(unsafe { libc::sendmsg(fd, &raw const message, flags) })
}

fn message(piece: &mut libc::iovec, control: *mut u8, length: usize) -> libc::msghdr {
    // SAFETY: an all-zero message is an empty one.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    (message.msg_iov, message.msg_iovlen) = (piece, 1);
    message.msg_control = control.cast();
    message.msg_controllen = length as _;
    message
}
