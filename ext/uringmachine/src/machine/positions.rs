//! Reading and writing a file where it is, and moving on.
//!
//! The ring's own way (offset -1) is not read(2)'s: it looks at the position before it waits, so that two operations
//! that wait together are at the same place, and leaves it behind when a write ends short (io_uring/rw.c,
//! `kiocb_done`). So a read is done at a position of ours, which counts if the file is still there afterwards; and
//! a write that must wait is write(2)'s, on a thread.

use std::os::fd::RawFd;

use uringmachine_runtime::memory::{Memory, MemoryMut};
use uringmachine_runtime::operations::{Read, Write};
use uringmachine_runtime::TaskId;

use super::operate::{Failure, Yields};
use super::{thread_call, Machine};
use crate::os::fd::Fd;
use crate::os::transfer;

/// The current position of a file, as an offset of preadv2(2) and of io_uring.
pub const CURRENT: i64 = -1;

/// Reads where a file is. The result is a count, or -errno.
pub fn read(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    memory: &mut impl MemoryMut,
    deadline: Option<u64>,
) -> Result<i32, Failure> {
    let mut read = Read {
        fd,
        memory,
        offset: CURRENT as u64,
    };
    loop {
        let Some(start) = Fd(fd).position() else {
            read.offset = CURRENT as u64;
            return machine.operate(me, &mut read, deadline);
        };
        read.offset = start as u64;
        let was_part = machine.parts().begin_steps(me);
        let result = machine.operate(me, &mut read, deadline);
        let closed = {
            let mut parts = machine.parts();
            let closed = parts.closed(me);
            parts.end_steps(me, was_part);
            closed
        };
        if let Some(raise) = closed {
            return Err(raise.into());
        }
        let count = result?;
        if count <= 0 {
            return Ok(count);
        }
        // Another fiber may have read meanwhile: its bytes are not read twice.
        if Fd(fd).position() == Some(start) {
            let _ = Fd(fd).seek_to(start + i64::from(count));
            return Ok(count);
        }
    }
}

/// Writes from registered memory where a file is, by the ring. The place is taken before, so that two fibers do not
/// write to the same; what does not fit leaves the file where it ended. The result is a count, or -errno.
pub fn write_registered<M: Memory>(
    machine: &Machine,
    me: TaskId,
    write: &mut Write<M>,
) -> Result<i32, Failure> {
    let (fd, length) = (write.fd, i64::from(write.memory.length()));
    let Some(start) = Fd(fd).position() else {
        write.offset = CURRENT as u64;
        return machine.operate(me, write, None);
    };
    let appends = Fd(fd).appends();
    let _ = Fd(fd).seek_to(start + length);
    write.offset = start as u64;
    let mut written = 0;
    let was_part = machine.parts().begin_steps(me);
    let result = machine.operate_noting(me, write, None, Yields::Count, &mut written);
    let closed = {
        let mut parts = machine.parts();
        let closed = parts.closed(me).is_some();
        parts.end_steps(me, was_part);
        closed
    };
    let end = start + i64::from(written.max(0));
    if !closed && appends {
        let _ = Fd(fd).seek_end();
    } else if !closed && end < start + length && Fd(fd).position() == Some(start + length) {
        let _ = Fd(fd).seek_to(end);
    }
    result
}

/// Writes where a file is, by write(2) on a thread. `written` is the count, also when the fiber is to raise; else the
/// result is that, or -errno.
pub fn write(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    bytes: &mut impl MemoryMut,
    written: &mut usize,
) -> Result<i32, Failure> {
    thread_call::with_memory(machine, me, fd, bytes, written, |fd, bytes| {
        transfer::write(fd, bytes)
    })
}

/// Reads from a stream that may wait although it is ready, by read(2) on a thread.
pub fn read_stream(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    room: &mut impl MemoryMut,
) -> Result<i32, Failure> {
    thread_call::with_memory(machine, me, fd, room, &mut 0, |fd, room| {
        transfer::read(fd, room)
    })
}
