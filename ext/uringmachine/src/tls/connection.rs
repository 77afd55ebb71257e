//! One TLS connection: the calls of OpenSSL.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use uringmachine_runtime::memory::{self, Memory, MemoryMut, Part};

use super::bio::{self, Attached};
use super::kernel::RECORD;
use super::openssl::{self, Called, Ssl};
use super::receive::Received;
use super::wire::Wire;
use crate::machine::caller::{Caller, Source};
use crate::machine::operate::Failure;
use crate::os::fd::Fd;
use crate::ruby::{self, duration, foreign, io, Raise, Value, NIL};

/// How much is encrypted before it is sent.
const BATCH: usize = 128 << 10;

/// How long to wait for the descriptor.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    Forever,
    /// As long as `io.timeout` says, then IO::TimeoutError.
    Timeout,
}

/// An SSLSocket. It lives on frames of methods, where the collector sees it.
#[derive(Clone, Copy)]
pub struct Connection {
    pub(super) ssl: Ssl,
    wire: Option<Attached>,
}

/// What a call of OpenSSL came to.
enum Step {
    Done(usize),
    Ended,
    WantsRead,
    WantsWrite,
}

impl Connection {
    /// The connection of an SSLSocket.
    pub fn find(object: Value) -> Result<Self, Raise> {
        let ssl = Ssl::of(object)?;
        let wire = bio::wire_of(&ssl);
        Ok(Self { ssl, wire })
    }

    /// `None` if it has not been put on the ring: OpenSSL calls the kernel itself, and the ring waits for
    /// readiness.
    #[inline]
    pub(super) fn wire(&self) -> Option<&Wire> {
        self.wire.as_deref()
    }

    /// Whether it has been put on the ring.
    pub fn is_on_ring(&self) -> bool {
        self.wire.is_some()
    }

    /// The IO below.
    fn io(&self) -> Value {
        static IO: ruby::Name = ruby::Name::new("@io");
        ruby::variable(self.ssl.object, IO.id())
    }

    /// The descriptor below; IOError if it is closed.
    pub fn descriptor(&self) -> Result<RawFd, Raise> {
        io::descriptor(self.io())
    }

    /// Whether the descriptor below is a socket's.
    pub fn is_socket(&self) -> Result<bool, Raise> {
        Ok(Fd(self.descriptor()?).is_socket()?)
    }

    pub(super) fn deadline(&self, wait: Wait) -> Result<Option<u64>, Raise> {
        match wait {
            Wait::Forever => Ok(None),
            Wait::Timeout => duration::deadline(io::timeout(self.io())?),
        }
    }

    /// Calls OpenSSL. Ruby code may run, in callbacks.
    fn call(
        &self,
        name: &str,
        call: impl FnOnce(&Ssl) -> Result<Called, Raise>,
    ) -> Result<Step, Raise> {
        self.claim()?;
        let called = call(&self.ssl);
        self.unclaim();
        let openssl = self.ssl.openssl;
        let called = called.and_then(|called| self.callback_error().map_or(Ok(called), Err));
        let called = match called {
            Ok(called) => called,
            Err(raise) => {
                openssl.clear_errors();
                return Err(raise);
            }
        };
        if called.result > 0 {
            return Ok(Step::Done(called.result as usize));
        }
        match called.code {
            openssl::ERROR_ZERO_RETURN => Ok(Step::Ended),
            openssl::ERROR_WANT_READ => Ok(Step::WantsRead),
            openssl::ERROR_WANT_WRITE => Ok(Step::WantsWrite),
            openssl::ERROR_SYSCALL if called.errno.0 != 0 && !openssl.has_errors() => {
                Err(called.errno.into())
            }
            // The socket has ended, and OpenSSL has said so before.
            openssl::ERROR_SYSCALL if !openssl.has_errors() => Ok(Step::Ended),
            _ => Err(openssl.error(name)),
        }
    }

    /// What a callback has raised: the openssl extension notes it and goes on.
    fn callback_error(&self) -> Option<Raise> {
        static STATE: ruby::Name = ruby::Name::new("callback_state");
        let variable = STATE.id();
        let state = ruby::as_fixnum(ruby::variable(self.ssl.object, variable))?;
        // A frozen socket has never had one.
        let _ = ruby::set_variable(self.ssl.object, variable, NIL);
        foreign::left_over(state)
    }

    /// Notes that OpenSSL is at work on the connection, which it is not made for doing twice at once.
    pub fn claim(&self) -> Result<(), Raise> {
        let Some(wire) = self.wire() else {
            return Ok(());
        };
        let was_busy = std::mem::replace(&mut wire.state().busy, true);
        if was_busy {
            return Err(Raise::misuse(
                "ssl_socket is in use: one of its callbacks has not returned",
            ));
        }
        Ok(())
    }

    /// It is not any more.
    pub fn unclaim(&self) {
        if let Some(wire) = self.wire() {
            wire.state().busy = false;
            wire.note_held();
        }
    }

    /// See [`super::read`].
    pub fn read(
        &self,
        caller: &Caller,
        memory: &mut impl MemoryMut,
        wait: Wait,
    ) -> Result<usize, Failure> {
        if memory.length() == 0 {
            return Ok(0);
        }
        self.descriptor()?;
        if let Some(wire) = self.wire() {
            while self.kernel_receives() && !self.holds_bytes() {
                match self.receive_into(wire, caller, memory, wait)? {
                    Received::Bytes(count) => return Ok(count),
                    Received::Nothing => {}
                    Received::ForOpenSsl => break,
                }
            }
        }
        loop {
            match self.call("SSL_read", |ssl| ssl.read(memory)) {
                // An answer that a read made (to a KeyUpdate, say) need not be waited for: what the
                // kernel does not take now goes out before anything else does.
                Ok(Step::Done(count)) => {
                    self.send_now();
                    return Ok(count);
                }
                Ok(Step::Ended) => {
                    self.send_now();
                    return Ok(0);
                }
                Ok(Step::WantsRead) => self.exchange(caller, wait)?,
                Ok(Step::WantsWrite) => self.make_room(caller, wait)?,
                Err(raise) => {
                    self.send_now();
                    return Err(raise.into());
                }
            }
        }
    }

    /// Encrypts all of the sources and sends them. `accepted` counts what OpenSSL has taken.
    pub fn write(
        &self,
        caller: &Caller,
        sources: &[Source],
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        self.descriptor()?;
        let Some(wire) = self.wire() else {
            return self.encrypt(caller, sources, wait, accepted);
        };
        self.begin_write(wire, caller, wait)?;
        // What an earlier call has left comes first: OpenSSL would take more for ever, and this call would never wait
        // before it has something to count.
        if let Err(failure) = self.flush(caller, wait) {
            end_write(wire);
            return Err(failure);
        }
        let mut result = self.encrypt(caller, sources, wait, accepted);
        match &result {
            Ok(()) => result = self.flush(caller, wait),
            // Tells the peer why.
            Err(_) => drop(self.send_now()),
        }
        end_write(wire);
        result
    }

    /// Waits until no other fiber is in the middle of a write.
    fn begin_write(&self, wire: &Wire, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        loop {
            let was_writing = std::mem::replace(&mut wire.state().writing, true);
            if !was_writing {
                return Ok(());
            }
            self.stand_in(caller, &wire.writers, wait)?;
        }
    }

    /// Whether the kernel encrypts what is sent, so that the program's bytes need not pass through OpenSSL.
    pub fn kernel_sends(&self) -> bool {
        let sends = self.wire().is_some_and(|wire| {
            let kernel = &wire.state().kernel;
            kernel.sends && !kernel.stuck
        });
        sends
            && self.ssl.is_init_finished()
            && !self.ssl.has_sent_shutdown()
            && !self.ssl.has_key_update()
    }

    /// Whether bytes have come that the program has not read.
    pub fn holds_bytes(&self) -> bool {
        self.ssl.has_pending() || (self.wire()).is_some_and(|wire| !wire.state().inbound.is_empty())
    }

    /// Whether the kernel decrypts what is received.
    pub fn kernel_receives(&self) -> bool {
        let receives = self.wire().is_some_and(|wire| {
            let state = wire.state();
            state.kernel.receives && state.kernel.failed.is_none() && !state.ended
        });
        receives && self.ssl.is_init_finished() && !self.ssl.has_received_shutdown()
    }

    /// Sends bytes that the kernel encrypts, where they are; after what OpenSSL has written.
    pub fn send(
        &self,
        caller: &Caller,
        source: &Source,
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        self.descriptor()?;
        let Some(wire) = self.wire() else {
            return Ok(());
        };
        self.begin_write(wire, caller, wait)?;
        let result = self.flush(caller, wait).and_then(|()| {
            (source.pieces())
                .try_for_each(|piece| self.send_from(wire, caller, piece, wait, accepted))
        });
        end_write(wire);
        result
    }

    /// Small sources share records.
    fn encrypt(
        &self,
        caller: &Caller,
        sources: &[Source],
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        let mut record = Vec::new();
        for (place, source) in sources.iter().enumerate() {
            let is_last = place + 1 == sources.len();
            if record.len() + source.size() > RECORD || (is_last && record.is_empty()) {
                self.encrypt_bytes(caller, &record[..], wait, accepted)?;
                record.clear();
            }
            let is_alone = source.size() >= RECORD || (is_last && record.is_empty());
            for piece in source.pieces() {
                if is_alone {
                    self.encrypt_bytes(caller, piece, wait, accepted)?;
                } else {
                    memory::append(&mut record, &piece, u32::MAX);
                }
            }
        }
        self.encrypt_bytes(caller, &record[..], wait, accepted)
    }

    fn encrypt_bytes(
        &self,
        caller: &Caller,
        bytes: impl Memory,
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        let mut left = Part::new(bytes, 0, u32::MAX);
        while left.length() > 0 {
            let record = Part::new(&mut left, 0, RECORD as u32);
            match self.call("SSL_write", |ssl| ssl.write(&record))? {
                Step::Done(count) => {
                    left.skip(count as u32);
                    *accepted += count as u64;
                    let is_much =
                        (self.wire()).is_some_and(|wire| wire.state().outbound.len() >= BATCH);
                    if is_much {
                        self.flush(caller, wait)?;
                    }
                }
                // The peer renegotiates.
                Step::WantsRead => self.exchange(caller, wait)?,
                Step::WantsWrite => self.make_room(caller, wait)?,
                Step::Ended => return Err(self.ssl.openssl.error("SSL_write").into()),
            }
        }
        Ok(())
    }
}

fn end_write(wire: &Wire) {
    wire.state().writing = false;
    wire.writers.wake_all();
}
