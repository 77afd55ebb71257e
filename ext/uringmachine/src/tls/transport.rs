//! What the ring does for a TLS connection between the calls of OpenSSL.

use std::ffi::c_int;
use std::ops::ControlFlow;

use uringmachine_runtime::ring::poll_first;
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{opcode, types, Entry};

use super::bio::{Party, Queue, Wire};
use super::connection::{Connection, Wait};
use crate::core::Pending;
use crate::machine::Caller;
use crate::switch::{self, Failure, Yields};
use crate::sys::{self, Raise};
use crate::um;
use crate::waiters::{self, Waiters};

/// How much is received at once: little by an idle connection, more while what came filled it.
const LEAST: usize = 4 << 10;
const MOST: usize = 64 << 10;
/// What has become of bytes that were to be sent at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    All,
    /// The descriptor takes no more now, or another fiber is at it.
    Part,
    /// They can't ever be sent.
    None,
}

fn is_transient(errno: c_int) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
}

pub fn errno() -> c_int {
    // SAFETY: errno of this thread.
    unsafe { *libc::__errno_location() }
}

impl Connection {
    /// Sends what there is and receives something: what OpenSSL asks for when it wants to read.
    pub unsafe fn exchange(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: the wire lives as long as the SSL, which the caller keeps.
        unsafe {
            if self.wire.is_null() {
                return self.ready(caller, libc::POLLIN, wait);
            }
            if self.send_now() == Sent::Part && (*self.wire).sender.is_none() {
                if (*self.wire).receiver.is_some() {
                    // What is wanted may come meanwhile, so OpenSSL is asked again.
                    return self.flush(caller, wait);
                }
                // The peer may not read before it has written something.
                return self.ready_either(caller, wait);
            }
            self.receive(caller, wait)
        }
    }

    /// Waits until the descriptor takes or has bytes, and moves them.
    unsafe fn ready_either(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: as `exchange`.
        unsafe {
            self.ready(caller, libc::POLLIN | libc::POLLOUT, wait)?;
            self.send_now();
            self.receive_now()?;
            Ok(())
        }
    }

    /// Waits until the descriptor is ready, or has failed.
    pub unsafe fn ready(&self, caller: &Caller, events: i16, wait: Wait) -> Result<(), Failure> {
        // SAFETY: a poll points to nothing.
        unsafe {
            let fd = types::Fd(self.descriptor()?);
            let entry = opcode::PollAdd::new(fd, events as u32).build();
            let mut seen = 0;
            let result = self.operate(caller, entry, wait, &mut seen)?;
            if result < 0 && !is_transient(-result) {
                return Err(Raise::errno(-result).into());
            }
            Ok(())
        }
    }

    unsafe fn operate(
        &self,
        caller: &Caller,
        entry: Entry,
        wait: Wait,
        seen: &mut i32,
    ) -> Result<i32, Failure> {
        // SAFETY: the caller keeps what the entry points to.
        unsafe {
            let deadline = self.deadline(wait)?;
            let core = caller.core;
            // A callback may have let other fibers run.
            let me = (*core).current_task();
            switch::operate_noting(core, me, entry, deadline, Yields::Count, seen)
                .map_err(|failure| timed_out(failure, wait))
        }
    }

    /// Waits in one of the wire's lines.
    pub unsafe fn stand_in(
        &self,
        caller: &Caller,
        line: impl Fn(*mut Wire) -> *mut Waiters,
        wait: Wait,
    ) -> Result<(), Failure> {
        // SAFETY: the wire lives as long as the SSL.
        unsafe {
            let deadline = self.deadline(wait)?;
            let core = caller.core;
            let caller = Caller {
                core,
                me: (*core).current_task(),
            };
            let machine = um::object_of(core);
            match waiters::wait(&caller, machine, || line(self.wire), false, deadline) {
                Ok(true) => Ok(()),
                Ok(false) => Err(timed_out(Failure::Timeout, wait)),
                Err(failure) => Err(failure),
            }
        }
    }

    unsafe fn party(&self, caller: &Caller) -> Party {
        // SAFETY: the core is alive while one of its fibers runs.
        unsafe {
            Party {
                core: caller.core,
                machine: um::object_of(caller.core),
                task: (*caller.core).current_task(),
            }
        }
    }

    /// Receives something, or the end, into the inbound queue; or waits until another fiber has.
    unsafe fn receive(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: the memory is on this frame, which `operate` leaves when the kernel is done with it.
        unsafe {
            let wire = self.wire;
            if (*wire).receiver.is_some() {
                return self.stand_in(caller, |wire| &raw mut (*wire).receivers, wait);
            }
            let fd = types::Fd(self.descriptor()?);
            let mut memory = self.take_memory();
            let (pointer, room) = (memory.as_mut_ptr(), memory.len() as u32);
            let entry = match ((*wire).is_socket, (*wire).hungry) {
                (true, true) => opcode::Recv::new(fd, pointer, room).build(),
                // OpenSSL has seen all there was.
                (true, false) => poll_first(opcode::Recv::new(fd, pointer, room).build()),
                (false, _) => opcode::Read::new(fd, pointer, room)
                    .offset(crate::arguments::CURRENT)
                    .build(),
            };
            let mut seen = -libc::ECANCELED;
            (*wire).receiver = Some(self.party(caller));
            let result = self.operate(caller, entry, wait, &mut seen);
            (*wire).receiver = None;
            self.received(memory, seen);
            (*wire).receivers.wake_all();
            match result? {
                result if result >= 0 => Ok(()),
                // The ring does not wait for what is O_NONBLOCK and no socket.
                result if is_transient(-result) => self.ready(caller, libc::POLLIN, wait),
                result => Err(Raise::errno(-result).into()),
            }
        }
    }

    unsafe fn take_memory(&self) -> Vec<u8> {
        // SAFETY: the wire lives as long as the SSL; the reference ends here.
        unsafe {
            let wire = &mut *self.wire;
            wire.appetite = wire.appetite.clamp(LEAST, MOST);
            let mut memory = std::mem::take(&mut wire.spare);
            if memory.len() != wire.appetite {
                memory = vec![0; wire.appetite];
            }
            memory
        }
    }

    /// Puts what has come in the queue, and the memory back.
    unsafe fn received(&self, memory: Vec<u8>, result: i32) {
        // SAFETY: as `take_memory`.
        unsafe {
            let wire = &mut *self.wire;
            if let Ok(count) = usize::try_from(result) {
                wire.ended |= count == 0;
                wire.inbound.push(&memory[..count]);
                wire.hungry = count == memory.len();
                if wire.hungry {
                    wire.appetite = memory.len() * 4;
                } else if count < memory.len() / 16 {
                    wire.appetite = memory.len() / 4;
                }
            }
            wire.spare = memory;
        }
    }

    /// Receives what is there, without waiting; says whether something, or the end, has come.
    pub unsafe fn receive_now(&self) -> Result<bool, Raise> {
        // SAFETY: the memory is on this frame.
        unsafe {
            let wire = self.wire;
            if (*wire).receiver.is_some() {
                return Ok(false);
            }
            let fd = self.descriptor()?;
            let mut memory = self.take_memory();
            let (pointer, room) = (memory.as_mut_ptr(), memory.len());
            let result = if (*wire).is_socket {
                libc::recv(fd, pointer.cast(), room, libc::MSG_DONTWAIT)
            } else if is_ready(fd, libc::POLLIN) {
                libc::read(fd, pointer.cast(), room)
            } else {
                *libc::__errno_location() = libc::EAGAIN;
                -1
            };
            let failed = errno();
            self.received(memory, result as i32);
            match result {
                0.. => Ok(true),
                _ if is_transient(failed) => Ok(false),
                _ => Err(Raise::errno(failed)),
            }
        }
    }

    /// Sends everything, waiting until the kernel has it.
    pub unsafe fn flush(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: as `receive`.
        unsafe {
            let wire = self.wire;
            if wire.is_null() {
                return Ok(());
            }
            while !(*wire).is_flushed() || (*wire).sender.is_some() {
                if (*wire).sender.is_some() {
                    self.stand_in(caller, |wire| &raw mut (*wire).senders, wait)?;
                    continue;
                }
                let fd = types::Fd(self.descriptor()?);
                let mut queue = std::mem::take(&mut *self.queue());
                let bytes = queue.as_slice();
                let length = bytes.len().min(1 << 30) as u32;
                let entry = if (*wire).is_socket {
                    opcode::Send::new(fd, bytes.as_ptr(), length)
                        .flags(libc::MSG_NOSIGNAL)
                        .build()
                } else {
                    opcode::Write::new(fd, bytes.as_ptr(), length)
                        .offset(crate::arguments::CURRENT)
                        .build()
                };
                let mut seen = -libc::ECANCELED;
                (*wire).sender = Some(self.party(caller));
                let result = self.operate(caller, entry, wait, &mut seen);
                (*wire).sender = None;
                queue.skip(seen.max(0) as usize);
                (*wire).sending = queue;
                (*wire).senders.wake_all();
                match result? {
                    result if result >= 0 => {}
                    result if is_transient(-result) => {
                        self.ready(caller, libc::POLLOUT, wait)?;
                    }
                    result => {
                        // Nothing can be sent any more.
                        (*wire).sending.clear();
                        (*wire).outbound.clear();
                        return Err(Raise::errno(-result).into());
                    }
                }
            }
            Ok(())
        }
    }

    /// Sends what the kernel takes without waiting.
    pub unsafe fn send_now(&self) -> Sent {
        // SAFETY: as `receive`.
        unsafe {
            let wire = self.wire;
            if wire.is_null() {
                return Sent::All;
            }
            while !(*wire).is_flushed() {
                if (*wire).sender.is_some() {
                    return Sent::Part;
                }
                let Ok(fd) = self.descriptor() else {
                    return Sent::None;
                };
                match send_at_once(fd, (*wire).is_socket, &mut *self.queue()) {
                    ControlFlow::Continue(()) => {}
                    ControlFlow::Break(Sent::None) => {
                        (*wire).sending.clear();
                        (*wire).outbound.clear();
                        return Sent::None;
                    }
                    ControlFlow::Break(sent) => return sent,
                }
            }
            Sent::All
        }
    }

    /// What is to be sent next.
    unsafe fn queue(&self) -> *mut Queue {
        // SAFETY: as `take_memory`.
        unsafe {
            let wire = &mut *self.wire;
            if wire.sending.is_empty() {
                std::mem::swap(&mut wire.sending, &mut wire.outbound);
            }
            &raw mut wire.sending
        }
    }

    /// Whether the descriptor would take a record now.
    pub unsafe fn takes_now(&self) -> Result<bool, Raise> {
        // SAFETY: as `receive`.
        unsafe { Ok(self.send_now() != Sent::Part && is_ready(self.descriptor()?, libc::POLLOUT)) }
    }

    /// Has the fibers raise that wait for the descriptor, which is about to be closed.
    pub unsafe fn abandon(&self) {
        // SAFETY: the parties' machines are marked while they wait; the GVL guards their tasks.
        unsafe {
            if self.wire.is_null() {
                return;
            }
            for party in [(*self.wire).receiver, (*self.wire).sender] {
                let Some(Party { core, task, .. }) = party else {
                    continue;
                };
                let text = "stream closed in another thread";
                if let Raise::Exception(error) = Raise::new(rb_sys::rb_eIOError, text) {
                    let state = (*core).machine.tasks.state(task);
                    if state == Some(State::Waiting) {
                        (*core).interrupt(task, Pending::Exception(error));
                        (*core).notify();
                    }
                }
            }
        }
    }
}

/// Sends the front of a queue.
unsafe fn send_at_once(fd: c_int, is_socket: bool, queue: &mut Queue) -> ControlFlow<Sent> {
    let bytes = queue.as_slice();
    let flags = libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL;
    // SAFETY: the bytes are the queue's.
    let result = unsafe {
        if is_socket {
            libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags)
        } else if is_ready(fd, libc::POLLOUT) {
            // A pipe that is ready takes that many (pipe(7), PIPE_BUF).
            libc::write(fd, bytes.as_ptr().cast(), bytes.len().min(4096))
        } else {
            return ControlFlow::Break(Sent::Part);
        }
    };
    match usize::try_from(result) {
        Ok(count) => {
            queue.skip(count);
            ControlFlow::Continue(())
        }
        Err(_) if is_transient(errno()) => ControlFlow::Break(Sent::Part),
        Err(_) => ControlFlow::Break(Sent::None),
    }
}

fn is_ready(fd: c_int, events: i16) -> bool {
    let mut poll = libc::pollfd {
        fd,
        events,
        revents: 0,
    };
    // SAFETY: one pollfd, and no waiting.
    unsafe { libc::poll(&mut poll, 1, 0) > 0 }
}

unsafe fn timed_out_error() -> Raise {
    // SAFETY: a constant of IO.
    Raise::new(
        unsafe { sys::io_timeout_error() },
        "Blocking operation timed out!",
    )
}

fn timed_out(failure: Failure, wait: Wait) -> Failure {
    match failure {
        // SAFETY: Ruby is up.
        Failure::Timeout if wait == Wait::Timeout => Failure::Raise(unsafe { timed_out_error() }),
        failure => failure,
    }
}
