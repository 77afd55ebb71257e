//! An operation that completes again and again, as the fiber has it that takes what it brings.

use std::cell::RefMut;

use uringmachine_runtime::multishot::{Arrivals, Multishot};
use uringmachine_runtime::operation::WithoutMemory;
use uringmachine_runtime::operations::{AcceptMultishot, ReadMultishot, RecvMultishot};
use uringmachine_runtime::OpKey;

use super::caller::Caller;
use super::operate::Failure;
use super::trace::For;
use super::Parts;
use crate::os::fd::Fd;
use crate::os::file::Kind;
use crate::ruby::Raise;

/// How many bytes a stream may bring before it is stopped until they are consumed.
pub const BYTES_AHEAD: usize = 256 << 10;

/// A multishot operation of a fiber; given up with [`Flow::leave`](crate::machine::inflow::Flow::leave), in every case.
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
    pub fn bytes(caller: &Caller, fd: i32, receive: Option<i32>) -> Result<Option<Self>, Raise> {
        let multishot = caller.machine.parts().driver.features().read_multishot;
        if receive.is_none() && !(multishot && Fd(fd).kind() != Kind::File) {
            return Ok(None);
        }
        let group = caller.machine.parts().driver.buffer_group();
        let group = group.map_err(|error| failed(&error))?;
        let arrivals = Arrivals::bytes(BYTES_AHEAD);
        match receive {
            Some(flags) => {
                let receive = RecvMultishot { fd, group, flags };
                Self::start(caller, receive, arrivals).map(Some)
            }
            None => Self::start(caller, ReadMultishot { fd, group }, arrivals).map(Some),
        }
    }

    fn start(
        caller: &Caller,
        operation: impl WithoutMemory,
        arrivals: Arrivals,
    ) -> Result<Self, Raise> {
        let mut parts = caller.machine.parts();
        match parts.driver.start_multishot(operation, arrivals) {
            Ok(op) => {
                parts.trace_stream(op);
                Ok(Self { op })
            }
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
    pub fn state<'a>(&self, caller: &Caller<'a>) -> Result<RefMut<'a, Multishot>, Raise> {
        let found = RefMut::filter_map(caller.machine.parts(), |parts| {
            parts.driver.multishot(self.op)
        });
        found.map_err(|_| Raise::errno(libc::ECANCELED))
    }

    /// Waits until it has brought something, or has ended.
    pub fn wait(&self, caller: &Caller) -> Result<(), Failure> {
        let machine = caller.machine;
        let wait = machine.begin_wait(caller.me)?;
        machine.awaits(caller.me, For::Operation(self.op));
        if let Some(multishot) = machine.parts().driver.multishot(self.op) {
            multishot.wait = Some(wait.id());
        }
        let woken = wait.finish(None);
        if let Some(multishot) = machine.parts().driver.multishot(self.op) {
            multishot.wait = None;
        }
        woken.map(drop)
    }
}

fn failed(error: &std::io::Error) -> Raise {
    Raise::of(error, libc::EINVAL)
}

impl Parts {
    /// Gives a multishot up: what it still brings is thrown away.
    pub fn discard_multishot(&mut self, op: OpKey) {
        if let Some(trace) = &mut self.trace {
            trace.stream_ends(op);
        }
        let _ = self.driver.discard_multishot(op);
    }
}

/// What a multishot read of a descriptor answers that cannot be polled, such as /dev/random's.
pub const NOT_POLLABLE: i32 = -libc::EBADFD;
