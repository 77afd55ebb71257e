//! The stream of a method that reads, and how more of it comes.

use std::sync::Arc;

use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::memory::SingleMut;
use uringmachine_runtime::operations::{Read, RecvMsg, CURRENT};

use super::{Io, Mode};
use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::inflow::{self, Flow};
use crate::machine::multishot::{Running, NOT_POLLABLE};
use crate::machine::operate::Failure;
use crate::machine::owner::Um;
use crate::ruby::this::This;
use crate::ruby::{Outcome, Raise};
use crate::tls;

/// The stream of a method that reads: one fiber at a time.
pub(super) struct Reader<'a> {
    pub(super) io: &'a Io,
    pub(super) flow: Arc<Flow>,
    pub(super) caller: Caller<'a>,
}

/// How a read went on: whether there are more bytes than before.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum More {
    Bytes,
    End,
}

impl Drop for Reader<'_> {
    fn drop(&mut self) {
        self.flow.get().busy = false;
    }
}

impl<'a> Reader<'a> {
    fn new(io: &'a Io, um: &'a Um) -> Result<Self, Raise> {
        let caller = Caller::new(um)?;
        io.share(&caller);
        let flow = io.flow();
        if std::mem::replace(&mut flow.get().busy, true) {
            return Err(Raise::misuse("another fiber is reading from this UM::IO"));
        }
        Ok(Self { io, flow, caller })
    }

    /// Shows what has come and is not consumed. Nothing in `look` waits, or calls Ruby.
    pub(super) fn with_bytes<T>(&self, look: impl FnOnce(&[u8]) -> T) -> T {
        look(self.flow.get().bytes.as_slice())
    }

    /// How many bytes there are.
    pub(super) fn length(&self) -> usize {
        self.flow.get().bytes.len()
    }

    /// Takes the oldest bytes away.
    pub(super) fn consume(&self, count: usize) {
        self.flow.get().consume(count);
        self.count(count);
    }

    /// Takes all bytes out.
    pub(super) fn take_all(&self) -> Bytes {
        let bytes = self.flow.get().take_all();
        self.count(bytes.len());
        bytes
    }

    /// Counts bytes that were taken away.
    fn count(&self, count: usize) {
        let consumed = &self.io.consumed;
        consumed.set(consumed.get() + count as u64);
    }

    /// Waits for more bytes.
    pub(super) fn more(&self) -> Result<More, Failure> {
        if self.io.ended.get() {
            return Ok(More::End);
        }
        let more = match self.io.mode.get() {
            Mode::Ssl => self.more_of_ssl(),
            Mode::Fd | Mode::Socket => self.more_of_stream(),
        }?;
        if more == More::End {
            self.io.ended.set(true);
        }
        Ok(more)
    }

    fn more_of_stream(&self) -> Result<More, Failure> {
        let (io, fd) = (self.io, self.io.fd.get());
        if self.flow.get().closed {
            return Err(Raise::errno(libc::EBADF).into());
        }
        self.caller.told(fd)?;
        let had = self.length();
        loop {
            let caller = self.caller.again();
            // What loops have left comes first.
            caller.settle(&self.flow)?;
            if self.length() > had {
                return Ok(More::Bytes);
            }
            let ended = self.flow.get().ended.take();
            match ended {
                None => {}
                Some(0) => return Ok(More::End),
                Some(NOT_POLLABLE) if io.mode.get() == Mode::Fd => io.single.set(true),
                Some(result) => return Err(Raise::errno(-result).into()),
            }
            let mut running = self.flow.get().op;
            if running.is_none() {
                if caller.machine.is_of_messages(fd) {
                    return self.more_by_message();
                }
                if io.single.get() {
                    return self.more_by_single_read();
                }
                let receive = (io.mode.get() == Mode::Socket).then_some(0);
                match Running::bytes(&caller, fd, receive)? {
                    Some(multishot) => running = Some(multishot.op()),
                    None => io.single.set(true),
                }
                self.flow.get().op = running;
            }
            let Some(op) = running else { continue };
            let running = Running::of(op);
            let has_ended = {
                let mut multishot = running.state(&caller)?;
                self.flow.get().take(&mut multishot.arrivals);
                multishot.ended.is_some()
            };
            if has_ended {
                // Its end, or its error, comes after the bytes.
                self.flow.leave_io(caller.machine);
            } else if self.length() == had {
                running.wait(&caller)?;
                if self.flow.get().closed {
                    return Err(Raise::errno(libc::ECANCELED).into());
                }
                continue;
            }
            if self.length() > had {
                return Ok(More::Bytes);
            }
        }
    }

    /// For what cannot be read by multishot: regular files, and older kernels.
    fn more_by_single_read(&self) -> Result<More, Failure> {
        const LENGTH: usize = 64 << 10;
        let (count, read) = self.caller.again().run(Read {
            fd: self.io.fd.get(),
            memory: vec![0; LENGTH],
            offset: CURRENT,
        })?;
        Ok(self.add(read.memory, count as usize))
    }

    /// Adds the first bytes of what was read.
    fn add(&self, mut bytes: Vec<u8>, count: usize) -> More {
        bytes.truncate(count);
        if bytes.is_empty() {
            return More::End;
        }
        self.flow.get().bytes.append(bytes);
        More::Bytes
    }

    /// For a socket that keeps messages apart: the next one's bytes. An empty one has none, and is not the end.
    fn more_by_message(&self) -> Result<More, Failure> {
        const LENGTH: usize = 64 << 10;
        let fd = self.io.fd.get();
        loop {
            let room = SingleMut::new(vec![0; LENGTH]);
            let (count, message) = self.caller.again().run(RecvMsg::new(fd, room, 0))?;
            if message.message_flags() & libc::MSG_TRUNC != 0 {
                return Err(Raise::errno(libc::EMSGSIZE).into());
            }
            if count > 0 {
                return Ok(self.add(message.pieces.into_memory(), count as usize));
            }
            if inflow::is_end(fd) {
                return Ok(More::End);
            }
        }
    }

    fn more_of_ssl(&self) -> Result<More, Failure> {
        // A record's worth (RFC 8446, 5.1).
        const LENGTH: usize = 16 << 10;
        let mut room = vec![0; LENGTH];
        let count = tls::read(&self.caller.again(), self.io.ssl.get(), &mut room)?;
        Ok(self.add(room, count))
    }
}

/// Runs a method that reads.
pub(super) fn reading(io: This<Io>, body: impl FnOnce(&Reader) -> Answer) -> Outcome {
    let um = io.um()?;
    let reader = Reader::new(&io, &um)?;
    let result = body(&reader);
    drop(reader);
    io.keep();
    answer(result)
}
