//! What a BIO of ours holds: two queues of bytes, which OpenSSL and the ring fill and empty, and who is at them.

#![forbid(unsafe_code)]

use std::cell::{RefCell, RefMut};
use std::os::fd::RawFd;
use std::sync::Arc;

use magnus::gc::Marker;
use magnus::{DataTypeFunctions, Ruby, TypedData};
use uringmachine_runtime::byte_queue::Bytes;
use uringmachine_runtime::TaskId;

use super::held;
use super::kernel::{self, Kernel};
use super::send::Sent;
use crate::machine::caller::Caller;
use crate::machine::line::Line;
use crate::machine::Machine;
use crate::os::{self, Errno};
use crate::ruby::gvl::Gvl;
use crate::ruby::{self, Value};

/// A fiber in the middle of an operation on the descriptor.
#[derive(Clone)]
pub struct Party {
    pub machine: Arc<Machine>,
    pub task: TaskId,
}

/// Whoever receives, or sends: one at a time, or bytes would change their order.
#[derive(Default)]
pub struct Turn {
    party: RefCell<Option<Party>>,
    /// The others.
    pub line: Line,
}

impl Turn {
    /// Whether a fiber is at it. One whose thread has ended is no more.
    pub fn is_taken(&self) -> bool {
        let party = self.party.borrow();
        (party.as_ref()).is_some_and(|party| !party.machine.is_abandoned())
    }

    /// The fiber that is at it.
    pub fn party(&self) -> Option<Party> {
        self.party.borrow().clone()
    }

    /// The fiber that runs is at it.
    pub fn begin(&self, caller: &Caller) {
        let machine = caller.machine.share();
        let task = machine.current_task();
        self.party.replace(Some(Party { machine, task }));
    }

    /// Nobody is any more.
    pub fn end(&self) {
        self.party.take();
        self.line.wake_all();
    }

    /// A machine is kept as long as a fiber waits in it.
    fn mark(&self) {
        self.line.mark();
        if let Some(party) = &*self.party.borrow() {
            ruby::mark(party.machine.object());
        }
    }
}

/// What changes of a wire.
#[derive(Default)]
pub struct State {
    /// What has come and OpenSSL has not read.
    pub inbound: Bytes,
    /// What OpenSSL has written and nobody has begun to send.
    pub outbound: Bytes,
    /// What is being sent, or was when its fiber was interrupted: it goes out before `outbound`.
    pub sending: Bytes,
    /// Whether a whole record is in `inbound` that the program does not know of: see [`held::is_held`].
    held: bool,
    /// The peer will send no more.
    pub ended: bool,
    pub kernel: Kernel,
    /// Memory to receive into, while nobody does.
    pub spare: Vec<u8>,
    /// How much to receive at once.
    pub appetite: usize,
    /// The last receive filled its memory, so more is likely there.
    pub hungry: bool,
    /// OpenSSL is at work: one of its callbacks may have switched to another fiber.
    pub busy: bool,
    /// A fiber is in the middle of a write: writes do not mix.
    pub writing: bool,
}

impl State {
    /// Whether everything has been sent.
    pub fn is_flushed(&self) -> bool {
        self.sending.is_empty() && self.outbound.is_empty()
    }

    /// What is to be sent next.
    pub fn next_to_send(&mut self) -> &mut Bytes {
        if self.sending.is_empty() {
            std::mem::swap(&mut self.sending, &mut self.outbound);
        }
        &mut self.sending
    }

    /// Nothing can be sent any more.
    pub fn drop_unsent(&mut self) {
        self.sending = Bytes::default();
        self.outbound = Bytes::default();
    }

    /// Notes whether a whole record is left, before the program goes on.
    fn note_held(&mut self, fd: RawFd) {
        let bytes = self.inbound.as_slice();
        let holds = match bytes.get(3..5) {
            Some(length) => {
                let length = u16::from_be_bytes([length[0], length[1]]);
                bytes.len() >= kernel::HEADER + usize::from(length)
            }
            None => false,
        };
        if holds != self.held {
            self.held = holds;
            held::note(fd, std::ptr::from_ref(self).addr(), holds);
        }
    }
}

/// What a BIO of ours holds. Used with Ruby's lock only.
///
/// What changes is borrowed for as long as a step takes: never across a wait, and never while Ruby or OpenSSL is called,
/// which may call the BIO.
pub struct Wire {
    pub fd: RawFd,
    pub is_socket: bool,
    state: RefCell<State>,
    /// Whoever receives.
    pub receiving: Turn,
    /// Whoever sends.
    pub sending: Turn,
    /// Those who wait until nobody writes.
    pub writers: Line,
}

/// A wire, which the BIO and the SSLSocket share.
pub type Shared = Arc<Gvl<Wire>>;

impl Wire {
    /// That of a descriptor.
    pub fn new(fd: RawFd, is_socket: bool, kernel: Kernel) -> Shared {
        let state = State {
            kernel,
            ..State::default()
        };
        Arc::new(Gvl::new(Self {
            fd,
            is_socket,
            state: RefCell::new(state),
            receiving: Turn::default(),
            sending: Turn::default(),
            writers: Line::default(),
        }))
    }

    /// What changes, for a step: see [`Wire`].
    #[inline]
    pub fn state(&self) -> RefMut<'_, State> {
        self.state.borrow_mut()
    }

    /// Notes whether a whole record is left, before the program goes on.
    pub fn note_held(&self) {
        self.state().note_held(self.fd);
    }

    /// Hands OpenSSL what has come, so many bytes at most, by `put`: how many, which are 0 at the end. `None` if it is to
    /// ask again.
    pub fn give(&self, most: usize, put: impl FnOnce(&[u8])) -> Option<os::Result<usize>> {
        let mut state = self.state();
        let count = state.inbound.len().min(most);
        if count > 0 {
            put(&state.inbound.as_slice()[..count]);
            state.inbound.consume(count);
            return Some(Ok(count));
        }
        if state.ended {
            return Some(Ok(0));
        }
        if let Some(errno) = state.kernel.failed.take() {
            return Some(Err(errno));
        }
        state.kernel.asked = most;
        None
    }

    /// Takes what OpenSSL has written: how much. EAGAIN if it is to ask again.
    pub fn take(&self, bytes: &[u8]) -> os::Result<usize> {
        let (is_stuck, record) = {
            let state = self.state();
            (state.kernel.stuck, state.kernel.record)
        };
        match record {
            _ if is_stuck => Err(Errno(libc::EKEYREJECTED)),
            Some(kind) => self.send_record(kind, bytes),
            None => {
                self.state().outbound.push(bytes);
                Ok(bytes.len())
            }
        }
    }

    /// Sends a record which the kernel is to encrypt and which is not the program's bytes, after all that has
    /// been written before it. Without waiting: the fiber waits between OpenSSL's calls, and OpenSSL writes again.
    fn send_record(&self, kind: u8, bytes: &[u8]) -> os::Result<usize> {
        if !self.state().kernel.is_same_socket(self.fd) {
            return Err(Errno(libc::EBADF));
        }
        match self.send_now(self.fd) {
            Sent::All => {}
            Sent::Part => return Err(Errno(libc::EAGAIN)),
            Sent::None => return Err(Errno(libc::EPIPE)),
        }
        let count = kernel::send_record(self.fd, kind, bytes)?;
        let kernel = &mut self.state().kernel;
        kernel.record = None;
        kernel.stuck = kernel::is_key_update(kind, bytes);
        Ok(count)
    }

    /// OpenSSL offers the keys of a direction. Refused, it goes on by itself: so while bytes of that direction are
    /// on their way that the kernel would take for its own to encrypt or decrypt.
    pub fn set_keys(&self, keys: &[u8], sends: bool) -> bool {
        let takes_keys = {
            let kernel = &self.state().kernel;
            kernel.offered && kernel.is_same_socket(self.fd)
        };
        let is_clear = match sends {
            _ if !takes_keys => false,
            true => self.send_now(self.fd) == Sent::All,
            false => self.state().inbound.is_empty() && !self.receiving.is_taken(),
        };
        if !is_clear || !kernel::set_keys(self.fd, keys, sends) {
            return false;
        }
        let kernel = &mut self.state().kernel;
        if sends {
            kernel.sends = true;
            kernel.stuck = false;
        } else {
            kernel.receives = true;
        }
        true
    }

    fn mark(&self) {
        self.receiving.mark();
        self.sending.mark();
        self.writers.mark();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        state.inbound = Bytes::default();
        state.note_held(self.fd);
    }
}

/// What an SSLSocket keeps of its wire, as long as it lives: it marks what that refers to.
#[derive(TypedData)]
#[magnus(class = "UringMachine", name = "UM::TLS wire", mark, size)]
pub struct Keeper(Shared);

impl DataTypeFunctions for Keeper {
    fn mark(&self, _: &Marker) {
        self.0.mark();
    }
}

impl Keeper {
    /// A Ruby object that has a share of a wire.
    pub fn of(ruby: &Ruby, wire: Shared) -> Value {
        magnus::value::ReprValue::as_value(ruby.obj_wrap(Self(wire))).into()
    }
}
