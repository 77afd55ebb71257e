//! A pool of threads for what may wait, and that the ring has no operation for: who has which job, and how many threads
//! there are to be. Whoever embeds the runtime starts the threads.
//!
//! A few threads are started as soon as there is work. More are when all of them have been at the same job
//! for a while: what waits for ever (the open of a FIFO, a name server that is silent) then holds up nothing
//! else, and a crowd of short jobs makes no crowd of threads. Threads that nobody needs end.

use std::collections::VecDeque;
use std::sync::PoisonError;
use std::time::Duration;

use crate::clock;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{lock, Arc, Condvar, Mutex};
use crate::tasks::WaitId;
use crate::waker::Waker;

/// Threads that are started as soon as there is work for them.
const FEW: usize = 8;
/// The most threads: jobs beyond wait for [`PATIENCE`], and fail then.
pub const MOST: usize = 1024;
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

/// What a task knows of its job, and a job of its task.
#[derive(Debug)]
pub struct Ticket {
    waker: Waker,
    state: Mutex<TicketState>,
}

#[derive(Debug)]
struct TicketState {
    /// The wait to end: it changes when the task has to wait anew.
    wait: WaitId,
    end: Option<End>,
}

impl Ticket {
    /// That of a job whose end is the end of a wait.
    pub fn new(waker: Waker, wait: WaitId) -> Self {
        let state = Mutex::new(TicketState { wait, end: None });
        Self { waker, state }
    }

    /// Ends the job, and the task's wait.
    pub fn finish(&self, end: End) {
        let mut state = lock(&self.state);
        state.end = Some(end);
        self.waker.complete(state.wait);
    }

    /// How the job has ended, if it has.
    pub fn end(&self) -> Option<End> {
        lock(&self.state).end
    }

    /// Has the job end another wait than before, unless it is over.
    pub fn renew(&self, wait: WaitId) -> Option<End> {
        let mut state = lock(&self.state);
        state.wait = wait;
        state.end
    }

    /// Interrupts the job unless it is over. It cannot end meanwhile: Ruby would go on interrupting a thread that
    /// has left the call that it was in.
    pub fn interrupt(&self, interrupt: &mut dyn FnMut() -> bool) -> bool {
        let state = lock(&self.state);
        state.end.is_none() && interrupt()
    }

    /// Has the task look after its job.
    fn nudge(&self) {
        self.waker.complete(lock(&self.state).wait);
    }
}

/// A job, with what is to be done.
#[derive(Debug)]
pub struct Job<W> {
    /// What is to be done.
    pub work: W,
    /// Whom it is done for.
    pub ticket: Arc<Ticket>,
}

#[derive(Debug)]
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
#[derive(Debug)]
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
#[derive(Debug)]
pub enum Turn<W> {
    /// A job.
    Job(Job<W>),
    /// Its own flag was raised.
    Interrupted,
    /// Nobody needs it.
    Idle,
}

/// What becomes of a job that no thread has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// A thread has it, or is sure to take it.
    Served,
    /// It is looked at again at this time.
    Look(u64),
    /// Another thread is to be started, which counts already.
    Start,
    /// There is no thread to be had.
    Refused,
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
    /// Adds a job.
    pub fn enqueue(&self, job: Job<W>) -> Outlook {
        let mut state = lock(&self.state);
        if state.jobs.is_empty() && state.idle == state.threads {
            state.begun = clock::now();
        }
        state.jobs.push_back(job);
        self.more.notify_one();
        state.outlook(false)
    }

    /// Takes a job back that no thread has begun.
    pub fn withdraw(&self, ticket: &Arc<Ticket>) -> bool {
        let mut state = lock(&self.state);
        let before = state.jobs.len();
        state.jobs.retain(|job| !Arc::ptr_eq(&job.ticket, ticket));
        state.jobs.len() < before
    }

    /// Looks after a job. `refused` says that no thread could be started.
    pub fn look(&self, ticket: &Arc<Ticket>, refused: bool) -> Outlook {
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
    /// tasks see to it that there are some.
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

#[cfg(all(test, loom))]
mod models {
    use loom::thread::{self, JoinHandle};

    use super::*;
    use crate::slab::Key;

    fn wait(serial: u64) -> WaitId {
        let task = Key {
            index: 0,
            generation: 0,
        };
        WaitId { task, serial }
    }

    /// A pool, the flags of its threads, and the waker of the driver whose tasks have jobs for it.
    struct Model {
        pool: Arc<Pool<()>>,
        waker: Waker,
        threads: Vec<(Arc<AtomicBool>, JoinHandle<()>)>,
    }

    /// Tries all orders of what threads do with two switches at most where no thread waits: of more there are too many.
    fn in_every_order(run: impl Fn(Model) + Sync + Send + 'static) {
        let mut model = loom::model::Builder::new();
        model.preemption_bound = Some(2);
        model.check(move || {
            run(Model {
                pool: Arc::new(Pool::default()),
                waker: Waker::new().unwrap(),
                threads: Vec::new(),
            });
        });
    }

    impl Model {
        /// Starts a thread, which does jobs until its flag is raised or its time is up.
        fn start_thread(&mut self) {
            let flag = Arc::new(AtomicBool::new(false));
            let (pool, interrupted) = (Arc::clone(&self.pool), Arc::clone(&flag));
            let thread = thread::spawn(move || {
                let mut place = Place::Fresh;
                while let Turn::Job(job) = pool.take(&mut place, &interrupted) {
                    pool.begin(&mut place);
                    job.ticket.finish(End::Done);
                }
                pool.leave(place);
            });
            self.threads.push((flag, thread));
        }

        fn enqueue(&self, serial: u64) -> (Arc<Ticket>, Outlook) {
            let ticket = Arc::new(Ticket::new(self.waker.clone(), wait(serial)));
            let job = Job {
                work: (),
                ticket: Arc::clone(&ticket),
            };
            let outlook = self.pool.enqueue(job);
            (ticket, outlook)
        }

        /// Does for a job what its task does, as off_thread/threads.rs of the extension, until the job is over.
        fn wait(&mut self, ticket: &Arc<Ticket>, mut outlook: Outlook) -> End {
            loop {
                match outlook {
                    Outlook::Served => {
                        self.waker.wait_in_model();
                        if let Some(end) = ticket.end() {
                            return end;
                        }
                    }
                    Outlook::Start => self.start_thread(),
                    outlook => panic!("{outlook:?}"),
                }
                outlook = self.pool.look(ticket, false);
            }
        }

        /// Has a job done.
        fn ask(&mut self, serial: u64) {
            let (ticket, outlook) = self.enqueue(serial);
            assert_eq!(self.wait(&ticket, outlook), End::Done);
        }

        /// Ends the threads, of which none sleeps through that; then none counts any more.
        fn end(self) {
            for (flag, _) in &self.threads {
                flag.store(true, Ordering::Release);
            }
            self.pool.wake_threads();
            for (_, thread) in self.threads {
                thread.join().unwrap();
            }
            let state = lock(&self.pool.state);
            assert_eq!((state.threads, state.idle, state.busy), (0, 0, 0));
        }
    }

    #[test]
    fn a_job_is_done_though_the_time_of_the_thread_that_waits_for_it_is_up() {
        in_every_order(|mut model| {
            let pool = Arc::clone(&model.pool);
            let clock = thread::spawn(move || pool.more.expire());
            model.ask(1);
            model.ask(2);
            clock.join().unwrap();
            model.end();
        });
    }

    #[test]
    fn a_job_is_done_though_the_thread_that_was_to_take_it_is_interrupted() {
        in_every_order(|mut model| {
            model.ask(1);
            let (pool, flag) = (Arc::clone(&model.pool), Arc::clone(&model.threads[0].0));
            let interrupter = thread::spawn(move || {
                flag.store(true, Ordering::Release);
                pool.wake_threads();
            });
            model.ask(2);
            interrupter.join().unwrap();
            model.end();
        });
    }

    #[test]
    fn jobs_of_two_tasks_are_done() {
        in_every_order(|mut model| {
            let (first, outlook) = model.enqueue(1);
            assert_eq!(outlook, Outlook::Start);
            model.start_thread();
            let (second, outlook) = model.enqueue(2);
            assert_eq!(model.wait(&second, outlook), End::Done);
            if first.end().is_none() {
                let outlook = model.pool.look(&first, false);
                model.wait(&first, outlook);
            }
            model.end();
        });
    }

    #[test]
    fn a_job_is_withdrawn_or_done() {
        in_every_order(|mut model| {
            let (ticket, outlook) = model.enqueue(1);
            assert_eq!(outlook, Outlook::Start);
            model.start_thread();
            if model.pool.withdraw(&ticket) {
                assert_eq!(ticket.end(), None);
            } else {
                assert_eq!(model.wait(&ticket, Outlook::Served), End::Done);
            }
            model.end();
        });
    }

    #[test]
    fn a_job_ends_the_wait_that_its_task_has_begun_last() {
        in_every_order(|mut model| {
            let (ticket, outlook) = model.enqueue(1);
            assert_eq!(outlook, Outlook::Start);
            model.start_thread();
            if ticket.renew(wait(2)).is_none() {
                while !model.waker.wait_in_model().contains(&wait(2)) {}
                assert_eq!(ticket.end(), Some(End::Done));
            }
            model.end();
        });
    }
}
