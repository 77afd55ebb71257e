//! Running an operation: it is submitted, waited for, and, if it is ended early, cancelled and drained.

use uringmachine_runtime::operation::{descriptor_of, source_of, Completion};
use uringmachine_runtime::{clock, OpKey, Operation, TaskId, Wake};

use super::trace::For;
use super::wait::Wait;
use super::{interrupts, Machine, Pending, Resumption};
use crate::os::fd::Fd;
use crate::os::Errno;
use crate::ruby::{Raise, Value};

/// How long a cancelled operation is waited for with the thread, before other fibers run again:
/// sockets, pipes and polls give their memory back at once.
pub const DRAIN_AT_ONCE: u64 = 200_000;

/// Nanoseconds until an operation is cancelled again that has not ended, at first and at last: the kernel does not find one
/// that it is about to try anew (io_uring/cancel.c, io_try_cancel: neither polled for nor with a worker), and that then goes
/// on for as long as it takes.
const CANCEL_AGAIN: u64 = 1_000_000;
const CANCEL_RARELY: u64 = 100_000_000;

/// Why an operation brought no result.
#[derive(Debug)]
pub enum Failure {
    /// Its deadline passed before it could do anything.
    Timeout,
    /// Its fiber is to raise.
    Raise(Raise),
    /// A machine's `schedule` gave its fiber this value instead.
    Scheduled(Value),
}

impl From<Raise> for Failure {
    fn from(raise: Raise) -> Self {
        Self::Raise(raise)
    }
}

impl From<Errno> for Failure {
    fn from(errno: Errno) -> Self {
        Self::Raise(errno.into())
    }
}

/// What the result of an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yields {
    /// A number.
    Count,
    /// A new descriptor: closed if nobody can be given it.
    Descriptor,
    /// What may be asked again: nothing is lost with it.
    Answer,
}

/// The kernel, or a thread, works on what lies on a frame, or is borrowed by it: it must not be left.
pub struct InKernel;

impl Drop for InKernel {
    fn drop(&mut self) {
        // A panic of ours would give the operation's memory back. Nothing is worse than what the kernel does to it then.
        std::process::abort();
    }
}

impl Machine {
    /// Whether it is an exception that somebody raises in a fiber (Fiber#raise), and can wait. One that is raised in the thread
    /// comes at once: its sender may have left by the fiber's next wait (Timeout.timeout without a scheduler). So does the
    /// close of the descriptor, which is of no other wait's concern.
    fn can_wait(&self, me: TaskId, raise: &Raise) -> bool {
        match raise {
            Raise::Exception(exception) => {
                !interrupts::is_for_thread(*exception)
                    && self.parts().waiter(me).closed_by != *exception
            }
            _ => false,
        }
    }

    /// Submits an operation and waits for its completion; returns the result, or -errno.
    ///
    /// On a timeout or an exception the operation is cancelled and drained: when this returns, the kernel
    /// touches the operation's memory no more, unless it is lent (`Waiter::lent`). An operation that won that race
    /// keeps its result.
    #[inline]
    pub fn operate<O: Operation>(
        &self,
        me: TaskId,
        operation: &mut O,
        deadline: Option<u64>,
    ) -> Result<i32, Failure> {
        self.operate_noting(me, operation, deadline, Yields::Count, &mut 0)
    }

    /// As [`Machine::operate`], for a poll: what the fiber is to raise is raised, whatever is ready meanwhile.
    #[inline]
    pub fn ask<O: Operation>(
        &self,
        me: TaskId,
        operation: &mut O,
        deadline: Option<u64>,
    ) -> Result<i32, Failure> {
        self.operate_noting(me, operation, deadline, Yields::Answer, &mut 0)
    }

    /// As [`Machine::operate`], for whoever must know what the kernel did even when the fiber is to raise: `seen`
    /// is the result of the operation, if it came to one.
    #[allow(unsafe_code)]
    pub fn operate_noting<O: Operation>(
        &self,
        me: TaskId,
        operation: &mut O,
        deadline: Option<u64>,
        yields: Yields,
        seen: &mut i32,
    ) -> Result<i32, Failure> {
        let entry = operation.entry();
        let (fd, source) = (descriptor_of(&entry), source_of(&entry));
        let mut parts = self.parts_to_wait(me)?;
        let id = parts.driver.tasks.begin_wait(me);
        // SAFETY: the operation is borrowed until this returns, which is when the kernel is done with it, and stays
        // where it is; a panic in between ends the process.
        let op = match unsafe { parts.driver.submit(entry, id) } {
            Ok(op) => op,
            Err(error) => {
                parts.finish_wait(me);
                return Ok(-error.raw_os_error().unwrap_or(libc::EAGAIN));
            }
        };
        parts.waits.begin(fd, me, Some(op));
        if source >= 0 {
            parts.waits.begin(source, me, Some(op));
        }
        if let Some(trace) = &mut parts.trace {
            trace.awaits(me, For::Operation(op));
        }
        drop(parts);
        let (mut wait, in_kernel) = (Wait::begun(self, me, id), InKernel);
        let woken = wait.until(deadline);
        if let Ok(Wake::Complete) = woken {
            let mut parts = self.parts();
            if let Some(completion) = parts.driver.take(op) {
                parts.waits.end(fd, me);
                if source >= 0 {
                    parts.waits.end(source, me);
                }
                wait.end_with(&mut parts);
                std::mem::forget(in_kernel);
                *seen = completion.result;
                return Ok(completion.result);
            }
        }
        let ended = self.end_early(me, &mut wait, op, woken, yields, seen);
        std::mem::forget(in_kernel);
        let mut parts = self.parts();
        parts.waits.end(fd, me);
        parts.waits.end(source, me);
        ended
    }

    /// Has an operation end whose wait was ended by something else: by what it still came to, or by that.
    #[cold]
    fn end_early(
        &self,
        me: TaskId,
        wait: &mut Wait,
        op: OpKey,
        woken: Result<Wake, Raise>,
        yields: Yields,
        seen: &mut i32,
    ) -> Result<i32, Failure> {
        let (completion, second) = self.drain(me, wait, op);
        *seen = completion.result;
        let raise = match (woken, second) {
            (Ok(_), Some(raise)) => raise,
            (Err(first), second) => self.first_of(me, first, second),
            // It won the race: the result counts, and what was to be raised waits.
            (Ok(_), None) if completion.result >= 0 => {
                self.parts().drop_values(me);
                return Ok(completion.result);
            }
            (Ok(Wake::Timeout), None) => return Err(Failure::Timeout),
            (Ok(_), None) => {
                return match self.take_resumption(me) {
                    Some(Resumption::Raise(raise)) => Err(Failure::Raise(raise)),
                    Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                    None => Ok(-libc::EINTR),
                }
            }
        };
        let opened = yields == Yields::Descriptor && completion.result >= 0;
        let moved = yields == Yields::Count && completion.result > 0;
        if (opened || moved) && self.can_wait(me, &raise) {
            self.parts().keep_raise(me, raise)?;
            return Ok(completion.result);
        }
        if opened {
            let _ = Fd(completion.result).close();
        }
        Err(Failure::Raise(raise))
    }

    /// What is raised first of two unwindings; a second exception is raised at the fiber's next wait.
    pub fn first_of(&self, me: TaskId, first: Raise, second: Option<Raise>) -> Raise {
        match (first, second) {
            (Raise::Exception(first), Some(Raise::Exception(second))) => {
                let mut parts = self.parts();
                let pending = &mut parts.waiter(me).pending;
                pending.push_front(Pending::Exception(second));
                Raise::Exception(first)
            }
            (_, Some(second)) => second,
            (first, None) => first,
        }
    }

    /// Cancels an operation and waits for its own completion, whatever is raised meanwhile; returns that
    /// too.
    fn drain(&self, me: TaskId, wait: &mut Wait, op: OpKey) -> (Completion, Option<Raise>) {
        let (mut second, mut again) = (None, CANCEL_AGAIN);
        {
            let mut parts = self.parts();
            let _ = parts.driver.cancel(op);
            let _ = parts.driver.drain(op, DRAIN_AT_ONCE);
        }
        loop {
            if self.is_forked() {
                // The operation is the parent's, and so is its memory.
                let completion = Completion {
                    result: -libc::ECANCELED,
                    flags: 0,
                };
                return (completion, second);
            }
            if let Some(completion) = self.take_drained(me, op) {
                return (completion, second);
            }
            let id = wait.renew();
            {
                let mut parts = self.parts();
                parts.driver.retarget(op, id);
                parts.waiter(me).draining = true;
            }
            match wait.until(Some(clock::now() + again)) {
                Ok(Wake::Timeout) => {
                    let _ = self.parts().driver.cancel(op);
                    again = (2 * again).min(CANCEL_RARELY);
                }
                Ok(_) => {}
                Err(raise) => second = Some(raise),
            }
        }
    }

    /// The completion of an operation that is drained, if it has come.
    fn take_drained(&self, me: TaskId, op: OpKey) -> Option<Completion> {
        let mut parts = self.parts();
        if let Some(completion) = parts.driver.take_early(op) {
            // Only the peer decides when the kernel lets go of the memory: the fiber does not wait for that.
            parts.waiter(me).draining = false;
            parts.waiter(me).lent = Some(op);
            return Some(completion);
        }
        let completion = parts.driver.take(op)?;
        parts.waiter(me).draining = false;
        Some(completion)
    }
}
