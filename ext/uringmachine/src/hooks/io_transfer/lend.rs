//! What waits: the ring's operations and polls, and system calls on a thread.

use uringmachine_runtime::memory::Unregistered;
use uringmachine_runtime::operations::{Read, Recv, Send, Write};

use super::{timed_out, Moved, Transfer};
use crate::lending::hooked;
use crate::machine::hints::Kind;
use crate::machine::operate::Failure;
use crate::machine::poll::wait_ready;
use crate::machine::positions::{self, CURRENT};
use crate::machine::Machine;
use crate::ruby::{buffered, duration, io, Raise};

type Lent<'a> = hooked::Lent<'a, Machine>;

impl Transfer<'_> {
    /// Lets the ring do it.
    pub(super) fn submit(&self, kind: Kind, done: usize) -> Moved {
        let deadline = self.deadline()?;
        if self.writes {
            // A close may cut it short, and the rest is not to be written: the kernel's worker writes to a FIFO in parts.
            self.step();
        }
        self.lend(done, |lent| {
            let (machine, me, fd) = (self.machine, self.me, self.fd);
            match (kind.is_socket(), self.writes) {
                // Most receives come here after an attempt that found the socket empty; data that came since
                // is found by the poll.
                (true, false) => {
                    let (memory, flags, poll_first) = (Unregistered(lent), 0, true);
                    let mut recv = Recv {
                        fd,
                        memory,
                        flags,
                        poll_first,
                    };
                    machine.operate(me, &mut recv, deadline)
                }
                (true, true) => {
                    let (flags, without_copy) = (libc::MSG_NOSIGNAL, false);
                    let mut send = Send {
                        fd,
                        memory: lent,
                        flags,
                        without_copy,
                    };
                    machine.parts().driver.tasks.set_brief(me);
                    machine.operate(me, &mut send, deadline)
                }
                (false, writes) => {
                    self.count_registered(lent);
                    let offset = self.position_after(done) as u64;
                    if writes {
                        let mut write = Write {
                            fd,
                            memory: lent,
                            offset,
                        };
                        return machine.operate(me, &mut write, deadline);
                    }
                    if self.position == CURRENT {
                        return positions::read(machine, me, fd, lent, deadline);
                    }
                    let mut read = Read {
                        fd,
                        memory: lent,
                        offset,
                    };
                    machine.operate(me, &mut read, deadline)
                }
            }
        })
    }

    fn count_registered(&self, lent: &Lent) {
        if lent.is_registered() {
            self.machine.parts().fixed += 1;
        }
    }

    /// Has a thread write what may wait although the descriptor is ready.
    pub(super) fn write_on_thread(&self, done: usize) -> Moved {
        // As in `submit`.
        self.step();
        self.noted(|| self.write_by_thread(done))
    }

    /// Does something that waits for the descriptor, and not by an operation of the ring: the close of the one ends the other.
    fn noted(&self, body: impl FnOnce() -> Moved) -> Moved {
        self.machine.parts().waits.begin(self.fd, self.me, None);
        let moved = body();
        self.machine.parts().waits.end(self.fd, self.me);
        moved
    }

    fn write_by_thread(&self, done: usize) -> Moved {
        self.lend(done, |lent| {
            let (machine, me, fd) = (self.machine, self.me, self.fd);
            if lent.is_registered() {
                self.count_registered(lent);
                let offset = CURRENT as u64;
                let mut write = Write {
                    fd,
                    memory: lent,
                    offset,
                };
                return positions::write_registered(machine, me, &mut write);
            }
            let mut written = 0;
            match positions::write(machine, me, fd, lent, &mut written) {
                // What was written counts, though the fiber is to raise.
                Err(Failure::Raise(raise)) if written > 0 => {
                    machine.parts().keep_raise(me, raise)?;
                    Ok(written as i32)
                }
                result => result,
            }
        })
    }

    /// Has a thread read what may wait although the descriptor is ready.
    pub(super) fn read_on_thread(&self, done: usize) -> Moved {
        self.noted(|| {
            self.lend(done, |lent| {
                positions::read_stream(self.machine, self.me, self.fd, lent)
            })
        })
    }

    /// Lends the memory to the kernel, or a thread, locked meanwhile.
    #[inline(always)]
    fn lend(&self, done: usize, work: impl FnOnce(&mut Lent) -> Result<i32, Failure>) -> Moved {
        let mut lent = Lent::new(self.machine, &self.part, done)?;
        self.step();
        let result = work(&mut lent);
        let filled = match result {
            Ok(count @ 1..) if !self.writes => Some(count as usize),
            _ => None,
        };
        lent.finish(filled)?;
        match result {
            Ok(result) => Ok(result as isize),
            // Ruby looks at interrupts and comes again.
            Err(Failure::Scheduled(_)) => Ok(-(libc::EINTR as isize)),
            Err(failure) => Err(timed_out(failure)),
        }
    }

    /// Waits until the descriptor is ready, for `io.timeout` at most.
    pub(super) fn wait(&self, events: i16) -> Result<(), Raise> {
        let deadline = self.deadline()?;
        if self.wait_ready(events, deadline)? {
            Ok(())
        } else {
            Err(timed_out(Failure::Timeout))
        }
    }

    /// Waits until there is something to be read ahead. What another fiber has read ahead meanwhile is that: the count is of bytes
    /// that are there already.
    pub(super) fn wait_to_read_ahead(&self) -> Result<Option<isize>, Raise> {
        self.wait(libc::POLLIN)?;
        Ok(match buffered::filled_meanwhile(self.io) {
            0 => None,
            count => Some(count as isize),
        })
    }

    /// The same, and at most until `limit`, which is no error: then it says that it is not ready.
    pub(super) fn wait_until(&self, events: i16, limit: u64) -> Result<bool, Raise> {
        let deadline = self.deadline()?;
        let ready = self.wait_ready(events, Some(deadline.map_or(limit, |at| at.min(limit))))?;
        if !ready && deadline.is_some_and(|deadline| deadline < limit) {
            return Err(timed_out(Failure::Timeout));
        }
        Ok(ready)
    }

    fn wait_ready(&self, events: i16, deadline: Option<u64>) -> Result<bool, Raise> {
        self.step();
        let events = wait_ready(self.machine, self.me, self.fd, i64::from(events), deadline)?;
        let closed = self.machine.parts().closed(self.me);
        if let Some(raise) = closed {
            return Err(raise);
        }
        self.part.find_again()?;
        Ok(events != 0)
    }

    /// What comes after a wait names the descriptor again: its close counts until the end of the hook.
    fn step(&self) {
        self.stepping.set(true);
        self.machine.parts().begin_steps(self.me);
    }

    /// `io.timeout` counted from now: Ruby leaves it to the hook.
    fn deadline(&self) -> Result<Option<u64>, Raise> {
        duration::deadline(io::timeout(self.io)?)
    }
}
