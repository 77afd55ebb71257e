//! Receiving what OpenSSL reads, and, past it, what the kernel has decrypted.

#![forbid(unsafe_code)]

use uringmachine_runtime::memory::{self, MemoryMut, Part, SingleMut};
use uringmachine_runtime::operations::{Read, Recv, RecvMsg, CURRENT};

use super::connection::{Connection, Wait};
use super::is_transient;
use super::kernel::{self, HEADER, RECORD};
use super::transport::{outcome, UNSEEN};
use super::wire::{State, Wire};
use crate::machine::caller::Caller;
use crate::machine::operate::Failure;
use crate::os::control_message::Small;
use crate::os::fd::Fd;
use crate::os::{transfer, Errno};
use crate::ruby::Raise;

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

impl Connection {
    /// Receives bytes that the kernel has decrypted, where they are to go.
    pub(super) fn receive_into(
        &self,
        wire: &Wire,
        caller: &Caller,
        memory: &mut impl MemoryMut,
        wait: Wait,
    ) -> Result<Received, Failure> {
        if wire.receiving.is_taken() {
            self.stand_in(caller, &wire.receiving.line, wait)?;
            return Ok(Received::Nothing);
        }
        let fd = self.descriptor()?;
        caller.count_registered(memory);
        let mut receive = Recv {
            fd,
            memory: &mut *memory,
            flags: 0,
            poll_first: true,
        };
        let mut seen = UNSEEN;
        wire.receiving.begin(caller);
        let result = self.operate(caller, &mut receive, wait, &mut seen);
        wire.receiving.end();
        if seen > 0 && result.is_err() {
            // The fiber is to raise; the bytes are for the next who reads.
            let mut bytes = Vec::new();
            memory::append(&mut bytes, memory, seen as u32);
            wire.state().keep_record(&bytes);
            wire.note_held();
        }
        match outcome(result?) {
            // A receive without room for a record's type does not take one that is not the program's.
            Ok(0) | Err(Errno(libc::EIO)) => Ok(Received::ForOpenSsl),
            Ok(count) => Ok(Received::Bytes(count)),
            // The ring does not wait for a read of what is O_NONBLOCK.
            Err(errno) if is_transient(errno) => {
                self.ready(caller, libc::POLLIN, wait)?;
                Ok(Received::Nothing)
            }
            Err(errno) if kernel::is_bad_record(errno) => {
                wire.state().kernel.failed = Some(errno);
                Ok(Received::ForOpenSsl)
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// Receives something, or the end, into the inbound queue; or waits until another fiber has.
    pub(super) fn receive(&self, wire: &Wire, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        if wire.receiving.is_taken() {
            return self.stand_in(caller, &wire.receiving.line, wait);
        }
        let Some(room) = self.room(wire) else {
            return Ok(());
        };
        let fd = self.descriptor()?;
        let (mut memory, decrypts, is_hungry) = wire.state().begin_receive();
        let length = room.min(memory.len());
        let mut control = Small::default();
        let mut told = None;
        let mut seen = UNSEEN;
        wire.receiving.begin(caller);
        let result = if decrypts {
            let room = Part::new(&mut memory, HEADER as u32, (length - HEADER) as u32);
            let mut receive = RecvMsg::with(fd, SingleMut::new(room), (), &mut control[..], 0);
            receive.poll_first = true;
            let result = self.operate(caller, &mut receive, wait, &mut seen);
            told = Some(receive.control_length());
            result
        } else if wire.is_socket {
            let mut receive = Recv {
                fd,
                memory: Part::new(&mut memory, 0, length as u32),
                flags: 0,
                // OpenSSL has seen all there was, unless what came filled its memory.
                poll_first: !is_hungry,
            };
            self.operate(caller, &mut receive, wait, &mut seen)
        } else {
            let mut read = Read {
                fd,
                memory: Part::new(&mut memory, 0, length as u32),
                offset: CURRENT,
            };
            self.operate(caller, &mut read, wait, &mut seen)
        };
        let told = told.map(|length| told_by(&control, length));
        wire.state()
            .received(memory, length, outcome(seen).ok(), told);
        wire.receiving.end();
        if result.is_err() {
            wire.note_held();
        }
        match outcome(result?) {
            Ok(_) => Ok(()),
            // The ring does not wait for what is O_NONBLOCK and no socket.
            Err(errno) if is_transient(errno) => self.ready(caller, libc::POLLIN, wait),
            Err(errno) if decrypts && kernel::is_bad_record(errno) => {
                wire.state().kernel.failed = Some(errno);
                Ok(())
            }
            Err(errno) => Err(errno.into()),
        }
    }

    /// How much may be received now; `None` if OpenSSL has not read what has come.
    fn room(&self, wire: &Wire) -> Option<usize> {
        let is_init_finished = self.ssl.is_init_finished();
        let state = wire.state();
        if !state.kernel.offered {
            return Some(MOST);
        }
        if state.kernel.receives {
            // OpenSSL takes one record at a time.
            return state.inbound.is_empty().then_some(HEADER + RECORD);
        }
        if is_init_finished {
            return Some(MOST);
        }
        (state.inbound.is_empty()).then_some(state.kernel.asked.max(1))
    }

    /// Receives what is there, without waiting; says whether OpenSSL has something to read, be it the end.
    pub fn receive_now(&self) -> Result<bool, Raise> {
        let Some(wire) = self.wire() else {
            return Ok(false);
        };
        if wire.receiving.is_taken() {
            return Ok(false);
        }
        let Some(room) = self.room(wire) else {
            return Ok(true);
        };
        let fd = self.descriptor()?;
        let (mut memory, decrypts, _) = wire.state().begin_receive();
        let length = room.min(memory.len());
        let mut control = Small::default();
        let mut told = None;
        let result = if decrypts {
            let mut room = Part::new(&mut memory, HEADER as u32, (length - HEADER) as u32);
            let received = transfer::recvmsg(fd, &mut room, &mut control, libc::MSG_DONTWAIT);
            told = Some(received.map_or(0, |received| received.control));
            received.map(|received| received.count)
        } else if wire.is_socket {
            let mut room = Part::new(&mut memory, 0, length as u32);
            transfer::recv(fd, &mut room, libc::MSG_DONTWAIT)
        } else if Fd(fd).events_now(libc::POLLIN) != 0 {
            transfer::read(fd, &mut Part::new(&mut memory, 0, length as u32))
        } else {
            Err(Errno(libc::EAGAIN))
        };
        let told = told.map(|length| told_by(&control, length));
        wire.state().received(memory, length, result.ok(), told);
        match result {
            Ok(_) => Ok(true),
            Err(errno) if is_transient(errno) => Ok(false),
            Err(errno) if decrypts && kernel::is_bad_record(errno) => {
                wire.state().kernel.failed = Some(errno);
                Ok(true)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// The control messages that have come.
fn told_by(control: &Small, length: usize) -> &[u8] {
    &control[..length.min(control.len())]
}

impl State {
    /// Memory to receive into, whether the kernel decrypts what comes, and whether more is likely there.
    fn begin_receive(&mut self) -> (Vec<u8>, bool, bool) {
        let decrypts = self.kernel.receives;
        self.appetite = if decrypts {
            HEADER + RECORD
        } else {
            self.appetite.clamp(LEAST, MOST)
        };
        let mut memory = std::mem::take(&mut self.spare);
        if memory.len() != self.appetite {
            memory = vec![0; self.appetite];
        }
        (memory, decrypts, self.hungry)
    }

    /// Puts what has come in the queue, and the memory back. `room` is how much of it there was, `told` what
    /// the kernel says of a record that it has decrypted. No count is that of a failure.
    fn received(
        &mut self,
        mut memory: Vec<u8>,
        room: usize,
        count: Option<usize>,
        told: Option<&[u8]>,
    ) {
        match (count, told) {
            (Some(count), Some(control)) => match kernel::record_type(control, count) {
                Some(kind) => {
                    memory[..HEADER].copy_from_slice(&kernel::header(kind, count));
                    self.inbound.push(&memory[..HEADER + count]);
                }
                None => self.ended = true,
            },
            (Some(count), None) => {
                self.ended |= count == 0;
                self.inbound.push(&memory[..count]);
                self.hungry = count == room;
                if count == memory.len() {
                    self.appetite = memory.len() * 4;
                } else if count < memory.len() / 16 {
                    self.appetite = memory.len() / 4;
                }
            }
            (None, _) => {}
        }
        self.spare = memory;
    }

    /// Puts bytes of the program's, which the kernel has decrypted, where OpenSSL finds them.
    fn keep_record(&mut self, bytes: &[u8]) {
        for bytes in bytes.chunks(RECORD) {
            self.inbound
                .push(&kernel::header(kernel::DATA, bytes.len()));
            self.inbound.push(bytes);
        }
    }
}
