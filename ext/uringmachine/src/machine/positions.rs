//! Reading and writing a file where it is, and moving on.
//!
//! The ring's own way (offset -1) is not read(2)'s: it looks at the position before it waits, so that two operations
//! that wait together are at the same place, and leaves it behind when a write ends short (io_uring/rw.c,
//! `kiocb_done`). So a read is done at a position of ours, which counts if the file is still there afterwards; and
//! a write that must wait is write(2)'s, on a thread.

use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::Arc;

use uringmachine_runtime::{Entry, TaskId};

use crate::machine::switch::{self, Failure};
use crate::machine::{thread_call, Core};
use crate::ruby::NIL;

/// The current position of a file, as an offset of preadv2(2) and of io_uring.
pub const CURRENT: i64 = -1;

/// Where a file is; `None` for what has no position.
pub fn position(fd: RawFd) -> Option<i64> {
    // SAFETY: lseek takes any descriptor.
    match unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) } {
        position if position >= 0 => Some(position),
        _ => None,
    }
}

/// Reads where a file is; `read_at` makes the operation for a position. The result is a count, or -errno.
///
/// # Safety
/// As [`switch::operate`], of each entry.
pub unsafe fn read(
    core: *mut Core,
    me: TaskId,
    fd: RawFd,
    deadline: Option<u64>,
    read_at: impl Fn(i64) -> Entry,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        loop {
            let Some(start) = position(fd) else {
                return switch::operate(core, me, read_at(CURRENT), deadline);
            };
            let outer = std::mem::replace(&mut (*core).waiter(me).stepping, true);
            let result = switch::operate(core, me, read_at(start), deadline);
            let closed = (*core).closed(me);
            let waiter = (*core).waiter(me);
            waiter.stepping = outer;
            if let Some(raise) = closed {
                if !outer {
                    waiter.closed_by = NIL;
                }
                return Err(raise.into());
            }
            let count = result?;
            if count <= 0 {
                return Ok(count);
            }
            // Another fiber may have read meanwhile: its bytes are not read twice.
            if position(fd) == Some(start) {
                libc::lseek(fd, start + i64::from(count), libc::SEEK_SET);
                return Ok(count);
            }
        }
    }
}

/// Writes from registered memory where a file is, by the ring. The place is taken before, so that two fibers do not
/// write to the same; what does not fit leaves the file where it ended. The result is a count, or -errno.
///
/// # Safety
/// As [`switch::operate`], of the entry that `write_at` makes.
pub unsafe fn write_registered(
    core: *mut Core,
    me: TaskId,
    fd: RawFd,
    length: usize,
    write_at: impl FnOnce(i64) -> Entry,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise; lseek and fcntl take any descriptor.
    unsafe {
        let (Some(start), Ok(length)) = (position(fd), i64::try_from(length)) else {
            return switch::operate(core, me, write_at(CURRENT), None);
        };
        let appends = libc::fcntl(fd, libc::F_GETFL) & libc::O_APPEND != 0;
        libc::lseek(fd, start + length, libc::SEEK_SET);
        let mut written = 0;
        let yields = switch::Yields::Count;
        let entry = write_at(start);
        let outer = std::mem::replace(&mut (*core).waiter(me).stepping, true);
        let result = switch::operate_noting(core, me, entry, None, yields, &mut written);
        let closed = (*core).closed(me).is_some();
        let waiter = (*core).waiter(me);
        waiter.stepping = outer;
        if !outer {
            waiter.closed_by = NIL;
        }
        let end = start + i64::from(written.max(0));
        if !closed && appends {
            libc::lseek(fd, 0, libc::SEEK_END);
        } else if !closed && end < start + length && position(fd) == Some(start + length) {
            libc::lseek(fd, end, libc::SEEK_SET);
        }
        result
    }
}

/// Writes where a file is, by write(2) on a thread. `written` is the count, also when the fiber is to raise; else the
/// result is that, or -errno.
///
/// # Safety
/// The bytes stay valid and unmoved until this returns; `me` is the fiber that runs, on a core that lives as long.
pub unsafe fn write(
    core: *mut Core,
    me: TaskId,
    fd: RawFd,
    bytes: *const u8,
    length: usize,
    written: &mut usize,
) -> Result<i32, Failure> {
    struct Bytes(*const u8);
    // SAFETY: the thread is over before the bytes go.
    unsafe impl Send for Bytes {}
    impl Bytes {
        /// write(2): the count, or -1.
        fn write(&self, fd: RawFd, length: usize) -> isize {
            // SAFETY: the caller of `write` keeps the bytes.
            unsafe { libc::write(fd, self.0.cast(), length) }
        }
    }
    let bytes = Bytes(bytes);
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // SAFETY: the caller's promise.
    let result = unsafe {
        thread_call::call_on(core, me, fd, move |fd| {
            let result = bytes.write(fd, length);
            match usize::try_from(result) {
                Ok(count) => {
                    counted.store(count, Ordering::Release);
                    i32::try_from(count).unwrap_or(i32::MAX)
                }
                Err(_) => thread_call::result_of(-1),
            }
        })
    };
    *written = count.load(Ordering::Acquire);
    result
}

/// Reads from a stream that may wait although it is ready, by read(2) on a thread.
///
/// # Safety
/// As [`write`], of memory that is written to.
pub unsafe fn read_stream(
    core: *mut Core,
    me: TaskId,
    fd: RawFd,
    room: *mut u8,
    length: usize,
) -> Result<i32, Failure> {
    struct Room(*mut u8);
    // SAFETY: as of `Bytes`.
    unsafe impl Send for Room {}
    impl Room {
        fn read(&self, fd: RawFd, length: usize) -> i32 {
            // SAFETY: as of `Bytes`.
            thread_call::result_of(unsafe { libc::read(fd, self.0.cast(), length) } as i32)
        }
    }
    let room = Room(room);
    // SAFETY: the caller's promise.
    unsafe { thread_call::call_on(core, me, fd, move |fd| room.read(fd, length)) }
}
