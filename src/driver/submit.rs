//! What a driver has the kernel do: submitting, cancelling, draining, shutting down.

use std::io;

use io_uring::squeue::Entry;

use super::{Driver, NOBODY};
use crate::clock;
use crate::multishot::{Arrivals, Multishot};
use crate::operation::{
    code_of, descriptor_of, Completion, OpKey, Operation, WithoutMemory, CODES,
};
use crate::operations::{Cancel, CancelAll};
use crate::tasks::WaitId;

impl<T> Driver<T> {
    /// Queues an operation whose completion ends `wait`.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and unmoved until [`Driver::take`] has returned
    /// the operation's result.
    #[inline]
    pub unsafe fn submit(&mut self, entry: Entry, wait: WaitId) -> io::Result<OpKey> {
        let code = code_of(&entry);
        let op = self.in_flight.start(wait, descriptor_of(&entry), code);
        // SAFETY: the caller's promise.
        unsafe { self.push(op, entry, code) }
    }

    /// Queues an operation whose completion ends `wait`.
    ///
    /// # Safety
    /// The operation stays where it is, and nobody uses it, until [`Driver::take`] has returned its result. After
    /// [`Driver::take_early`] it is the memory that stays, until [`Driver::is_over`].
    #[inline]
    pub unsafe fn start<O: Operation>(
        &mut self,
        operation: &mut O,
        wait: WaitId,
    ) -> io::Result<OpKey> {
        // SAFETY: what the entry points to is the operation's, which stays: the caller's promise.
        unsafe { self.submit(operation.entry(), wait) }
    }

    /// Queues an operation on no memory, whose completion ends `wait`.
    #[inline]
    pub fn start_without_memory<O: WithoutMemory>(
        &mut self,
        mut operation: O,
        wait: WaitId,
    ) -> io::Result<OpKey> {
        // SAFETY: the entry points to nothing.
        unsafe { self.submit(operation.entry(), wait) }
    }

    /// Queues an operation whose result nobody will want. The memory it works on, if any, is
    /// kept until the kernel is done with it.
    ///
    /// # Safety
    /// The entry points to nothing but `memory`.
    pub unsafe fn submit_orphan(
        &mut self,
        entry: Entry,
        memory: Option<Box<[u8]>>,
    ) -> io::Result<OpKey> {
        let code = code_of(&entry);
        let op = (self.in_flight).start_orphan(memory, descriptor_of(&entry), code);
        // SAFETY: the caller's promise.
        unsafe { self.push(op, entry, code) }
    }

    /// Starts a multishot operation. One that brings bytes must name the group of
    /// [`Driver::buffer_group`].
    pub fn start_multishot<O: WithoutMemory>(
        &mut self,
        mut operation: O,
        arrivals: Arrivals,
    ) -> io::Result<OpKey> {
        let entry = operation.entry();
        let code = code_of(&entry);
        let op = (self.in_flight).start_multishot(arrivals, descriptor_of(&entry), code);
        // SAFETY: the entry points to nothing.
        unsafe { self.push(op, entry, code) }
    }

    unsafe fn push(&mut self, op: OpKey, entry: Entry, code: u8) -> io::Result<OpKey> {
        // SAFETY: the caller's promise.
        match unsafe { self.push_entry(op, entry, code) } {
            Ok(()) => Ok(op),
            Err(error) => {
                self.in_flight.forget(op);
                Err(error)
            }
        }
    }

    /// `code` is the entry's, read where that was in memory. On an error the entry has not reached the queue, so the
    /// kernel does not have it.
    pub(super) unsafe fn push_entry(
        &mut self,
        op: OpKey,
        entry: Entry,
        code: u8,
    ) -> io::Result<()> {
        let entry = entry.user_data(op.to_bits());
        self.submitted[usize::from(code) % CODES] += 1;
        match &mut self.kernel {
            // SAFETY: the caller's promise.
            Some(kernel) => unsafe {
                let entry = kernel.ring.operation(entry);
                kernel.ring.push(&kernel.files.redirect(entry))
            },
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// A multishot that has not been discarded.
    #[inline]
    pub fn multishot(&mut self, op: OpKey) -> Option<&mut Multishot> {
        self.in_flight.multishot(op)
    }

    /// Gives a multishot up and cancels it: what it still brings is thrown away.
    pub fn discard_multishot(&mut self, op: OpKey) -> io::Result<()> {
        if self.in_flight.discard_multishot(op) {
            self.cancel(op)?;
        }
        Ok(())
    }

    /// Takes the result of an operation; `None` while the kernel has it.
    #[inline]
    pub fn take(&mut self, op: OpKey) -> Option<Completion> {
        self.in_flight.take(op)
    }

    /// Takes the result of an operation, though the kernel still has its memory: [`Driver::is_over`] says when
    /// it has given it back.
    pub fn take_early(&mut self, op: OpKey) -> Option<Completion> {
        self.in_flight.take_early(op)
    }

    /// Lets the completion of `op` end another wait.
    pub fn retarget(&mut self, op: OpKey, wait: WaitId) {
        self.in_flight.retarget(op, wait);
    }

    /// Asks the kernel to cancel an operation. The operation still ends by its own completion.
    pub fn cancel(&mut self, op: OpKey) -> io::Result<()> {
        let entry = Cancel { op }.entry().user_data(NOBODY);
        // SAFETY: a cancel points to nothing.
        unsafe { self.ring()?.push(&entry) }
    }

    /// Cancels an operation on no memory, such as a poll, whose result nobody wants.
    pub fn abandon(&mut self, op: OpKey) -> io::Result<()> {
        if self.in_flight.orphan(op) {
            self.cancel(op)?;
        }
        Ok(())
    }

    /// Waits, without running tasks, until the kernel has given `op` back, at most for `limit`
    /// nanoseconds; says whether it has. Cancelled polls and socket operations end at once; a file
    /// operation under way ends when the disk answers.
    pub fn drain(&mut self, op: OpKey, limit: u64) -> io::Result<bool> {
        let deadline = clock::now() + limit;
        // However long that takes: whoever closes the descriptor next would have what is queued mean another file.
        self.ring()?.flush()?;
        loop {
            self.enter(0, None)?;
            self.reap();
            if self.is_over(op) {
                return Ok(true);
            }
            let now = clock::now();
            if now >= deadline {
                return Ok(false);
            }
            self.enter(1, Some(deadline - now))?;
            self.reap();
        }
    }

    /// Whether the kernel has given an operation back.
    pub fn is_over(&self, op: OpKey) -> bool {
        self.in_flight.is_over(op)
    }

    /// Cancels everything and waits at most `limit` nanoseconds; says whether the kernel has given
    /// everything back. If not, what it may write to must be leaked. Tasks go on no more. Work that nobody waits for
    /// may, for a tenth of that time; what was to be closed then is. Memory that it only reads, for a peer that takes its time
    /// ([`Driver::take_early`]), is waited for no longer either, and must be kept.
    pub fn shut_down(&mut self, limit: u64) -> bool {
        let start = clock::now();
        let deadline = start + limit;
        if let Some(kernel) = &mut self.kernel {
            // What is queued means the slots as they are.
            let _ = kernel.ring.flush();
            kernel.files.clear(kernel.ring.uring());
        }
        if self.lines.works() > 0 {
            let until = start + limit / 10;
            self.wait_until(until, |driver| {
                // Again and again: what a task has the kernel write may end meanwhile.
                driver.end_turns();
                driver.lines.works() == 0
            });
            self.give_up_work();
        }
        let ended = |driver: &mut Self| driver.in_flight.count() == driver.in_flight.lent();
        let mut pushed = Ok(());
        // Again and again: the kernel does not find what is between two attempts.
        while pushed.is_ok() && !ended(self) && clock::now() < deadline {
            let entry = CancelAll.entry().user_data(NOBODY);
            // SAFETY: a cancel points to nothing.
            pushed = self.ring().and_then(|ring| unsafe { ring.push(&entry) });
            self.wait_until(deadline.min(clock::now() + limit / 10), ended);
        }
        if pushed.is_ok() {
            let until = deadline.min(clock::now() + limit / 10);
            self.wait_until(until, |driver| {
                !ended(driver) || driver.in_flight.lent() == 0
            });
        }
        self.in_flight.count() == self.in_flight.lent()
    }

    /// Submits and reaps, and runs no task, until something is so, or `deadline` has come.
    fn wait_until(&mut self, deadline: u64, mut is_so: impl FnMut(&mut Self) -> bool) {
        let mut wait = None;
        loop {
            let entered = self.enter(u32::from(wait.is_some()), wait);
            self.reap();
            let now = clock::now();
            if entered.is_err() || is_so(self) || now >= deadline {
                return;
            }
            wait = (!self.ring().is_ok_and(|ring| ring.wants_enter())).then(|| deadline - now);
        }
    }
}
