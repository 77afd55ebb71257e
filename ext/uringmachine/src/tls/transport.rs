//! What the ring does for a TLS connection between the calls of OpenSSL.

use std::ffi::c_int;
use std::ops::ControlFlow;

use nix::errno::Errno;
use uringmachine_runtime::operations::poll_first;
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{opcode, types, Entry};

use super::bio::{self, Party, Queue, Wire};
use super::connection::{Connection, Wait};
use super::kernel::{self, Message, HEADER, RECORD};
use crate::machine::caller::Caller;
use crate::machine::line::{self, Waiters};
use crate::machine::poll::poll_on_thread;
use crate::machine::switch::{self, Failure, Yields};
use crate::machine::{registry, Pending};
use crate::ruby::{self, Raise};

/// How much is received at once: little by an idle connection, more while what came filled it.
const LEAST: usize = 4 << 10;
const MOST: usize = 64 << 10;
/// What a receive past OpenSSL came to.
pub enum Received {
    Bytes(usize),
    /// Another fiber may have received something.
    Nothing,
    /// OpenSSL must have a look: at a record that is not the program's, at a broken one, or at the end.
    ForOpenSsl,
}

/// What has become of bytes that were to be sent at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    All,
    /// The descriptor takes no more now, or another fiber is at it.
    Part,
    /// They can't ever be sent.
    None,
}

pub fn is_transient(errno: c_int) -> bool {
    matches!(errno, libc::EAGAIN | libc::EINTR)
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
            let counts = i32::from(events | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
            if result >= 0 && result & counts == 0 {
                let (core, deadline) = (caller.core, self.deadline(wait)?);
                let me = (*core).current_task();
                let list = [(self.descriptor()?, events as u32)];
                if poll_on_thread(core, me, &list, deadline)?.is_none() {
                    return Err(timed_out(Failure::Timeout, wait));
                }
            }
            Ok(())
        }
    }

    /// Waits until OpenSSL can write what the descriptor did not take.
    pub unsafe fn make_room(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: as `ready`.
        unsafe {
            self.flush(caller, wait)?;
            self.ready(caller, libc::POLLOUT, wait)
        }
    }

    /// Receives bytes that the kernel has decrypted, where they are to go.
    pub unsafe fn receive_into(
        &self,
        caller: &Caller,
        pointer: *mut u8,
        room: u32,
        fixed: Option<u16>,
        wait: Wait,
    ) -> Result<Received, Failure> {
        // SAFETY: the caller keeps the memory until this returns, and `operate` returns when the kernel is
        // done with it.
        unsafe {
            let wire = self.wire;
            if (*wire).receiver.is_some() {
                self.stand_in(caller, |wire| &raw mut (*wire).receivers, wait)?;
                return Ok(Received::Nothing);
            }
            let fd = types::Fd(self.descriptor()?);
            (*caller.core).fixed += u64::from(fixed.is_some());
            let entry = match fixed {
                Some(index) => opcode::ReadFixed::new(fd, pointer, room, index).build(),
                None => poll_first(opcode::Recv::new(fd, pointer, room).build()),
            };
            let mut seen = -libc::ECANCELED;
            (*wire).receiver = Some(self.party(caller));
            let result = self.operate(caller, entry, wait, &mut seen);
            (*wire).receiver = None;
            (*wire).receivers.wake_all();
            if seen > 0 && result.is_err() {
                // The fiber is to raise; the bytes are for the next who reads.
                let record = std::slice::from_raw_parts(pointer, seen as usize);
                (*wire).keep_record(record);
                (*wire).note_held();
            }
            match result? {
                count if count > 0 => Ok(Received::Bytes(count as usize)),
                // A receive without room for a record's type does not take one that is not the program's.
                result if result == 0 || -result == libc::EIO => Ok(Received::ForOpenSsl),
                // The ring does not wait for a read of what is O_NONBLOCK.
                result if is_transient(-result) => {
                    self.ready(caller, libc::POLLIN, wait)?;
                    Ok(Received::Nothing)
                }
                result if kernel::is_bad_record(-result) => {
                    (*wire).kernel.failed = -result;
                    Ok(Received::ForOpenSsl)
                }
                result => Err(Raise::errno(-result).into()),
            }
        }
    }

    /// EPIPE if the peer has reset a connection that the kernel encrypts: the kernel would take bytes for it and
    /// report nothing, for as long as they are written (net/tls/tls_sw.c, tls_sw_sendmsg).
    pub unsafe fn check_peer(&self, fd: c_int) -> Result<(), Raise> {
        // SAFETY: the wire lives as long as the SSL.
        if unsafe { !self.wire.is_null() && (*self.wire).kernel.sends } && is_ready(fd, 0) {
            return Err(Raise::errno(libc::EPIPE));
        }
        Ok(())
    }

    /// Sends bytes that the kernel encrypts. `accepted` counts them.
    pub unsafe fn send_from(
        &self,
        caller: &Caller,
        mut bytes: &[u8],
        fixed: Option<u16>,
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        // SAFETY: as `receive_into`.
        unsafe {
            let wire = self.wire;
            while !bytes.is_empty() {
                if (*wire).sender.is_some() || !(*wire).is_flushed() {
                    // OpenSSL has answered something meanwhile.
                    self.flush(caller, wait)?;
                    continue;
                }
                if (*wire).kernel.stuck {
                    return Err(Raise::errno(libc::EKEYREJECTED).into());
                }
                let fd = types::Fd(self.descriptor()?);
                self.check_peer(fd.0)?;
                let length = bytes.len().min(1 << 30) as u32;
                (*caller.core).fixed += u64::from(fixed.is_some());
                let entry = match fixed {
                    Some(index) => {
                        opcode::WriteFixed::new(fd, bytes.as_ptr(), length, index).build()
                    }
                    None => opcode::Send::new(fd, bytes.as_ptr(), length)
                        .flags(libc::MSG_NOSIGNAL)
                        .build(),
                };
                let mut seen = -libc::ECANCELED;
                (*wire).sender = Some(self.party(caller));
                let result = self.operate(caller, entry, wait, &mut seen);
                (*wire).sender = None;
                (*wire).senders.wake_all();
                let count = seen.max(0) as usize;
                *accepted += count as u64;
                bytes = &bytes[count..];
                match result? {
                    result if result >= 0 => {}
                    result if is_transient(-result) => self.ready(caller, libc::POLLOUT, wait)?,
                    result => return Err(Raise::errno(-result).into()),
                }
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
            let machine = registry::object_of(core);
            match line::wait(&caller, machine, || line(self.wire), false, deadline) {
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
                machine: registry::object_of(caller.core),
                task: (*caller.core).current_task(),
            }
        }
    }

    /// Receives something, or the end, into the inbound queue; or waits until another fiber has.
    unsafe fn receive(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        // SAFETY: the memory and the message are on this frame, which `operate` leaves when the kernel is done
        // with them.
        unsafe {
            let wire = self.wire;
            if (*wire).receiver.is_some() {
                return self.stand_in(caller, |wire| &raw mut (*wire).receivers, wait);
            }
            let Some(room) = self.room() else {
                return Ok(());
            };
            let fd = types::Fd(self.descriptor()?);
            let mut memory = self.take_memory();
            let (pointer, length) = (memory.as_mut_ptr(), room.min(memory.len()));
            let mut message = Message::new();
            let decrypts = (*wire).kernel.receives;
            let entry = if decrypts {
                message.prepare(pointer.add(HEADER), length - HEADER);
                poll_first(opcode::RecvMsg::new(fd, &raw mut message.header).build())
            } else {
                match ((*wire).is_socket, (*wire).hungry) {
                    (true, true) => opcode::Recv::new(fd, pointer, length as u32).build(),
                    // OpenSSL has seen all there was.
                    (true, false) => {
                        poll_first(opcode::Recv::new(fd, pointer, length as u32).build())
                    }
                    (false, _) => opcode::Read::new(fd, pointer, length as u32)
                        .offset(crate::ruby::arguments::CURRENT)
                        .build(),
                }
            };
            let mut seen = -libc::ECANCELED;
            (*wire).receiver = Some(self.party(caller));
            let result = self.operate(caller, entry, wait, &mut seen);
            (*wire).receiver = None;
            self.received(memory, length, seen, decrypts.then_some(&message));
            (*wire).receivers.wake_all();
            if result.is_err() {
                (*wire).note_held();
            }
            match result? {
                result if result >= 0 => Ok(()),
                // The ring does not wait for what is O_NONBLOCK and no socket.
                result if is_transient(-result) => self.ready(caller, libc::POLLIN, wait),
                result if decrypts && kernel::is_bad_record(-result) => {
                    (*wire).kernel.failed = -result;
                    Ok(())
                }
                result => Err(Raise::errno(-result).into()),
            }
        }
    }

    /// How much may be received now; `None` if OpenSSL has not read what has come.
    unsafe fn room(&self) -> Option<usize> {
        // SAFETY: the wire and the SSL live as long as the object.
        unsafe {
            let wire = self.wire;
            let kernel = &(*wire).kernel;
            if !kernel.offered {
                return Some(MOST);
            }
            if kernel.receives {
                // OpenSSL takes one record at a time.
                return (*wire).inbound.is_empty().then_some(HEADER + RECORD);
            }
            if (self.openssl.SSL_is_init_finished)(self.ssl) != 0 {
                return Some(MOST);
            }
            (*wire).inbound.is_empty().then_some(kernel.asked.max(1))
        }
    }

    unsafe fn take_memory(&self) -> Vec<u8> {
        // SAFETY: the wire lives as long as the SSL; the reference ends here.
        unsafe {
            let wire = &mut *self.wire;
            wire.appetite = if wire.kernel.receives {
                HEADER + RECORD
            } else {
                wire.appetite.clamp(LEAST, MOST)
            };
            let mut memory = std::mem::take(&mut wire.spare);
            if memory.len() != wire.appetite {
                memory = vec![0; wire.appetite];
            }
            memory
        }
    }

    /// Puts what has come in the queue, and the memory back. `room` is how much of it there was, `message` what
    /// the kernel says of a record that it has decrypted.
    unsafe fn received(
        &self,
        mut memory: Vec<u8>,
        room: usize,
        result: i32,
        message: Option<&Message>,
    ) {
        // SAFETY: as `take_memory`.
        unsafe {
            let wire = &mut *self.wire;
            match (usize::try_from(result), message) {
                (Ok(count), Some(message)) => match message.record(count) {
                    Some(kind) => {
                        memory[..HEADER].copy_from_slice(&header(kind, count));
                        wire.inbound.push(&memory[..HEADER + count]);
                    }
                    None => wire.ended = true,
                },
                (Ok(count), None) => {
                    wire.ended |= count == 0;
                    wire.inbound.push(&memory[..count]);
                    wire.hungry = count == room;
                    if count == memory.len() {
                        wire.appetite = memory.len() * 4;
                    } else if count < memory.len() / 16 {
                        wire.appetite = memory.len() / 4;
                    }
                }
                (Err(_), _) => {}
            }
            wire.spare = memory;
        }
    }

    /// Receives what is there, without waiting; says whether OpenSSL has something to read, be it the end.
    pub unsafe fn receive_now(&self) -> Result<bool, Raise> {
        // SAFETY: the memory and the message are on this frame.
        unsafe {
            let wire = self.wire;
            if (*wire).receiver.is_some() {
                return Ok(false);
            }
            let Some(room) = self.room() else {
                return Ok(true);
            };
            let fd = self.descriptor()?;
            let mut memory = self.take_memory();
            let (pointer, length) = (memory.as_mut_ptr(), room.min(memory.len()));
            let mut message = Message::new();
            let decrypts = (*wire).kernel.receives;
            let result = if decrypts {
                message.prepare(pointer.add(HEADER), length - HEADER);
                libc::recvmsg(fd, &raw mut message.header, libc::MSG_DONTWAIT)
            } else if (*wire).is_socket {
                libc::recv(fd, pointer.cast(), length, libc::MSG_DONTWAIT)
            } else if is_ready(fd, libc::POLLIN) {
                libc::read(fd, pointer.cast(), length)
            } else {
                Errno::set_raw(libc::EAGAIN);
                -1
            };
            let failed = Errno::last_raw();
            let message = decrypts.then_some(&message);
            self.received(memory, length, result as i32, message);
            match result {
                0.. => Ok(true),
                _ if is_transient(failed) => Ok(false),
                _ if decrypts && kernel::is_bad_record(failed) => {
                    (*wire).kernel.failed = failed;
                    Ok(true)
                }
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
                if let Err(gone) = self.check_peer(fd.0) {
                    (*wire).sending.clear();
                    (*wire).outbound.clear();
                    return Err(gone.into());
                }
                let mut queue = std::mem::take((*wire).queue());
                let bytes = queue.as_slice();
                let length = bytes.len().min(1 << 30) as u32;
                let entry = if (*wire).is_socket {
                    opcode::Send::new(fd, bytes.as_ptr(), length)
                        .flags(libc::MSG_NOSIGNAL)
                        .build()
                } else {
                    opcode::Write::new(fd, bytes.as_ptr(), length)
                        .offset(crate::ruby::arguments::CURRENT)
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
        // SAFETY: the wire lives as long as the SSL.
        unsafe {
            if self.wire.is_null() || (*self.wire).is_flushed() {
                return Sent::All;
            }
            match self.descriptor() {
                Ok(fd) => (*self.wire).send_now(fd),
                Err(_) => Sent::None,
            }
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
            bio::forget((*self.wire).fd);
            for party in [(*self.wire).receiver, (*self.wire).sender] {
                let Some(Party { core, task, .. }) = party else {
                    continue;
                };
                let text = "stream closed in another thread";
                if let Raise::Exception(error) = Raise::new(rb_sys::rb_eIOError, text) {
                    let state = (*core).driver.tasks.state(task);
                    if state == Some(State::Waiting) {
                        (*core).interrupt(task, Pending::Exception(error));
                        (*core).notify();
                    }
                }
            }
        }
    }
}

impl Wire {
    /// Sends what the kernel takes without waiting.
    pub fn send_now(&mut self, fd: c_int) -> Sent {
        while !self.is_flushed() {
            if self.sender.is_some() {
                return Sent::Part;
            }
            let is_socket = self.is_socket;
            match send_at_once(fd, is_socket, self.queue()) {
                ControlFlow::Continue(()) => {}
                ControlFlow::Break(Sent::None) => {
                    self.sending.clear();
                    self.outbound.clear();
                    return Sent::None;
                }
                ControlFlow::Break(sent) => return sent,
            }
        }
        Sent::All
    }

    /// Puts bytes of the program's, which the kernel has decrypted, where OpenSSL finds them.
    fn keep_record(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(RECORD) {
            self.inbound.push(&header(kernel::DATA, bytes.len()));
            self.inbound.push(bytes);
        }
    }

    /// What is to be sent next.
    fn queue(&mut self) -> &mut Queue {
        if self.sending.is_empty() {
            std::mem::swap(&mut self.sending, &mut self.outbound);
        }
        &mut self.sending
    }
}

/// The header of a record, as OpenSSL wants it before one that the kernel has decrypted.
fn header(kind: u8, length: usize) -> [u8; HEADER] {
    let [high, low] = (length as u16).to_be_bytes();
    // TLS 1.2's version stands in the records of 1.3, too.
    [kind, 3, 3, high, low]
}

/// Sends the front of a queue.
fn send_at_once(fd: c_int, is_socket: bool, queue: &mut Queue) -> ControlFlow<Sent> {
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
        Err(_) if is_transient(Errno::last_raw()) => ControlFlow::Break(Sent::Part),
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
        unsafe { ruby::io_timeout_error() },
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
