//! Sending what OpenSSL has written, and, past it, what the kernel encrypts.

#![forbid(unsafe_code)]

use std::os::fd::RawFd;

use uringmachine_runtime::memory::{Memory, Part};
use uringmachine_runtime::operations::{Send, Write, CURRENT};

use super::connection::{Connection, Wait};
use super::is_transient;
use super::transport::{outcome, UNSEEN};
use super::wire::Wire;
use crate::machine::caller::Caller;
use crate::machine::operate::Failure;
use crate::os::fd::Fd;
use crate::os::{transfer, Errno};
use crate::ruby::Raise;

/// The most that one operation sends.
const MOST: u32 = 1 << 30;

/// What has become of bytes that were to be sent at once.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Sent {
    All,
    /// The descriptor takes no more now, or another fiber is at it.
    Part,
    /// They can't ever be sent.
    None,
}

impl Connection {
    /// EPIPE if the peer has reset a connection that the kernel encrypts: the kernel would take bytes for it and
    /// report nothing, for as long as they are written (net/tls/tls_sw.c, tls_sw_sendmsg).
    pub fn check_peer(&self, fd: RawFd) -> Result<(), Raise> {
        let kernel_sends = (self.wire()).is_some_and(|wire| wire.state().kernel.sends);
        if kernel_sends && Fd(fd).events_now(0) != 0 {
            return Err(Raise::errno(libc::EPIPE));
        }
        Ok(())
    }

    /// Sends bytes that the kernel encrypts. `accepted` counts them.
    pub(super) fn send_from(
        &self,
        wire: &Wire,
        caller: &Caller,
        bytes: impl Memory,
        wait: Wait,
        accepted: &mut u64,
    ) -> Result<(), Failure> {
        let mut left = Part::new(bytes, 0, u32::MAX);
        while left.length() > 0 {
            if wire.sending.is_taken() || !wire.state().is_flushed() {
                // OpenSSL has answered something meanwhile.
                self.flush(caller, wait)?;
                continue;
            }
            let is_stuck = wire.state().kernel.stuck;
            if is_stuck {
                return Err(Raise::errno(libc::EKEYREJECTED).into());
            }
            let fd = self.descriptor()?;
            self.check_peer(fd)?;
            caller.count_registered(&left);
            let piece = Part::new(&mut left, 0, MOST);
            let by_write = piece.registered().is_some();
            let mut seen = UNSEEN;
            wire.sending.begin(caller);
            let result = self.send_once(caller, fd, piece, by_write, wait, &mut seen);
            wire.sending.end();
            let count = outcome(seen).unwrap_or(0);
            *accepted += count as u64;
            left.skip(count as u32);
            match outcome(result?) {
                Ok(_) => {}
                Err(errno) if is_transient(errno) => self.ready(caller, libc::POLLOUT, wait)?,
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Has the ring send bytes, by a write if that is what the descriptor or the memory needs.
    fn send_once(
        &self,
        caller: &Caller,
        fd: RawFd,
        memory: impl Memory,
        by_write: bool,
        wait: Wait,
        seen: &mut i32,
    ) -> Result<i32, Failure> {
        if by_write {
            let offset = CURRENT;
            return self.operate(caller, &mut Write { fd, memory, offset }, wait, seen);
        }
        let mut send = Send {
            fd,
            memory,
            flags: libc::MSG_NOSIGNAL,
            without_copy: false,
        };
        self.operate(caller, &mut send, wait, seen)
    }

    /// Sends everything, waiting until the kernel has it.
    pub fn flush(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        let Some(wire) = self.wire() else {
            return Ok(());
        };
        while wire.sending.is_taken() || !wire.state().is_flushed() {
            if wire.sending.is_taken() {
                self.stand_in(caller, &wire.sending.line, wait)?;
                continue;
            }
            let fd = self.descriptor()?;
            if let Err(gone) = self.check_peer(fd) {
                wire.state().drop_unsent();
                return Err(gone.into());
            }
            let mut queue = std::mem::take(wire.state().next_to_send());
            let bytes = Part::new(queue.as_slice(), 0, MOST);
            let mut seen = UNSEEN;
            wire.sending.begin(caller);
            let result = self.send_once(caller, fd, bytes, !wire.is_socket, wait, &mut seen);
            queue.consume(outcome(seen).unwrap_or(0));
            wire.state().sending = queue;
            wire.sending.end();
            match outcome(result?) {
                Ok(_) => {}
                Err(errno) if is_transient(errno) => self.ready(caller, libc::POLLOUT, wait)?,
                Err(errno) => {
                    wire.state().drop_unsent();
                    return Err(errno.into());
                }
            }
        }
        Ok(())
    }

    /// Sends what the kernel takes without waiting.
    pub fn send_now(&self) -> Sent {
        let Some(wire) = self.wire() else {
            return Sent::All;
        };
        if wire.state().is_flushed() {
            return Sent::All;
        }
        match self.descriptor() {
            Ok(fd) => wire.send_now(fd),
            Err(_) => Sent::None,
        }
    }

    /// Whether the descriptor would take a record now.
    pub fn takes_now(&self) -> Result<bool, Raise> {
        Ok(self.send_now() != Sent::Part && Fd(self.descriptor()?).events_now(libc::POLLOUT) != 0)
    }
}

impl Wire {
    /// Sends what the kernel takes without waiting.
    pub fn send_now(&self, fd: RawFd) -> Sent {
        let mut state = self.state();
        while !state.is_flushed() {
            if self.sending.is_taken() {
                return Sent::Part;
            }
            let queue = state.next_to_send();
            match send_at_once(fd, self.is_socket, queue.as_slice()) {
                Ok(count) => queue.consume(count),
                Err(errno) if is_transient(errno) => return Sent::Part,
                Err(_) => {
                    state.drop_unsent();
                    return Sent::None;
                }
            }
        }
        Sent::All
    }
}

/// Sends the first of some bytes: how many. EAGAIN if the descriptor takes none now.
fn send_at_once(fd: RawFd, is_socket: bool, bytes: &[u8]) -> Result<usize, Errno> {
    // What a pipe takes that is ready (pipe(7), PIPE_BUF).
    const OF_A_PIPE: u32 = 4096;
    if is_socket {
        return transfer::send(fd, &bytes, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL);
    }
    match Fd(fd).events_now(libc::POLLOUT) {
        0 => Err(Errno(libc::EAGAIN)),
        _ => transfer::write(fd, &Part::new(bytes, 0, OF_A_PIPE)),
    }
}
