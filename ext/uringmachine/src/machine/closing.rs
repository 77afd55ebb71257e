//! Who waits for which descriptor, and what the close of one ends.
//!
//! The kernel's operations keep the open file, but a fiber that goes on after a wait names it by its number, which
//! is another file's once the descriptor is closed. So whoever closes one first ends what is done with it:
//! [`end_on`]. From Ruby 4.0 on Ruby keeps account of the operations of its own hooks on an IO, and waits for them;
//! operations of ours it is told of ([`during`]). What goes by the number (another IO object, the machine's methods)
//! it does not know, and Ruby 3.4 wakes no fiber at all (lib/uringmachine/core_ext/io_close.rb).

use std::os::fd::RawFd;

use uringmachine_runtime::by_descriptor::ByDescriptor;
use uringmachine_runtime::lines::Work;
use uringmachine_runtime::{OpKey, TaskId};

use super::operate::DRAIN_AT_ONCE;
use super::{Machine, Parts};
use crate::ruby::{classes, io, Raise, Value, NIL};

/// What a task does with a descriptor.
#[derive(Clone, Copy, Debug)]
pub struct Use {
    pub task: TaskId,
    /// What the kernel has of it; `None` between the steps of something longer.
    pub operation: Option<OpKey>,
}

/// Who does something with which descriptor.
#[derive(Default)]
pub struct Waits(ByDescriptor<Vec<Use>>);

impl Waits {
    /// A task is about to wait for a descriptor.
    #[inline]
    pub fn begin(&mut self, fd: RawFd, task: TaskId, operation: Option<OpKey>) {
        if let Some(uses) = self.0.of(fd) {
            uses.push(Use { task, operation });
        }
    }

    /// It waits no more.
    #[inline]
    pub fn end(&mut self, fd: RawFd, task: TaskId) {
        if let Some(uses) = self.0.get_mut(fd) {
            // Once: it may wait for the same within a longer operation.
            if let Some(place) = uses.iter().rposition(|one| one.task == task) {
                uses.swap_remove(place);
            }
        }
    }

    /// What is done between the steps of longer operations, with which descriptor.
    pub fn between_steps(&mut self) -> impl Iterator<Item = (RawFd, TaskId)> + '_ {
        self.0.iter_mut().flat_map(|(fd, uses)| {
            let idle = uses.iter().filter(|one| one.operation.is_none());
            idle.map(move |one| (fd, one.task))
        })
    }

    /// What is done with a descriptor.
    #[inline]
    pub fn on(&self, fd: RawFd) -> &[Use] {
        self.0.get(fd).map_or(&[], Vec::as_slice)
    }
}

/// A task's operation on an IO has moved something, though its descriptor was closed meanwhile, and not by the IO: Ruby
/// may go on with the rest, and the number be another file's by then.
pub struct Lost {
    pub task: TaskId,
    pub io: Value,
    pub fd: RawFd,
    pub ending: Ending,
}

/// How the next operation ends.
#[derive(Clone, Copy)]
pub enum Ending {
    Raises(Value),
    /// By an error that has come already, and comes no more: Ruby raises what is made of it.
    Answers(i32),
}

impl Parts {
    /// Notes that a task has lost the descriptor of an IO.
    #[cold]
    pub fn note_lost(&mut self, lost: Lost) {
        let tasks = &self.driver.tasks;
        self.lost
            .retain(|other| other.task != lost.task && tasks.get(other.task).is_some());
        self.lost.push(lost);
    }

    /// How an operation of a task ends that has lost the descriptor of this IO; once.
    #[inline]
    pub fn take_lost(&mut self, task: TaskId, io: Value, fd: RawFd) -> Option<Ending> {
        if self.lost.is_empty() {
            return None;
        }
        let place = self.lost.iter().position(|lost| lost.task == task)?;
        let lost = self.lost.swap_remove(place);
        (lost.io == io && lost.fd == fd).then_some(lost.ending)
    }

    /// A fiber that was to close a descriptor has gone on.
    pub fn will_not_close(&mut self, fd: RawFd) {
        if let Some(place) = self.to_be_closed.iter().position(|other| *other == fd) {
            self.to_be_closed.swap_remove(place);
        }
    }

    /// The fibers go on no more: what they were to close is closed after the work that it waits for.
    pub fn close_for_fibers(&mut self) {
        for fd in std::mem::take(&mut self.to_be_closed) {
            self.driver.add_work(fd, Work::Close);
        }
    }

    /// A longer operation on a descriptor begins: its close counts between two steps, too. Says whether it is a part of
    /// one.
    pub fn begin_steps(&mut self, task: TaskId) -> bool {
        std::mem::replace(&mut self.waiter(task).stepping, true)
    }

    /// As [`Parts::end_steps`], of one on an IO's descriptor, which may have been closed, and not by the IO, and be another file's: the
    /// next operation, if this one has an answer, raises that. Says whether that is so.
    pub fn end_steps_on(
        &mut self,
        task: TaskId,
        was_part: bool,
        io: Value,
        fd: RawFd,
        has_answer: bool,
    ) -> bool {
        let exception = self.waiter(task).closed_by;
        self.end_steps(task, was_part);
        if exception != NIL && has_answer {
            let ending = Ending::Raises(exception);
            self.note_lost(Lost {
                task,
                io,
                fd,
                ending,
            });
        }
        exception != NIL
    }

    /// It is over. What it was to raise goes with it, unless it was a part.
    pub fn end_steps(&mut self, task: TaskId, was_part: bool) {
        let waiter = self.waiter(task);
        waiter.stepping = was_part;
        if !was_part {
            waiter.closed_by = NIL;
        }
    }
}

/// Ends what fibers of this thread do with a descriptor that is about to be closed: when this returns, the kernel has
/// no operation that the number could lead to another file, and none of the fibers names the number again. Each
/// raises the exception, unless its operation was over. On the machine's own thread.
pub fn end_on(machine: &Machine, fd: RawFd, exception: Value) {
    interrupt_on(machine, fd, exception);
    let mut parts = machine.parts();
    let uses = parts.waits.on(fd).iter();
    let operations: Vec<OpKey> = uses.filter_map(|one| one.operation).collect();
    for operation in &operations {
        let _ = parts.driver.cancel(*operation);
    }
    for operation in operations {
        // One that takes longer, on a file, holds the file by itself.
        let _ = parts.driver.drain(operation, DRAIN_AT_ONCE);
    }
}

/// Has the fibers that do something with a descriptor end that.
pub fn interrupt_on(machine: &Machine, fd: RawFd, exception: Value) {
    {
        let mut parts = machine.parts();
        for place in 0..parts.waits.on(fd).len() {
            let task = parts.waits.on(fd)[place].task;
            parts.interrupt_by_close(task, exception);
        }
    }
    machine.notify();
}

/// What a fiber raises whose IO is closed while it waits for it.
pub fn closed() -> Value {
    let text = "stream closed in another thread";
    let raise = Raise::new(classes::io_error(), text);
    raise.exception().unwrap_or(NIL)
}

/// What a fiber raises whose descriptor a machine closes while it waits for it.
pub fn cancelled() -> Value {
    let raise = Raise::errno(libc::ECANCELED);
    raise.exception().unwrap_or(NIL)
}

/// Does something that waits for an IO, so that the fiber raises IOError when the IO is closed meanwhile.
pub fn during(
    machine: &Machine,
    me: TaskId,
    io: Value,
    fd: RawFd,
    body: &mut dyn FnMut(),
) -> Result<(), Raise> {
    if io::keeps_account() {
        return io::during(io, body);
    }
    machine.parts().waits.begin(fd, me, None);
    body();
    machine.parts().waits.end(fd, me);
    Ok(())
}
