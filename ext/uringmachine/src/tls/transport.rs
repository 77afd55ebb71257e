//! What the ring does for a TLS connection between the calls of OpenSSL.

#![forbid(unsafe_code)]

use uringmachine_runtime::operations::Poll;
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::Operation;

use super::connection::{Connection, Wait};
use super::send::Sent;
use super::{held, is_transient};
use crate::machine::caller::Caller;
use crate::machine::closing;
use crate::machine::line::Line;
use crate::machine::operate::{Failure, Yields};
use crate::machine::poll::poll_on_thread;
use crate::machine::Pending;
use crate::os::Errno;
use crate::ruby::{classes, Raise};

/// The result of an operation that has come to none.
pub const UNSEEN: i32 = -libc::ECANCELED;

/// The result of an operation: a count, or why it failed.
pub fn outcome(result: i32) -> Result<usize, Errno> {
    usize::try_from(result).map_err(|_| Errno(-result))
}

impl Connection {
    /// Sends what there is and receives something: what OpenSSL asks for when it wants to read.
    pub fn exchange(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        let Some(wire) = self.wire() else {
            return self.ready(caller, libc::POLLIN, wait);
        };
        if self.send_now() == Sent::Part && !wire.sending.is_taken() {
            if wire.receiving.is_taken() {
                // What is wanted may come meanwhile, so OpenSSL is asked again.
                return self.flush(caller, wait);
            }
            // The peer may not read before it has written something.
            return self.ready_either(caller, wait);
        }
        self.receive(wire, caller, wait)
    }

    /// Waits until the descriptor takes or has bytes, and moves them.
    fn ready_either(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        self.ready(caller, libc::POLLIN | libc::POLLOUT, wait)?;
        self.send_now();
        self.receive_now()?;
        Ok(())
    }

    /// Waits until the descriptor is ready, or has failed.
    pub fn ready(&self, caller: &Caller, events: i16, wait: Wait) -> Result<(), Failure> {
        let mut poll = Poll {
            fd: self.descriptor()?,
            events: events as u32,
        };
        let result = self.operate(caller, &mut poll, wait, &mut 0)?;
        match outcome(result) {
            Err(errno) if !is_transient(errno) => return Err(errno.into()),
            _ => {}
        }
        let counts = i32::from(events | libc::POLLERR | libc::POLLHUP | libc::POLLNVAL);
        if result >= 0 && result & counts == 0 {
            let deadline = self.deadline(wait)?;
            let me = caller.machine.current_task();
            let list = [(self.descriptor()?, events as u32)];
            if poll_on_thread(caller.machine, me, &list, deadline)?.is_none() {
                return Err(timed_out(Failure::Timeout, wait));
            }
        }
        Ok(())
    }

    /// Waits until OpenSSL can write what the descriptor did not take.
    pub fn make_room(&self, caller: &Caller, wait: Wait) -> Result<(), Failure> {
        self.flush(caller, wait)?;
        self.ready(caller, libc::POLLOUT, wait)
    }

    /// Has the ring do something: the result, or -errno. `seen` is that even when the fiber is to raise.
    pub(super) fn operate(
        &self,
        caller: &Caller,
        operation: &mut impl Operation,
        wait: Wait,
        seen: &mut i32,
    ) -> Result<i32, Failure> {
        let deadline = self.deadline(wait)?;
        // A callback may have let other fibers run.
        let Caller { machine, me } = caller.again();
        machine
            .operate_noting(me, operation, deadline, Yields::Count, seen)
            .map_err(|failure| timed_out(failure, wait))
    }

    /// Waits in one of the wire's lines.
    pub(super) fn stand_in(&self, caller: &Caller, line: &Line, wait: Wait) -> Result<(), Failure> {
        let deadline = self.deadline(wait)?;
        match line.wait(&caller.again(), "TLS", false, deadline)? {
            true => Ok(()),
            false => Err(timed_out(Failure::Timeout, wait)),
        }
    }

    /// Has the fibers raise that wait for the descriptor, which is about to be closed.
    pub fn abandon(&self) {
        let Some(wire) = self.wire() else {
            return;
        };
        held::forget(wire.fd);
        for turn in [&wire.receiving, &wire.sending] {
            let Some(party) = turn.party() else {
                continue;
            };
            let error = closing::closed();
            let state = party.machine.parts().driver.tasks.state(party.task);
            if state == Some(State::Waiting) {
                (party.machine).interrupt(party.task, Pending::Exception(error));
                party.machine.notify();
            }
        }
    }
}

fn timed_out(failure: Failure, wait: Wait) -> Failure {
    match failure {
        Failure::Timeout if wait == Wait::Timeout => Failure::Raise(Raise::new(
            classes::io_timeout_error(),
            "Blocking operation timed out!",
        )),
        failure => failure,
    }
}
