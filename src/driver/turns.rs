//! A driver's side of the [`lines`](crate::lines): whose turn it is to write to a descriptor, and the work that nobody
//! waits for.

use std::os::fd::RawFd;

use super::Driver;
use crate::lines::{Job, Next, Work};
use crate::operation::{code_of, OpKey};
use crate::ring::Ring;
use crate::tasks::{TaskId, WaitId, Wake};

impl<T> Driver<T> {
    /// Gives a task its turn to write to a descriptor, if nobody writes to it: see
    /// [`Lines::begin`](crate::lines::Lines::begin).
    #[inline]
    pub fn begin_turn(&mut self, fd: RawFd, task: TaskId) -> bool {
        self.lines.begin(fd, task)
    }

    /// Lets a task wait for its turn: the wait ends when that has come, or when the descriptor is closed.
    pub fn wait_for_turn(&mut self, fd: RawFd, wait: WaitId) {
        self.lines.wait(fd, wait);
    }

    /// Whether it is a task's turn to write to a descriptor.
    pub fn is_turn(&self, fd: RawFd, task: TaskId) -> bool {
        self.lines.is_turn(fd, task)
    }

    /// Ends a task's turn.
    #[inline]
    pub fn end_turn(&mut self, fd: RawFd, task: TaskId) {
        let next = self.lines.end(fd, task);
        self.give_turn(fd, next);
    }

    /// Takes a task that waits no more out of the line, or ends its turn.
    pub fn leave_line(&mut self, fd: RawFd, wait: WaitId) {
        let next = self.lines.leave(fd, wait);
        self.give_turn(fd, next);
    }

    /// Has something done to a descriptor that nobody waits for, after what was given before.
    pub fn add_work(&mut self, fd: RawFd, work: Work) {
        let next = self.lines.add(fd, work);
        self.give_turn(fd, next);
    }

    /// Has something done to a descriptor at once, whoever writes to it.
    pub fn add_work_aside(&mut self, fd: RawFd, work: Work) {
        let next = self.lines.aside(fd, work);
        self.give_turn(fd, next);
    }

    /// Whether there is work for a descriptor that is not done.
    #[inline]
    pub fn has_work(&self, fd: RawFd) -> bool {
        self.lines.has_work(fd)
    }

    /// Takes the errno of work on a descriptor that has failed.
    #[inline]
    pub fn take_error(&mut self, fd: RawFd) -> Option<i32> {
        self.lines.take_error(fd)
    }

    /// Whether work has failed, so that there may be an errno to be taken.
    #[inline]
    pub fn work_has_failed(&self) -> bool {
        self.lines.has_failed()
    }

    /// Ends what waits for a descriptor that is being closed, but the work that was given before: operations are
    /// cancelled, and tasks that wait for their turn sent away.
    pub fn end_operations_on(&mut self, fd: RawFd) {
        for op in self.in_flight.on(fd) {
            // What cannot be cancelled now ends when the ring does.
            let _ = self.cancel(op);
        }
        let (waits, next) = self.lines.dismiss(fd);
        self.wake_all(waits);
        self.give_turn(fd, next);
    }

    /// Sees to it that the work for a descriptor is done though others close it right after.
    pub fn keep_work(&mut self, fd: RawFd) {
        // What is queued means the file that the descriptor is now.
        let flushed = self.ring().and_then(Ring::flush);
        // SAFETY: fcntl takes any number; what it returns is new, and nobody else's.
        let new = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) };
        if new < 0 || flushed.is_err() {
            return;
        }
        if let Some(generations) = self.lines.rename(fd, new) {
            for job in self.in_flight.jobs_mut() {
                job.rename(fd, new, generations);
            }
        }
        self.add_work(new, Work::Close);
    }

    /// Ends the turns of tasks that will not go on, where work waits for them and none of them has the kernel write.
    pub(super) fn end_turns(&mut self) {
        for fd in self.lines.behind_tasks() {
            if !self.in_flight.any_on(fd) {
                let (waits, next) = self.lines.dismiss(fd);
                self.wake_all(waits);
                self.give_turn(fd, next);
            }
        }
    }

    /// Whether an operation is one on a descriptor, which [`Driver::end_operations_on`] ends.
    pub fn is_on(&self, op: OpKey, fd: RawFd) -> bool {
        self.in_flight.is_on(op, fd)
    }

    /// The operations on a descriptor that the kernel has, or will have: what [`Driver::end_operations_on`] ends.
    pub fn operations_on(&self, fd: RawFd) -> Vec<OpKey> {
        self.in_flight.on(fd)
    }

    /// Begins a new line for a descriptor that is closed now; the work for it that has not begun is not done.
    pub fn forget_line(&mut self, fd: RawFd) {
        let waits = self.lines.forget(fd);
        self.wake_all(waits);
    }

    fn wake_all(&mut self, waits: Vec<WaitId>) {
        for wait in waits {
            self.tasks.wake(wait, Wake::Complete);
        }
    }

    fn give_turn(&mut self, fd: RawFd, mut next: Next) {
        loop {
            next = match next {
                Next::Nothing => return,
                Next::Wake(wait) if self.tasks.wake(wait, Wake::Complete) => return,
                // It is to raise: it will not write.
                Next::Wake(wait) => self.lines.end(fd, wait.task),
                Next::Start(job) => match self.start_job(job) {
                    Ok(()) => return,
                    Err((job, errno)) => self.lines.worked(job, -errno),
                },
            };
        }
    }

    fn start_job(&mut self, job: Box<Job>) -> Result<(), (Box<Job>, i32)> {
        if matches!(job.work, Work::Close) {
            // From now on the number may be another file's.
            self.forget_line(job.fd);
        }
        let entry = job.entry();
        let code = code_of(&entry);
        let op = self.in_flight.start_job(job, code);
        // SAFETY: the entry points to the job's bytes, which its record keeps until the completion.
        if unsafe { self.push_entry(op, entry, code) }.is_ok() {
            return Ok(());
        }
        match self.in_flight.forget(op) {
            Some(job) => {
                if matches!(job.work, Work::Close) {
                    // SAFETY: the driver was given the descriptor to close.
                    unsafe { libc::close(job.fd) };
                }
                Err((job, libc::ENOBUFS))
            }
            None => Ok(()),
        }
    }

    pub(super) fn worked(&mut self, op: OpKey, result: i32) {
        let Some(job) = self.in_flight.take_job(op) else {
            return;
        };
        let fd = job.fd;
        if matches!(job.work, Work::Close) && result == -libc::ECANCELED {
            // SAFETY: the driver was given the descriptor to close, and the kernel has not begun to.
            unsafe { libc::close(fd) };
        }
        let next = self.lines.worked(job, result);
        self.give_turn(fd, next);
    }
}
