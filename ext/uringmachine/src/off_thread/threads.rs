//! Jobs of fibers for pools of threads ([`uringmachine_runtime::pool`]): how a fiber waits for its job's end, and leaves
//! early.

use std::sync::Arc;

use uringmachine_runtime::pool::{End, Job, Outlook, Place, Pool, Ticket, MOST};
use uringmachine_runtime::{clock, TaskId};

use crate::machine::trace::For;
use crate::machine::wait::Wait;
use crate::machine::{Machine, Pending};
use crate::ruby::Raise;

/// How the work of a pool is begun and ended.
pub trait Work: Sized {
    /// Starts a thread that calls [`Pool::take`], and [`Pool::leave`] at its end.
    fn start_thread(pool: &Arc<Pool<Self>>) -> Result<(), Raise>;
}

/// What a fiber that is to raise does with a job that a thread has begun.
pub enum Leaving<'a> {
    /// It goes: the thread keeps what the job needs.
    AtOnce,
    /// It waits for the job, which is interrupted by this; again and again if it returns true.
    AfterInterrupting(&'a mut dyn FnMut() -> bool),
    /// It has the job done, though nobody has begun it.
    Never,
}

/// How long an interrupted job is waited for until it is interrupted again, in nanoseconds.
const AGAIN: u64 = 1_000_000;

/// Has a thread do something and waits for it. A job that has done its work is done, whatever is to be raised
/// meanwhile: that is raised at the fiber's next wait.
pub fn run<W: Work>(
    pool: &Arc<Pool<W>>,
    machine: &Machine,
    me: TaskId,
    work: W,
    mut leaving: Leaving,
) -> Result<(), Raise> {
    let stays = matches!(leaving, Leaving::Never);
    if !stays {
        machine.raise_pending(me)?;
    }
    let waker = machine.parts().driver.waker().cloned();
    let waker = waker.ok_or(Raise::errno(libc::EBADF))?;
    let wait = machine.begin_wait_anyway(me);
    machine.awaits(me, For::Word("worker thread"));
    let ticket = Arc::new(Ticket::new(waker, wait.id()));
    let job = Job {
        work,
        ticket: Arc::clone(&ticket),
    };
    let mut fiber = Fiber {
        machine,
        me,
        wait,
        raise: None,
    };
    machine.parts().waiter(me).draining = stays;
    let mut outlook = pool.enqueue(job);
    let mut interrupted = false;
    let mut refusal = None;
    let end = loop {
        let mut deadline = None;
        match outlook {
            Outlook::Served if interrupted => deadline = Some(clock::now() + AGAIN),
            Outlook::Served => {}
            Outlook::Look(time) => deadline = Some(time),
            Outlook::Start => {
                if let Err(raise) = fiber.start_thread(pool) {
                    pool.leave(Place::Fresh);
                    refusal = Some(raise);
                }
                outlook = pool.look(&ticket, refusal.is_some());
                continue;
            }
            Outlook::Refused => {
                if pool.withdraw(&ticket) {
                    fiber.raise = Some(refusal.take().unwrap_or_else(crowded));
                    break End::Cut;
                }
            }
        }
        fiber.wait(deadline);
        if let Some(end) = ticket.end() {
            break end;
        }
        // A child of fork has nobody to do it.
        if machine.is_forked() {
            break End::Cut;
        }
        outlook = if !stays && fiber.is_to_raise() {
            if pool.withdraw(&ticket) {
                break End::Cut;
            }
            let Leaving::AfterInterrupting(interrupt) = &mut leaving else {
                break End::Cut;
            };
            machine.parts().waiter(me).draining = true;
            interrupted = ticket.interrupt(interrupt);
            Outlook::Served
        } else {
            pool.look(&ticket, refusal.is_some())
        };
        if let Some(end) = fiber.wait_anew(&ticket) {
            break end;
        }
    };
    machine.parts().waiter(me).draining = false;
    fiber.leave(end)
}

/// The error of a job that no thread can be had for.
fn crowded() -> Raise {
    Raise::errno_with(
        libc::EAGAIN,
        &format!("{MOST} operations that block wait already"),
    )
}

/// The waits of a fiber for a job.
struct Fiber<'a> {
    machine: &'a Machine,
    me: TaskId,
    wait: Wait<'a>,
    /// What it is to raise.
    raise: Option<Raise>,
}

impl Fiber<'_> {
    /// Starts a thread, in the middle of the wait: Ruby may switch meanwhile.
    fn start_thread<W: Work>(&self, pool: &Arc<Pool<W>>) -> Result<(), Raise> {
        let machine = self.machine;
        machine.parts().waiter(self.me).inside = true;
        let started = W::start_thread(pool);
        machine.parts().waiter(self.me).inside = false;
        machine.end_interruptions(self.me);
        machine.goes_on(self.me);
        started
    }

    /// Waits until something ends that; what is raised meanwhile is kept.
    fn wait(&mut self, deadline: Option<u64>) {
        if let Err(next) = self.wait.until(deadline) {
            self.raise = Some(match self.raise.take() {
                Some(first) => self.machine.first_of(self.me, first, Some(next)),
                None => next,
            });
        }
    }

    /// Begins the wait anew, unless the job is over.
    fn wait_anew(&mut self, ticket: &Ticket) -> Option<End> {
        ticket.renew(self.wait.renew())
    }

    fn is_to_raise(&self) -> bool {
        self.raise.is_some() || self.machine.parts().waiter(self.me).is_to_raise()
    }

    /// What the fiber raises: of a job that is done, at its next wait.
    fn leave(self, end: End) -> Result<(), Raise> {
        let machine = self.machine;
        match (end, self.raise) {
            (End::Done, Some(Raise::Exception(exception))) => {
                let mut parts = machine.parts();
                let pending = &mut parts.waiter(self.me).pending;
                pending.push_front(Pending::Exception(exception));
                Ok(())
            }
            (End::Done, None) => {
                machine.parts().drop_values(self.me);
                Ok(())
            }
            (_, Some(raise)) => Err(raise),
            (End::Cut, None) => Err(machine
                .take_pending(self.me)
                .unwrap_or_else(|| Raise::errno(libc::EINTR))),
        }
    }
}
