//! An operation that completes again and again, as the fiber has it that takes what it brings.

use uringmachine_runtime::multishot::{Arrivals, Multishot};
use uringmachine_runtime::operation::WithoutMemory;
use uringmachine_runtime::operations::{AcceptMultishot, ReadMultishot, RecvMultishot};
use uringmachine_runtime::{OpKey, Wake};

use super::caller::Caller;
use super::hints::{self, Kind};
use super::switch::{self, Failure};
use super::Resumption;
use crate::ruby::Raise;

/// How many bytes a stream may bring before it is stopped until they are consumed.
pub const BYTES_AHEAD: usize = 256 << 10;

/// A multishot operation of a fiber; given up with [`Inflow::leave`](crate::machine::inflow::Inflow::leave), in every case.
pub struct Running {
    op: OpKey,
}

impl Running {
    /// Starts an operation that makes descriptors.
    pub fn accept(caller: &Caller, fd: i32) -> Result<Self, Raise> {
        let accept = AcceptMultishot {
            fd,
            flags: libc::SOCK_CLOEXEC,
        };
        Self::start(caller, accept, Arrivals::descriptors())
    }

    /// Starts a receive, with flags of recv(2), or, without, a read. `None` if the descriptor or the
    /// kernel does not offer it.
    pub unsafe fn bytes(
        caller: &Caller,
        fd: i32,
        receive: Option<i32>,
    ) -> Result<Option<Self>, Raise> {
        // SAFETY: as above.
        unsafe {
            let machine = &mut (*caller.core).driver;
            let multishot = machine.features().read_multishot;
            if receive.is_none() && !(multishot && hints::kind(fd) != Kind::File) {
                return Ok(None);
            }
            let group = machine.buffer_group().map_err(|error| failed(&error))?;
            let arrivals = Arrivals::bytes(BYTES_AHEAD);
            match receive {
                Some(flags) => {
                    let receive = RecvMultishot { fd, group, flags };
                    Self::start(caller, receive, arrivals).map(Some)
                }
                None => Self::start(caller, ReadMultishot { fd, group }, arrivals).map(Some),
            }
        }
    }

    fn start(
        caller: &Caller,
        operation: impl WithoutMemory,
        arrivals: Arrivals,
    ) -> Result<Self, Raise> {
        // SAFETY: the core is alive while one of its fibers runs a method.
        let started = unsafe { (*caller.core).driver.start_multishot(operation, arrivals) };
        match started {
            Ok(op) => Ok(Self { op }),
            Err(error) => Err(failed(&error)),
        }
    }

    /// A stream whose key was kept.
    pub fn of(op: OpKey) -> Self {
        Self { op }
    }

    /// The key of the operation.
    pub fn op(&self) -> OpKey {
        self.op
    }

    /// What it has brought; Errno::ECANCELED if the descriptor was closed meanwhile.
    pub unsafe fn state<'a>(&self, caller: &Caller) -> Result<&'a mut Multishot, Raise> {
        // SAFETY: the record lives until the stream is discarded, and no reference to it is held across a
        // wait.
        let stream = unsafe { (*caller.core).driver.multishot(self.op) };
        stream.ok_or_else(|| Raise::errno(libc::ECANCELED))
    }

    /// Waits until it has brought something, or has ended.
    pub unsafe fn wait(&self, caller: &Caller) -> Result<(), Failure> {
        // SAFETY: see `switch`.
        unsafe {
            let core = caller.core;
            if let Some(raise) = (*core).take_pending(caller.me) {
                return Err(raise.into());
            }
            let wait = (*core).driver.tasks.begin_wait(caller.me);
            if let Some(stream) = (*core).driver.multishot(self.op) {
                stream.wait = Some(wait);
            }
            let result = switch::wait(core, caller.me, None);
            if let Some(stream) = (*core).driver.multishot(self.op) {
                stream.wait = None;
            }
            let ended = match result {
                Ok(Wake::Interrupt) => match (*core).take_resumption(caller.me) {
                    Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                    Some(Resumption::Raise(raise)) => Err(raise.into()),
                    None => Ok(()),
                },
                Ok(_) => Ok(()),
                Err(state) => Err(Raise::Jump(state).into()),
            };
            (*core).finish_wait(caller.me);
            ended
        }
    }
}

fn failed(error: &std::io::Error) -> Raise {
    Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL))
}

/// What a multishot read of a descriptor answers that cannot be polled, such as /dev/random's.
pub const NOT_POLLABLE: i32 = -libc::EBADFD;
