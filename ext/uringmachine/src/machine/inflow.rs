//! What has come from a descriptor and was not handed over: for the next read of any sort, in order.
//!
//! Operations that complete again and again bring more than whoever started them may want. When a loop is left, its
//! operation is cancelled; what it has brought, and what it still brings until it ends, is kept here. A UM::IO's bytes
//! lie here from the start.
//!
//! A number may be given to another file without the machine's hearing of it, so whatever is kept is checked
//! against the file before it is handed over.

use std::cell::UnsafeCell;
use std::collections::VecDeque;
use std::os::fd::RawFd;
use std::sync::Arc;

use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::lines::{identity, Identity};
use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::{OpKey, Wake};

use crate::lending::Destination;
use crate::machine::caller::Caller;
use crate::machine::multishot::Running;
use crate::machine::switch::{self, Failure};
use crate::machine::{closing, Core, Discarded};
use crate::os::socket_address;
use crate::ruby::Raise;

/// What the machine knows of reading from a descriptor.
#[derive(Default)]
pub struct Reading {
    flow: Option<Arc<Flow>>,
    /// Whether it is a socket that keeps messages apart; unknown before it matters.
    of_messages: Option<bool>,
}

/// An [`Inflow`] that a descriptor's entry and those who read from it share, all with the GVL.
pub struct Flow(UnsafeCell<Inflow>);

// SAFETY: it is used with the GVL only; the collector, which may drop it, has that too.
unsafe impl Send for Flow {}
// SAFETY: as above.
unsafe impl Sync for Flow {}

impl Flow {
    /// One of no descriptor.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(UnsafeCell::new(Inflow::default())))
    }

    /// What it holds. No reference to it is kept across a wait.
    pub fn get(&self) -> *mut Inflow {
        self.0.get()
    }
}

/// What has come from one open file.
#[derive(Default)]
pub struct Inflow {
    file: Option<Identity>,
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
    left: VecDeque<OpKey>,
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

fn close(fd: RawFd) {
    // SAFETY: the descriptor was accepted, and nobody has been given it.
    unsafe { libc::close(fd) };
}

impl Inflow {
    fn is_idle(&self) -> bool {
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

    /// Throws away what has come, and forgets that it has ended.
    pub fn clear(&mut self, core: *mut Core) {
        let ops = self.op.take().into_iter().chain(self.left.drain(..));
        for op in ops {
            // SAFETY: the core is alive while one of its fibers runs a method.
            let _ = unsafe { (*core).driver.discard_multishot(op) };
        }
        self.bytes = Bytes::default();
        self.chunks.clear();
        self.ended = None;
    }

    /// The operation of a loop runs.
    pub fn begin(&mut self, op: OpKey) {
        self.running.push(op);
    }

    /// Its loop is left: it is cancelled, and what it brings is kept.
    pub fn leave(&mut self, core: *mut Core, op: OpKey) {
        if let Some(place) = self.running.iter().position(|running| *running == op) {
            self.running.swap_remove(place);
            self.stop(core, op);
        }
    }

    /// Nobody has it any more, or its descriptor was closed.
    pub fn let_go(&mut self, core: *mut Core) {
        if self.closed {
            self.end(core);
        } else {
            self.leave_io(core);
        }
    }

    /// No UM::IO reads any more.
    pub fn leave_io(&mut self, core: *mut Core) {
        if let Some(op) = self.op.take() {
            self.stop(core, op);
        }
    }

    fn stop(&mut self, core: *mut Core, op: OpKey) {
        self.left.push_back(op);
        // SAFETY: the core is alive while one of its fibers runs a method, or it polls.
        unsafe {
            if (*core)
                .driver
                .multishot(op)
                .is_some_and(|s| s.ended.is_none())
            {
                let _ = (*core).driver.cancel(op);
            }
        }
        self.gather(core);
    }

    /// Takes what the operations have brought that were left; says whether all of them have ended.
    fn gather(&mut self, core: *mut Core) -> bool {
        while let Some(op) = self.left.front().copied() {
            // SAFETY: as `stop`; the reference ends before the next use of the machine.
            unsafe {
                let machine = &mut (*core).driver;
                let Some(stream) = machine.multishot(op) else {
                    self.left.pop_front();
                    continue;
                };
                let (ended, resumable) = (stream.ended, stream.is_resumable());
                let brings_bytes = matches!(stream.arrivals, Arrivals::Bytes { .. });
                self.take(&mut stream.arrivals);
                let Some(result) = ended else {
                    return false;
                };
                if brings_bytes && !resumable && result != -libc::ECANCELED {
                    self.ended = Some(result);
                }
                self.left.pop_front();
                let _ = machine.discard_multishot(op);
            }
        }
        true
    }

    /// Ends everything: the descriptor is being closed.
    fn end(&mut self, core: *mut Core) {
        self.closed = true;
        let ops = (self.op.take().into_iter())
            .chain(self.running.drain(..))
            .chain(self.left.drain(..));
        for op in ops {
            // SAFETY: as `stop`.
            unsafe {
                let machine = &mut (*core).driver;
                let wait = machine.multishot(op).and_then(|stream| stream.wait.take());
                let _ = machine.discard_multishot(op);
                if let Some(wait) = wait {
                    machine.tasks.wake(wait, Wake::Complete);
                }
            }
        }
        self.descriptors.drain(..).for_each(close);
    }
}

impl Core {
    /// Ends everything on a descriptor that is being closed, and forgets what was known of it: operations and loops
    /// end by Errno::ECANCELED, what has come is dropped, a registered file is let go. The cancels go before
    /// whatever is submitted next. Work that nobody waits for goes on (see `has_work`): whoever closes waits for it,
    /// or adds the close to it.
    pub fn end_operations_on(&mut self, fd: RawFd) {
        self.descriptors.forget(fd);
        // A fiber between two steps has no operation, and names the descriptor again.
        if !self.waits.on(fd).is_empty() {
            // SAFETY: called with the GVL; the core is this one.
            unsafe { closing::interrupt_on(self, fd, closing::cancelled()) };
        }
        self.end_all_on(fd);
    }

    fn end_all_on(&mut self, fd: RawFd) {
        self.driver.unregister_file(fd);
        self.drop_flow(fd);
        self.driver.end_operations_on(fd);
    }

    /// Whether anything is done with a descriptor, or kept of it, that its close must see to.
    pub fn uses(&self, fd: RawFd) -> bool {
        !self.waits.on(fd).is_empty()
            || (self.reading.get(fd)).is_some_and(|reading| reading.flow.is_some())
            || self.driver.uses(fd)
    }

    /// The number is another file's than what was kept was of: that is dropped, and nothing else.
    fn drop_flow(&mut self, fd: RawFd) {
        let reading = self.reading.get_mut(fd).map(std::mem::take);
        if let Some(flow) = reading.and_then(|reading| reading.flow) {
            // SAFETY: with the GVL; nobody waits while a reference is held.
            unsafe { (*flow.get()).end(self) };
        }
    }

    /// Forgets what was known of a descriptor that is being closed by another thread; its loops and streams end when
    /// the machine's own thread looks.
    pub fn forget_from_elsewhere(&mut self, fd: RawFd) {
        let reading = self.reading.get_mut(fd).map(std::mem::take);
        if let Some(flow) = reading.and_then(|reading| reading.flow) {
            // SAFETY: with the GVL.
            unsafe { (*flow.get()).closed = true };
            self.discards.add(Discarded::Flow(flow));
            self.notify();
        }
        self.driver.forget_line(fd);
    }

    /// As [`Core::end_operations_on`], for a close(2) that is made by others than the ring, right after: what has to be
    /// cancelled is so when this returns, and work that nobody waits for goes on with a descriptor of its own. On the
    /// machine's own thread only.
    pub fn let_go_of(&mut self, fd: RawFd) {
        let before = self.driver.has_operations_on(fd);
        self.end_all_on(fd);
        if self.driver.has_work(fd) {
            self.driver.keep_work(fd);
        }
        self.driver.forget_line(fd);
        if before {
            self.poll();
        }
    }

    /// Whether a descriptor is a socket that keeps messages apart. Known from its first use until it is closed.
    pub fn is_of_messages(&mut self, fd: RawFd) -> bool {
        match self.reading.of(fd) {
            Some(reading) => *reading.of_messages.get_or_insert_with(|| {
                let kind = socket_address::option(fd, libc::SOL_SOCKET, libc::SO_TYPE);
                kind.is_ok_and(|kind| kind != libc::SOCK_STREAM)
            }),
            None => false,
        }
    }

    /// Forgets whether it is one: it is not what it was.
    pub fn forget_messages(&mut self, fd: RawFd) {
        if let Some(reading) = self.reading.get_mut(fd) {
            reading.of_messages = None;
        }
    }
}

impl Caller {
    /// What has come from a descriptor, from now on.
    pub unsafe fn flow(&self, fd: RawFd) -> Result<Arc<Flow>, Raise> {
        // SAFETY: the core is alive while one of its fibers runs a method.
        unsafe {
            let core = self.core;
            let file = identity(fd).ok_or_else(|| Raise::errno(libc::EBADF))?;
            let known = ((*core).reading.get(fd)).and_then(|reading| reading.flow.clone());
            match known {
                Some(flow) if (*flow.get()).file == Some(file) => return Ok(flow),
                Some(_) => (*core).drop_flow(fd),
                None => {}
            }
            let flow = Flow::new();
            (*flow.get()).file = Some(file);
            if let Some(reading) = (*core).reading.of(fd) {
                reading.flow = Some(Arc::clone(&flow));
            }
            Ok(flow)
        }
    }

    /// Whether nothing comes before a read of a descriptor, which is known to keep no messages apart.
    #[inline]
    pub unsafe fn reads_plainly(&self, fd: RawFd) -> bool {
        // SAFETY: as above.
        unsafe {
            let reading = (*self.core).reading.get(fd);
            let plain = matches!(
                reading,
                Some(Reading {
                    flow: None,
                    of_messages: Some(false)
                })
            );
            plain && !(*self.core).driver.work_has_failed()
        }
    }

    /// What has come from a descriptor and is to be handed over first, if there is any.
    #[inline]
    pub unsafe fn kept(&self, fd: RawFd) -> Result<Option<Arc<Flow>>, Failure> {
        // SAFETY: as above.
        match unsafe { (*self.core).reading.get(fd) } {
            None | Some(Reading { flow: None, .. }) => Ok(None),
            // SAFETY: see `switch`.
            Some(_) => unsafe { self.find_kept(fd) },
        }
    }

    #[cold]
    unsafe fn find_kept(&self, fd: RawFd) -> Result<Option<Arc<Flow>>, Failure> {
        // SAFETY: as above.
        unsafe {
            let known = ((*self.core).reading.get(fd)).and_then(|reading| reading.flow.clone());
            let Some(flow) = known else { return Ok(None) };
            if (*flow.get()).is_idle() || (*flow.get()).busy {
                return Ok(None);
            }
            if identity(fd) != (*flow.get()).file {
                (*self.core).drop_flow(fd);
                return Ok(None);
            }
            self.settle(&flow)?;
            let inflow = &*flow.get();
            let any = !inflow.bytes.is_empty()
                || !inflow.descriptors.is_empty()
                || inflow.ended.is_some();
            Ok((any && !inflow.busy).then_some(flow))
        }
    }

    /// Waits until no operation brings anything any more that has been left, or is a UM::IO's that nobody reads from.
    pub unsafe fn settle(&self, flow: &Flow) -> Result<(), Failure> {
        // SAFETY: see `switch`; each reference ends before the next wait.
        unsafe {
            let inflow = flow.get();
            if !(*inflow).busy {
                (*inflow).leave_io(self.core);
            }
            loop {
                if (*inflow).gather(self.core) {
                    return Ok(());
                }
                let _ = (*self.core).driver.poll();
                if (*inflow).gather(self.core) {
                    return Ok(());
                }
                let Some(op) = (*inflow).left.front().copied() else {
                    return Ok(());
                };
                let caller = self.again();
                match (*self.core).driver.multishot(op) {
                    Some(stream) if stream.wait.is_none() => Running::of(op).wait(&caller)?,
                    // Another fiber waits for it.
                    _ => switch::yield_now(caller.core, caller.me)?,
                }
                if (*inflow).closed {
                    return Err(Raise::errno(libc::ECANCELED).into());
                }
            }
        }
    }

    /// Fills an object's memory with what has come, and the rest by an operation if `rest` makes one. `peeks` leaves
    /// it there.
    pub unsafe fn fill_from(
        &self,
        flow: &Flow,
        destination: Destination,
        peeks: bool,
        rest: Option<&dyn Fn(*mut u8, u32) -> uringmachine_runtime::Entry>,
    ) -> Result<i32, Failure> {
        // SAFETY: the bytes are copied to room that the destination has; see `Caller::fill`.
        unsafe {
            let inflow = flow.get();
            if (*inflow).bytes.is_empty() {
                let ended = if peeks {
                    (*inflow).ended
                } else {
                    (*inflow).ended.take()
                };
                let result = ended.unwrap_or(0);
                destination.finish(self.core, (result >= 0).then_some(0))?;
                return crate::machine::caller::count(result);
            }
            let count = (*inflow).bytes.len().min(destination.length);
            let (from, to) = ((*inflow).bytes.as_slice().as_ptr(), destination.pointer);
            std::ptr::copy_nonoverlapping(from, to, count);
            let mut total = count;
            match rest {
                Some(make) if count < destination.length && (*inflow).ended.is_none() => {
                    let entry = make(to.add(count), (destination.length - count) as u32);
                    (*self.core).waiter(self.me).held = destination.held();
                    let result = switch::operate(self.core, self.me, entry, None);
                    (*self.core).waiter(self.me).held = crate::ruby::NIL;
                    match result {
                        Ok(more) if more >= 0 => total += more as usize,
                        Ok(error) => (*inflow).ended = Some(error),
                        Err(failure) => {
                            destination.finish(self.core, None)?;
                            return Err(failure);
                        }
                    }
                }
                _ => {}
            }
            destination.finish(self.core, Some(total))?;
            if !peeks {
                let left = (*inflow).bytes.len();
                (*inflow).consume(count.min(left));
            }
            Ok(total as i32)
        }
    }
}

/// Whether a socket is one of TCP's, which throws bytes away that are received with MSG_TRUNC (tcp(7)).
pub fn discards_truncated(fd: RawFd) -> bool {
    const MPTCP: i32 = 262;
    let protocol = socket_address::option(fd, libc::SOL_SOCKET, libc::SO_PROTOCOL);
    protocol.is_ok_and(|protocol| protocol == libc::IPPROTO_TCP || protocol == MPTCP)
}

/// Whether an empty read of a socket that keeps messages apart is the end, and no empty message: its peer has closed
/// the connection, or it was shut down, and nothing else is there. (An empty message right before that is taken for it:
/// recvmsg(2) answers both by 0, without a flag or an address.)
pub fn is_end(fd: RawFd) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events: libc::POLLRDHUP,
        revents: 0,
    };
    let mut left = 0;
    // SAFETY: one pollfd, and a place for a number.
    unsafe {
        libc::poll(&mut poll, 1, 0) == 1
            && poll.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0
            && libc::ioctl(fd, libc::FIONREAD, &mut left) == 0
            && left == 0
    }
}
