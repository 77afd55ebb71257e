//! Pools of threads for what may wait, and that the ring has no operation for.
//!
//! A few threads are started as soon as there is work. More are when all of them have been at the same job
//! for a while: what waits for ever (the open of a FIFO, a name server that is silent) then holds up nothing
//! else, and a crowd of short jobs makes no crowd of threads. Threads that nobody needs end.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uringmachine_runtime::waker::Waker;
use uringmachine_runtime::{clock, TaskId, WaitId};

use crate::machine::wait::Wait;
use crate::machine::{Machine, Pending};
use crate::ruby::Raise;

/// Threads that are started as soon as there is work for them.
const FEW: usize = 8;
/// The most threads: jobs beyond wait for [`PATIENCE`], and fail then.
const MOST: usize = 1024;
/// How long no job is begun until the threads are taken to wait, in nanoseconds.
const STALL: u64 = 20_000_000;
/// How long a job that cannot get a thread waits while no other is begun, in nanoseconds.
const PATIENCE: u64 = 5_000_000_000;
/// How long a thread waits for more work before it ends.
const IDLE: Duration = Duration::from_secs(10);

/// How a job ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By itself: its result counts.
    Done,
    /// It was interrupted, or never began.
    Cut,
}

/// What a fiber knows of its job, and a job of its fiber.
pub struct Ticket {
    waker: Waker,
    state: Mutex<TicketState>,
}

struct TicketState {
    /// The wait to end: it changes when the fiber has to wait anew.
    wait: WaitId,
    end: Option<End>,
}

impl Ticket {
    /// Ends the job, and the fiber's wait.
    pub fn finish(&self, end: End) {
        let mut state = lock(&self.state);
        state.end = Some(end);
        self.waker.complete(state.wait);
    }

    fn end(&self) -> Option<End> {
        lock(&self.state).end
    }

    /// Interrupts the job unless it is over. It cannot end meanwhile: Ruby would go on interrupting a thread that
    /// has left the call that it was in.
    fn interrupt(&self, interrupt: &mut dyn FnMut() -> bool) -> bool {
        let state = lock(&self.state);
        state.end.is_none() && interrupt()
    }

    /// Has the fiber look after its job.
    fn nudge(&self) {
        self.waker.complete(lock(&self.state).wait);
    }
}

/// A job, with what is to be done.
pub struct Job<W> {
    pub work: W,
    pub ticket: Arc<Ticket>,
}

struct State<W> {
    jobs: VecDeque<Job<W>>,
    threads: usize,
    /// Those that wait for a job, or are about to begin.
    idle: usize,
    /// Those that are at a job.
    busy: usize,
    /// When a job was begun last.
    begun: u64,
    /// When more threads were last allowed for, and how many of them have not been started.
    grown: u64,
    allowed: usize,
}

/// Threads, and what they are to do.
pub struct Pool<W> {
    state: Mutex<State<W>>,
    more: Condvar,
}

impl<W> Default for Pool<W> {
    fn default() -> Self {
        Self {
            state: Mutex::new(State {
                jobs: VecDeque::new(),
                threads: 0,
                idle: 0,
                busy: 0,
                begun: 0,
                grown: 0,
                allowed: 0,
            }),
            more: Condvar::new(),
        }
    }
}

/// How a thread counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// It has not looked for a job yet.
    Fresh,
    /// It is about to begin a job, or to end.
    Between,
    /// It is at a job.
    Busy,
}

/// What a thread's wait for a job brought.
pub enum Turn<W> {
    Job(Job<W>),
    /// Its own flag was raised.
    Interrupted,
    /// Nobody needs it.
    Idle,
}

/// What becomes of a job that no thread has begun.
enum Outlook {
    /// A thread has it, or is sure to take it.
    Served,
    /// It is looked at again at this time.
    Look(u64),
    /// Another thread is to be started, which counts already.
    Start,
    /// There is no thread to be had.
    Refused,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<W> State<W> {
    /// What a new job, or one that waits, can expect.
    fn outlook(&mut self, refused: bool) -> Outlook {
        if self.idle >= self.jobs.len() {
            return Outlook::Served;
        }
        if self.threads < FEW && !refused {
            return self.reserve();
        }
        if self.threads == 0 {
            return Outlook::Refused;
        }
        let now = clock::now();
        let (stalled, hopeless) = (self.begun.max(self.grown) + STALL, self.begun + PATIENCE);
        let room = self.threads < MOST && !refused;
        if room && now >= stalled && self.busy == self.threads {
            // As many again, by and by: it may be that they have only not had the processor.
            self.grown = now;
            self.allowed = self.threads;
        }
        if room && self.allowed > 0 {
            self.allowed -= 1;
            self.reserve()
        } else if room {
            Outlook::Look(if now < stalled { stalled } else { now + STALL })
        } else if now < hopeless {
            Outlook::Look(hopeless.min(now + STALL))
        } else {
            Outlook::Refused
        }
    }

    fn leave(&mut self, place: Place) {
        match place {
            Place::Fresh => self.idle -= 1,
            Place::Between => {}
            Place::Busy => self.busy -= 1,
        }
    }

    fn reserve(&mut self) -> Outlook {
        self.threads += 1;
        self.idle += 1;
        Outlook::Start
    }
}

impl<W> Pool<W> {
    fn enqueue(&self, job: Job<W>) -> Outlook {
        let mut state = lock(&self.state);
        if state.jobs.is_empty() && state.idle == state.threads {
            state.begun = clock::now();
        }
        state.jobs.push_back(job);
        self.more.notify_one();
        state.outlook(false)
    }

    /// Takes a job back that no thread has begun.
    fn withdraw(&self, ticket: &Arc<Ticket>) -> bool {
        let mut state = lock(&self.state);
        let before = state.jobs.len();
        state.jobs.retain(|job| !Arc::ptr_eq(&job.ticket, ticket));
        state.jobs.len() < before
    }

    fn look(&self, ticket: &Arc<Ticket>, refused: bool) -> Outlook {
        let mut state = lock(&self.state);
        if !state
            .jobs
            .iter()
            .any(|job| Arc::ptr_eq(&job.ticket, ticket))
        {
            return Outlook::Served;
        }
        state.outlook(refused)
    }

    /// Waits for a job, on a thread of the pool. The last one is over.
    pub fn take(&self, place: &mut Place, interrupted: &AtomicBool) -> Turn<W> {
        let mut state = lock(&self.state);
        state.leave(std::mem::replace(place, Place::Between));
        loop {
            if interrupted.load(Ordering::Acquire) {
                return Turn::Interrupted;
            }
            if let Some(job) = state.jobs.pop_front() {
                return Turn::Job(job);
            }
            state.idle += 1;
            let (next, timeout) = self
                .more
                .wait_timeout(state, IDLE)
                .unwrap_or_else(PoisonError::into_inner);
            state = next;
            state.idle -= 1;
            if timeout.timed_out() && state.jobs.is_empty() {
                return Turn::Idle;
            }
        }
    }

    /// A thread begins the job that it has taken.
    pub fn begin(&self, place: &mut Place) {
        let mut state = lock(&self.state);
        state.busy += 1;
        *place = Place::Busy;
        state.begun = clock::now();
        if state.begun >= state.grown + STALL {
            state.allowed = 0;
        }
    }

    /// Wakes the threads that wait, after a flag of one of them was raised.
    pub fn wake_threads(&self) {
        // Under the lock, so that a thread between its look and its wait hears it.
        drop(lock(&self.state));
        self.more.notify_all();
    }

    /// A thread is no more, or could not be started. Jobs that it might have taken are for others, and their
    /// fibers see to it that there are some.
    pub fn leave(&self, place: Place) {
        let mut state = lock(&self.state);
        state.threads -= 1;
        state.leave(place);
        self.more.notify_all();
        if state.idle < state.jobs.len() {
            state.jobs.iter().for_each(|job| job.ticket.nudge());
        }
    }
}

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
    let ticket = Arc::new(Ticket {
        waker,
        state: Mutex::new(TicketState {
            wait: wait.id(),
            end: None,
        }),
    });
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
        let id = self.wait.renew();
        let mut state = lock(&ticket.state);
        state.wait = id;
        state.end
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
