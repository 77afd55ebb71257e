//! What has come from a descriptor and was not handed over: for the next read of any sort, in order.
//!
//! Operations that complete again and again bring more than whoever started them may want. When a loop is left, its
//! operation is cancelled; what it has brought, and what it still brings until it ends, is kept here. A UM::IO's bytes
//! lie here from the start.
//!
//! A number may be given to another file without the machine's hearing of it, so whatever is kept is checked
//! against the file before it is handed over.

use std::cell::{RefCell, RefMut};
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::lines::Identity;
use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::{OpKey, Wake};

use super::discards::Discarded;
use super::operate::DRAIN_AT_ONCE;
use super::{closing, Machine, Parts};
use crate::os::fd::Fd;
use crate::os::socket;
use crate::ruby::gvl::Gvl;

/// What the machine knows of reading from a descriptor.
#[derive(Default)]
pub struct Reading {
    pub(super) flow: Option<Arc<Flow>>,
    /// Whether it is a socket that keeps messages apart; unknown before it matters.
    pub(super) of_messages: Option<bool>,
}

/// An [`Inflow`] that a descriptor's entry and those who read from it share, all with Ruby's lock; the collector, which may
/// drop it, has that too.
#[derive(Default)]
pub struct Flow(Gvl<RefCell<Inflow>>);

/// What has come from one open file.
#[derive(Default)]
pub struct Inflow {
    pub(super) file: Option<Identity>,
    /// Bytes, the oldest first.
    pub bytes: Bytes,
    /// Where the pieces end that they came in, if they all are as they came.
    chunks: VecDeque<usize>,
    /// Connections that were accepted.
    pub descriptors: VecDeque<RawFd>,
    /// What comes after them: 0 is the end, the rest is -errno.
    pub ended: Option<i32>,
    /// The operation that reads for a UM::IO.
    pub op: Option<OpKey>,
    /// Operations of loops that run.
    running: Vec<OpKey>,
    /// Operations that were cancelled when their loops were left.
    pub(super) left: VecDeque<OpKey>,
    /// A fiber reads by a UM::IO.
    pub busy: bool,
    /// The descriptor was closed.
    pub closed: bool,
}

impl Drop for Inflow {
    fn drop(&mut self) {
        self.descriptors.drain(..).for_each(close);
    }
}

/// Closes a descriptor that was accepted, and that nobody has been given.
fn close(fd: RawFd) {
    let _ = Fd(fd).close();
}

impl Inflow {
    pub(super) fn is_idle(&self) -> bool {
        self.bytes.is_empty()
            && self.descriptors.is_empty()
            && self.ended.is_none()
            && self.op.is_none()
            && self.left.is_empty()
    }

    /// Moves what an operation has brought to the end of what there is.
    pub fn take(&mut self, arrivals: &mut Arrivals) {
        match arrivals {
            Arrivals::Bytes { bytes, chunks, .. } => {
                let are_whole = self.chunks_are_whole();
                if self.bytes.is_empty() {
                    std::mem::swap(bytes, &mut self.bytes);
                } else {
                    self.bytes.push(bytes.as_slice());
                    bytes.consume(bytes.len());
                }
                if are_whole {
                    self.chunks.append(chunks);
                } else {
                    chunks.clear();
                }
            }
            Arrivals::Descriptors(descriptors) => self.descriptors.append(descriptors),
        }
    }

    fn chunks_are_whole(&self) -> bool {
        self.bytes.is_empty() || !self.chunks.is_empty()
    }

    /// Takes bytes away that were handed over.
    pub fn consume(&mut self, count: usize) {
        self.bytes.consume(count);
        self.chunks.clear();
    }

    /// Takes all bytes out.
    pub fn take_all(&mut self) -> Bytes {
        self.chunks.clear();
        std::mem::take(&mut self.bytes)
    }

    /// How long the next piece is, if there is one.
    pub fn next_piece(&self) -> Option<usize> {
        match self.chunks.front() {
            Some(length) => Some(*length),
            None if self.bytes.is_empty() => None,
            None => Some(self.bytes.len()),
        }
    }

    /// Takes the next piece away.
    pub fn consume_piece(&mut self) {
        if let Some(length) = self.next_piece() {
            self.bytes.consume(length);
            self.chunks.pop_front();
        }
    }
}

impl Flow {
    /// One of no descriptor.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn of_file(file: Identity) -> Arc<Self> {
        let flow = Self::new();
        flow.get().file = Some(file);
        flow
    }

    /// What it holds, for a step: it is not borrowed across a wait.
    #[inline]
    pub fn get(&self) -> RefMut<'_, Inflow> {
        self.0.borrow_mut()
    }

    /// Throws away what has come, and forgets that it has ended.
    pub fn clear(&self, machine: &Machine) {
        let mut inflow = self.get();
        let mut parts = machine.parts();
        let ops = inflow.op.take().into_iter();
        for op in ops.chain(std::mem::take(&mut inflow.left)) {
            parts.discard_multishot(op);
        }
        inflow.bytes = Bytes::default();
        inflow.chunks.clear();
        inflow.ended = None;
    }

    /// The operation of a loop runs.
    pub fn begin(&self, op: OpKey) {
        self.get().running.push(op);
    }

    /// Its loop is left: it is cancelled, and what it brings is kept.
    pub fn leave(&self, machine: &Machine, op: OpKey) {
        let mut inflow = self.get();
        if let Some(place) = inflow.running.iter().position(|running| *running == op) {
            inflow.running.swap_remove(place);
            inflow.stop(&mut machine.parts(), op);
        }
    }

    /// Nobody has it any more, or its descriptor was closed.
    pub fn let_go(&self, machine: &Machine) {
        let mut inflow = self.get();
        if inflow.closed {
            inflow.end(&mut machine.parts());
        } else {
            inflow.leave_io(&mut machine.parts());
        }
    }

    /// No UM::IO reads any more.
    pub fn leave_io(&self, machine: &Machine) {
        self.get().leave_io(&mut machine.parts());
    }
}

impl Inflow {
    fn leave_io(&mut self, parts: &mut Parts) {
        if let Some(op) = self.op.take() {
            self.stop(parts, op);
        }
    }

    fn stop(&mut self, parts: &mut Parts, op: OpKey) {
        self.left.push_back(op);
        let runs = (parts.driver.multishot(op)).is_some_and(|multishot| multishot.ended.is_none());
        if runs {
            let _ = parts.driver.cancel(op);
        }
        self.gather(parts);
    }

    /// Takes what the operations have brought that were left; says whether all of them have ended.
    pub(super) fn gather(&mut self, parts: &mut Parts) -> bool {
        while let Some(op) = self.left.front().copied() {
            let Some(multishot) = parts.driver.multishot(op) else {
                self.left.pop_front();
                continue;
            };
            let (ended, resumable) = (multishot.ended, multishot.is_resumable());
            let brings_bytes = matches!(multishot.arrivals, Arrivals::Bytes { .. });
            self.take(&mut multishot.arrivals);
            let Some(result) = ended else {
                return false;
            };
            if brings_bytes && !resumable && result != -libc::ECANCELED {
                self.ended = Some(result);
            }
            self.left.pop_front();
            parts.discard_multishot(op);
        }
        true
    }

    /// Ends everything: the descriptor is being closed.
    fn end(&mut self, parts: &mut Parts) {
        self.closed = true;
        let ops = (self.op.take().into_iter())
            .chain(self.running.drain(..))
            .chain(self.left.drain(..));
        for op in ops {
            let multishot = parts.driver.multishot(op);
            let wait = multishot.and_then(|multishot| multishot.wait.take());
            parts.discard_multishot(op);
            if let Some(wait) = wait {
                parts.driver.tasks.wake(wait, Wake::Complete);
            }
        }
        self.descriptors.drain(..).for_each(close);
    }
}

impl Parts {
    /// Whether anything is done with a descriptor, or kept of it, that its close must see to.
    pub fn uses(&self, fd: RawFd) -> bool {
        !self.waits.on(fd).is_empty()
            || (self.reading.get(fd)).is_some_and(|reading| reading.flow.is_some())
            || self.driver.uses(fd)
    }

    fn end_all_on(&mut self, fd: RawFd) {
        self.driver.unregister_file(fd);
        self.drop_flow(fd);
        self.driver.end_operations_on(fd);
    }

    /// Cancels what takes bytes from a descriptor and is an operation on another one: the kernel may not have looked the
    /// number up yet.
    fn cancel_from(&mut self, fd: RawFd) {
        let uses = self.waits.on(fd).iter();
        let operations: Vec<OpKey> = uses.filter_map(|one| one.operation).collect();
        for op in operations {
            if !self.driver.is_on(op, fd) {
                let _ = self.driver.cancel(op);
            }
        }
    }

    /// Takes out what is known of reading from a descriptor.
    fn take_flow(&mut self, fd: RawFd) -> Option<Arc<Flow>> {
        let reading = self.reading.get_mut(fd).map(std::mem::take);
        reading.and_then(|reading| reading.flow)
    }

    /// The number is another file's than what was kept was of: that is dropped, and nothing else.
    pub(super) fn drop_flow(&mut self, fd: RawFd) {
        if let Some(flow) = self.take_flow(fd) {
            flow.get().end(self);
        }
    }

    /// What is kept of a descriptor, if anything is.
    pub(super) fn flow(&self, fd: RawFd) -> Option<Arc<Flow>> {
        (self.reading.get(fd)).and_then(|reading| reading.flow.clone())
    }
}

impl Machine {
    /// Ends everything on a descriptor that is being closed, and forgets what was known of it: operations and loops
    /// end by Errno::ECANCELED, what has come is dropped, a registered file is let go. The cancels go before
    /// whatever is submitted next. Work that nobody waits for goes on (see `has_work`): whoever closes waits for it,
    /// or adds the close to it.
    pub fn end_operations_on(&self, fd: RawFd) {
        self.parts().descriptors.forget(fd);
        // A fiber between two steps has no operation, and names the descriptor again.
        let is_waited_for = !self.parts().waits.on(fd).is_empty();
        if is_waited_for {
            closing::interrupt_on(self, fd, closing::cancelled());
        }
        let mut parts = self.parts();
        parts.cancel_from(fd);
        parts.end_all_on(fd);
    }

    /// Forgets what was known of a descriptor that is being closed by another thread; its loops and streams end when
    /// the machine's own thread looks.
    pub fn forget_from_elsewhere(&self, fd: RawFd) {
        let mut parts = self.parts();
        let flow = parts.take_flow(fd);
        parts.driver.forget_line(fd);
        if let Some(flow) = flow {
            flow.get().closed = true;
            parts.discards.add(Discarded::Flow(flow));
            drop(parts);
            self.notify();
        }
    }

    /// As [`Machine::end_operations_on`], for a close(2) that is made by others than the ring, right after: what has to be
    /// cancelled is so when this returns, and work that nobody waits for goes on with a descriptor of its own. On the
    /// machine's own thread only.
    pub fn let_go_of(&self, fd: RawFd) {
        let mut parts = self.parts();
        let operations = parts.driver.operations_on(fd);
        parts.end_all_on(fd);
        if parts.driver.has_work(fd) {
            parts.driver.keep_work(fd);
        }
        parts.driver.forget_line(fd);
        for op in &operations {
            let _ = parts.driver.drain(*op, DRAIN_AT_ONCE);
        }
        drop(parts);
        if !operations.is_empty() {
            self.poll();
        }
    }

    /// Whether a descriptor is a socket that keeps messages apart. Known from its first use until it is closed.
    pub fn is_of_messages(&self, fd: RawFd) -> bool {
        match self.parts().reading.of(fd) {
            Some(reading) => *reading.of_messages.get_or_insert_with(|| {
                let kind = socket::option(fd, libc::SOL_SOCKET, libc::SO_TYPE);
                kind.is_ok_and(|kind| kind != libc::SOCK_STREAM)
            }),
            None => false,
        }
    }

    /// Forgets whether it is one: it is not what it was.
    pub fn forget_messages(&self, fd: RawFd) {
        if let Some(reading) = self.parts().reading.get_mut(fd) {
            reading.of_messages = None;
        }
    }
}

/// Whether a socket is one of TCP's, which throws bytes away that are received with MSG_TRUNC (tcp(7)).
pub fn discards_truncated(fd: RawFd) -> bool {
    const MPTCP: i32 = 262;
    let protocol = socket::option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL);
    protocol.is_ok_and(|protocol| protocol == libc::IPPROTO_TCP || protocol == MPTCP)
}

/// Whether an empty read of a socket that keeps messages apart is the end, and no empty message: its peer has closed
/// the connection, or it was shut down, and nothing else is there. (An empty message right before that is taken for it:
/// recvmsg(2) answers both by 0, without a flag or an address.)
pub fn is_end(fd: RawFd) -> bool {
    Fd(fd).events_now(libc::POLLRDHUP) & (libc::POLLRDHUP | libc::POLLHUP) != 0
        && Fd(fd).unread() == Ok(0)
}
