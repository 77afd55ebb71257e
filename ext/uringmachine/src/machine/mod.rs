//! One thread's machine with Ruby's fibers on it: whose fiber is which task, and what waits to be
//! raised in whom.

pub mod caller;
pub mod child;
pub mod closing;
pub mod ending;
pub mod hints;
pub mod inflow;
pub mod interrupts;
pub mod line;
pub mod multishot;
pub mod owner;
pub mod poll;
pub mod positions;
pub mod registry;
pub mod report;
pub mod splice;
pub mod spun;
pub mod switch;
pub mod thread_call;
pub mod write_all;

use std::cell::Cell;
use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uringmachine_runtime::by_descriptor::ByDescriptor;
use uringmachine_runtime::driver::Timer;
use uringmachine_runtime::registered_buffers::RegionId;
use uringmachine_runtime::slab::{Key, Slab};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{clock, Driver, OpKey, TaskId, Wake};

use crate::lending::{self, Lender, Lending};
use crate::machine::hints::Descriptors;
use crate::machine::inflow::{Flow, Reading};
use crate::os::per_process;
use crate::ruby::{self, Raise, FALSE, NIL, VALUE};

/// How many switches may pass before the machine looks at the ring although fibers are runnable.
const SWITCHES_PER_POLL: u32 = 64;

/// How much is moved without waiting between looks at the clock: operations, each of which counts once more for as
/// many bytes as this power of two.
const WORK_PER_LOOK: u32 = 64;
const WORK_BYTES: u32 = 7;
/// How long a fiber whose operations never wait may hold the thread, in nanoseconds.
const HELD_AT_MOST: u64 = 4_000_000;

/// How long the fiber that runs has held the thread.
#[derive(Debug, Default)]
struct Held {
    /// What it has moved since the last look at the clock.
    work: u32,
    /// The count of switches at that look: another one is another fiber's, or came after others.
    switches: u64,
    since: u64,
}

/// What a fiber is to raise when its wait ends by [`Wake::Interrupt`].
#[derive(Clone, Copy, Debug)]
pub enum Pending {
    /// This exception.
    Exception(VALUE),
    /// That of a timeout, made when it is raised.
    Timeout(Key),
    /// This value is not raised: a machine's `schedule` gives it to the fiber.
    Value(VALUE),
    /// The fiber is to end.
    Unwind,
}

impl Pending {
    /// The Ruby object that must be kept for it.
    fn object(&self) -> Option<VALUE> {
        match self {
            Self::Exception(object) | Self::Value(object) => Some(*object),
            Self::Timeout(_) | Self::Unwind => None,
        }
    }
}

/// How a fiber goes on that somebody has scheduled.
#[derive(Debug)]
pub enum Resumption {
    Raise(Raise),
    Value(VALUE),
}

thread_local! {
    /// The core that is about to start a fiber it has spun.
    static STARTING: Cell<*mut Core> = const { Cell::new(std::ptr::null_mut()) };
}

/// The core that started the fiber that begins to run, asked once.
pub fn take_starting() -> *mut Core {
    STARTING.replace(std::ptr::null_mut())
}

/// Notes the core that starts a fiber.
pub fn set_starting(core: *mut Core) {
    STARTING.set(core);
}

/// The payload of a task: a fiber, and how it stands.
#[derive(Debug)]
pub struct Waiter {
    pub fiber: VALUE,
    /// Started by the scheduler or the machine: it lives as long as its fiber.
    pub scheduled: bool,
    /// Started by the machine's `spin`.
    pub spun: bool,
    /// It has never run in this machine: its first switch brings a value along.
    pub fresh: bool,
    /// It waits for nothing but to be scheduled.
    pub yielding: bool,
    /// It is between the start and the end of a wait, wherever its fiber is meanwhile.
    pub inside: bool,
    /// The task of the wait that this one interrupts: see [`Core::current_task`].
    pub outer: Option<TaskId>,
    /// The Ruby object whose memory its operation works on.
    pub held: VALUE,
    /// Its last operation, if the kernel still has the memory of it (a zero-copy send that was cancelled).
    pub lent: Option<OpKey>,
    /// Why its last wait ended.
    pub woken: Wake,
    /// It waits for the kernel to give memory back: nothing may interrupt that.
    pub draining: bool,
    /// It waits in a finalizer or a handler: what it is to raise is for its own waits.
    aside: bool,
    /// In the middle of an operation of several steps: the close of its descriptor counts between two of them, too.
    pub stepping: bool,
    /// What the operation that it is in is to raise, or its next step, for a descriptor that is being closed; or
    /// `NIL`. It goes with the operation.
    pub closed_by: VALUE,
    /// What few fibers ever need.
    rare: Option<Box<Rare>>,
    /// The wait may be ended by `unblock`.
    pub blocked: bool,
    /// What it waits for then, if that is known; or `NIL`. Whoever waits keeps it.
    pub blocker: VALUE,
    /// An `unblock` that came before the `block` it was for.
    pub unblocked_by: VALUE,
    /// What it is to raise, or be given, at its next waits.
    pub pending: VecDeque<Pending>,
}

/// What few fibers ever need, apart from the rest: there may be a waiter for each of very many.
#[derive(Debug, Default)]
pub struct Rare {
    /// The masks of Thread.handle_interrupt that hold its timeouts back, the innermost last.
    pub masks: Vec<VALUE>,
    /// The exception that was made last for a timeout, and whose: see [`Core::keep_raise`].
    taken: Option<(VALUE, Key)>,
}

impl Waiter {
    /// What few need, made when it is needed.
    pub fn rare(&mut self) -> &mut Rare {
        self.rare.get_or_insert_default()
    }

    /// Whether the fiber's body is one of ours, which an unwinding ends in: that of one that has begun.
    pub fn unwinds(&self) -> bool {
        self.scheduled && !self.fresh
    }

    /// Whether its next wait raises.
    pub fn is_to_raise(&self) -> bool {
        self.pending
            .iter()
            .any(|pending| !matches!(pending, Pending::Value(_)))
    }
}

/// A task's operation on an IO has moved something, though its descriptor was closed meanwhile, and not by the IO: Ruby
/// may go on with the rest, and the number be another file's by then.
pub struct Lost {
    pub task: TaskId,
    pub io: VALUE,
    pub fd: std::os::fd::RawFd,
    pub exception: VALUE,
}

/// A running `timeout_after` block.
#[derive(Debug)]
pub struct Timeout {
    pub fiber: VALUE,
    pub exception: VALUE,
    pub message: VALUE,
    /// `exception` is not raised: the wait returns it.
    pub is_value: bool,
    /// What has been raised, once it was made.
    pub made: VALUE,
}

/// What nobody wants any more.
pub enum Discarded {
    /// What a UM::IO has read from.
    Flow(Arc<Flow>),
    /// Registered buffers.
    Buffers(RegionId),
}

/// What is to be given up by the machine's own thread, whoever finds that nobody wants it.
#[derive(Clone, Default)]
pub struct Discards(Arc<DiscardsShared>);

#[derive(Default)]
struct DiscardsShared {
    any: AtomicBool,
    list: Mutex<Vec<Discarded>>,
}

impl Discards {
    /// Adds one. Any thread, the collector too.
    pub fn add(&self, discarded: Discarded) {
        self.list().push(discarded);
        self.0.any.store(true, Ordering::Release);
    }

    fn any(&self) -> bool {
        self.0.any.load(Ordering::Acquire)
    }

    fn take(&self) -> Vec<Discarded> {
        self.0.any.store(false, Ordering::Release);
        std::mem::take(&mut *self.list())
    }

    fn list(&self) -> MutexGuard<'_, Vec<Discarded>> {
        self.0.list.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What profile mode counts.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// When it was turned on, in nanoseconds of CPU time of this thread.
    pub cpu_start: u64,
    /// Nanoseconds in the kernel's wait.
    pub waited: u64,
}

/// Fibers by address: multiplied by a large odd number, since addresses share their low bits.
#[derive(Default)]
pub struct AddressHasher(u64);

impl Hasher for AddressHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("only addresses are hashed");
    }

    #[inline]
    fn write_u64(&mut self, address: u64) {
        self.0 = address.wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(20);
    }
}

type ByFiber = HashMap<u64, TaskId, BuildHasherDefault<AddressHasher>>;

/// The machine of one thread, with its fibers.
pub struct Core {
    pub driver: Driver<Waiter>,
    pub descriptors: Descriptors,
    /// What is known of reading from each descriptor, and has come from it.
    pub reading: ByDescriptor<Reading>,
    /// The memory that it lends to the kernel.
    pub lending: Lending,
    pub waits: crate::machine::closing::Waits,
    /// What the next operation of a task on an IO is to raise.
    pub lost: Vec<Lost>,
    pub timeouts: Slab<Timeout>,
    /// What is to be raised in fibers that do not wait in this machine: `Fiber#raise` does it.
    pub raises: Vec<(VALUE, Pending)>,
    /// The task that runs, as far as the machine knows.
    pub current: TaskId,
    /// The block of the fiber that is being started, until it runs.
    pub starting: VALUE,
    /// The root fiber, while it is parked here by a scheduler.
    pub root: Option<TaskId>,
    /// The thread's root fiber, or `NIL`: interrupts are its to handle.
    pub home: VALUE,
    /// How many switches to another fiber there were.
    pub switches: u64,
    /// How many operations worked on registered buffers.
    pub fixed: u64,
    /// Switches between looks at the ring.
    pub patience: u32,
    /// What nobody wants any more, to be given up by the machine's own thread.
    pub discards: Discards,
    /// Pipes between ends of a splice that are none.
    pub pipes: crate::machine::splice::Pipes,
    /// Nanoseconds asleep and their start, counted in profile mode.
    pub profile: Option<Profile>,
    /// The thread sleeps without the GVL.
    pub asleep: bool,
    /// The fibers are being unwound, since the thread ends or was interrupted.
    pub ending: bool,
    /// What interrupted that: raised when it is over.
    pub late: Option<Raise>,
    by_fiber: ByFiber,
    /// The task of an unscheduled fiber that waited last: kept, since it likely waits again.
    kept: Option<TaskId>,
    thread: VALUE,
    /// The Ractor of the thread: others have a lock of their own.
    ractor: VALUE,
    forks: u32,
    countdown: u32,
    held: Held,
    /// How many tasks interrupt another one of their fiber.
    interrupting: usize,
}

impl Lender for Core {
    #[inline]
    fn registered_index(&self, pointer: *const u8, length: usize) -> Option<u16> {
        self.driver.registered_index(pointer, length)
    }

    fn is_over(&self, op: OpKey) -> bool {
        self.driver.is_over(op)
    }

    #[inline]
    fn is_forked(&self) -> bool {
        Core::is_forked(self)
    }

    #[inline]
    fn lending(&mut self) -> &mut Lending {
        &mut self.lending
    }
}

impl Core {
    pub fn new(driver: Driver<Waiter>) -> Self {
        Self {
            driver,
            descriptors: Descriptors::default(),
            reading: ByDescriptor::default(),
            lending: Lending::default(),
            waits: crate::machine::closing::Waits::default(),
            lost: Vec::new(),
            timeouts: Slab::default(),
            raises: Vec::new(),
            starting: NIL,
            current: Key {
                index: u32::MAX,
                generation: 0,
            },
            root: None,
            home: NIL,
            switches: 0,
            fixed: 0,
            patience: SWITCHES_PER_POLL,
            discards: Discards::default(),
            pipes: crate::machine::splice::Pipes::default(),
            profile: None,
            asleep: false,
            ending: false,
            late: None,
            by_fiber: ByFiber::default(),
            kept: None,
            thread: NIL,
            ractor: NIL,
            forks: per_process::so_far(),
            countdown: SWITCHES_PER_POLL,
            held: Held::default(),
            interrupting: 0,
        }
    }

    /// Whether this process is a child of the one that made the machine.
    #[inline]
    pub fn is_forked(&self) -> bool {
        self.forks != per_process::so_far()
    }

    /// Leaves the parent's machine to the parent: in a child of fork. Its descriptors are closed, its fibers
    /// are kept no more, and none goes on; what its operations have locked is the child's to use. The records
    /// stay, for a fiber that is unwound all the same.
    pub fn forsake(&mut self) {
        self.driver.forsake();
        self.unlock_held();
        for waiter in self.driver.tasks.iter_mut() {
            waiter.fiber = NIL;
            waiter.held = NIL;
            waiter.unblocked_by = FALSE;
            waiter.pending = VecDeque::new();
        }
        self.by_fiber = ByFiber::default();
        self.timeouts = Slab::default();
        self.lending.holds = Slab::default();
        self.raises = Vec::new();
        self.descriptors = Descriptors::default();
        self.reading = ByDescriptor::default();
        self.lending.loans = Vec::new();
        self.lost = Vec::new();
        self.lending.scratch = crate::lending::Scratch::default();
        (self.root, self.kept, self.home) = (None, None, NIL);
    }

    /// Unlocks what operations have locked that nobody will take the result of.
    pub fn unlock_held(&mut self) {
        for (_, held) in self.lending.holds.iter() {
            held.iter().for_each(|object| lending::take_over(*object));
        }
        for (_, _, waiter) in self.driver.tasks.iter() {
            lending::take_over(waiter.held);
        }
    }

    /// Whether anything can be done with the machine: it is this process's, and not closed.
    pub fn is_usable(&self) -> bool {
        !self.is_forked() && !self.driver.is_closed()
    }

    /// The thread the machine belongs to, `NIL` before its first use.
    #[inline]
    pub fn thread(&self) -> VALUE {
        self.thread
    }

    /// The Ractor the machine belongs to, `NIL` before its first use.
    #[inline]
    pub fn ractor(&self) -> VALUE {
        self.ractor
    }

    /// Whether nobody runs the machine's fibers any more: its thread has ended, or is the parent's.
    pub fn is_abandoned(&self) -> bool {
        // SAFETY: plain accessors; Thread#alive? does not raise.
        unsafe {
            if self.thread == ruby::rb_thread_current() {
                return self.is_forked();
            }
            self.is_forked() || !ruby::truthy(ruby::funcall(self.thread, ruby::id("alive?"), &[]))
        }
    }

    /// Binds the machine to the current thread at its first use.
    pub fn bind(&mut self, thread: VALUE) -> Result<(), Raise> {
        self.driver
            .enable()
            .map_err(|error| Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)))?;
        self.thread = thread;
        self.ractor = ruby::current_ractor();
        Ok(())
    }

    /// The task of the fiber that runs. A signal's handler runs in the middle of a fiber's wait: it gets
    /// a task of its own, so that its waits and those that it interrupts have nothing to do with each other.
    #[inline]
    pub fn current_task(&mut self) -> TaskId {
        // SAFETY: a plain accessor.
        let fiber = unsafe { ruby::rb_fiber_current() };
        if let Some(waiter) = self.driver.tasks.get(self.current) {
            if waiter.fiber == fiber && !waiter.inside {
                return self.current;
            }
        }
        let mut task = self.task_of(fiber);
        if self.waiter(task).inside {
            let outer = task;
            task = self.add(fiber, true);
            self.waiter(task).outer = Some(outer);
            self.interrupting += 1;
        }
        self.current = task;
        task
    }

    /// Whoever has interrupted a wait of this task is done.
    #[inline]
    pub fn end_interruptions(&mut self, task: TaskId) {
        if self.interrupting > 0 {
            self.remove_interruptions(task);
        }
    }

    #[cold]
    fn remove_interruptions(&mut self, task: TaskId) {
        let fiber = self.waiter(task).fiber;
        while let Some(inner) = self.find(fiber).filter(|inner| *inner != task) {
            let Some(outer) = self.waiter(inner).outer else {
                return;
            };
            if let Some(removed) = self.driver.tasks.remove(inner) {
                self.by_fiber.insert(fiber, outer);
                self.interrupting -= 1;
                for pending in removed.pending {
                    self.interrupt(outer, pending);
                }
            }
        }
    }

    /// The task of a fiber that somebody means who knows of no handlers: the innermost one that waits.
    pub fn find_waiting(&self, fiber: VALUE) -> Option<TaskId> {
        let mut task = self.find(fiber)?;
        while self.interrupting > 0 && self.driver.tasks.state(task) == Some(State::Running) {
            match self.driver.tasks.get(task).and_then(|waiter| waiter.outer) {
                Some(outer) => task = outer,
                None => break,
            }
        }
        Some(task)
    }

    /// Whether a fiber waits here, by itself or, as one that the machine started, in a fiber that it has resumed.
    pub fn has_waiting(&self, fiber: VALUE) -> bool {
        self.find_waiting(fiber).is_some_and(|task| {
            self.driver.tasks.state(task) != Some(State::Running)
                || self
                    .driver
                    .tasks
                    .get(task)
                    .is_some_and(|waiter| waiter.scheduled)
        })
    }

    /// Whether a fiber was started by the scheduler or the machine.
    pub fn has_started(&self, fiber: VALUE) -> bool {
        self.find(fiber)
            .and_then(|task| self.driver.tasks.get(task))
            .is_some_and(|waiter| waiter.scheduled)
    }

    /// The task of a fiber whose wait `unblock` may end.
    pub fn blocked_task(&self, mut task: TaskId) -> TaskId {
        let first = task;
        while let Some(waiter) = self.driver.tasks.get(task) {
            match waiter.outer {
                _ if waiter.blocked => return task,
                Some(outer) => task = outer,
                None => break,
            }
        }
        first
    }

    /// Wakes the fiber that has waited for a blocker longest; says whether there is one.
    pub fn wake_blocked_by(&mut self, blocker: VALUE) -> bool {
        let first = self
            .driver
            .tasks
            .iter()
            .filter(|(_, state, waiter)| {
                *state == State::Waiting && waiter.blocked && waiter.blocker == blocker
            })
            .filter_map(|(task, ..)| self.driver.tasks.current_wait(task))
            .min_by_key(|wait| wait.serial);
        first.is_some_and(|wait| {
            self.notify();
            self.driver.tasks.wake(wait, Wake::Complete)
        })
    }

    /// The task of a fiber, made if it has none.
    pub fn task_of(&mut self, fiber: VALUE) -> TaskId {
        match self.find(fiber) {
            Some(task) => task,
            None => self.add(fiber, false),
        }
    }

    /// The task of a fiber, if it has one.
    #[inline]
    pub fn find(&self, fiber: VALUE) -> Option<TaskId> {
        self.by_fiber.get(&fiber).copied()
    }

    pub fn add(&mut self, fiber: VALUE, scheduled: bool) -> TaskId {
        let task = self.driver.tasks.add(Waiter {
            fiber,
            scheduled,
            spun: false,
            fresh: false,
            yielding: false,
            inside: false,
            outer: None,
            held: NIL,
            lent: None,
            woken: Wake::Complete,
            draining: false,
            aside: false,
            stepping: false,
            closed_by: NIL,
            rare: None,
            blocked: false,
            blocker: NIL,
            unblocked_by: FALSE,
            pending: VecDeque::new(),
        });
        self.by_fiber.insert(fiber, task);
        // SAFETY: a plain accessor.
        if !scheduled && self.home == NIL && unsafe { ruby::is_blocking_fiber(fiber) } {
            self.home = fiber;
        }
        task
    }

    /// The task that interrupts of the thread belong to: the root fiber's, while it waits here.
    pub fn interrupt_target(&self) -> Option<TaskId> {
        if self.root.is_some() {
            return self.root;
        }
        let home = self.find_waiting(self.home)?;
        let waits = self.driver.tasks.state(home)? != State::Running;
        waits.then_some(home)
    }

    pub fn remove(&mut self, task: TaskId) {
        if let Some(waiter) = self.driver.tasks.remove(task) {
            self.by_fiber.remove(&waiter.fiber);
        }
    }

    /// The payload of a task that must be there.
    #[inline]
    pub fn waiter(&mut self, task: TaskId) -> &mut Waiter {
        self.driver
            .tasks
            .get_mut(task)
            .expect("a task that waits is in the table")
    }

    /// Ends a wait. The task of an unscheduled fiber goes when another takes its place.
    #[inline]
    pub fn finish_wait(&mut self, task: TaskId) {
        self.driver.tasks.end_wait(task);
        let waiter = self.waiter(task);
        waiter.blocked = false;
        waiter.blocker = NIL;
        waiter.aside = false;
        if !waiter.stepping {
            waiter.closed_by = NIL;
        }
        if !waiter.scheduled {
            self.keep(task);
        }
    }

    /// Keeps the task of an unscheduled fiber, in place of another one's.
    #[inline]
    pub fn keep(&mut self, task: TaskId) {
        if self.kept == Some(task) {
            return;
        }
        if let Some(other) = self.kept.replace(task) {
            let in_use = self.root == Some(other)
                || self.driver.tasks.get(other).is_some_and(|other| {
                    other.fiber == self.home || other.inside || !other.pending.is_empty()
                });
            if !in_use && self.driver.tasks.state(other) == Some(State::Running) {
                self.remove(other);
            }
        }
    }

    /// The next ready task. Every so often the ring and the timers come first.
    #[inline]
    pub fn next_ready(&mut self) -> Option<(TaskId, Wake)> {
        self.countdown -= 1;
        if self.countdown == 0 {
            self.poll();
        }
        self.driver.tasks.next_ready()
    }

    /// Whether to look at the ring at every switch.
    pub fn set_eager(&mut self, eager: bool) {
        self.patience = if eager { 1 } else { SWITCHES_PER_POLL };
        self.countdown = self.patience;
    }

    /// Submits and reaps without waiting, and fires timers.
    pub fn poll(&mut self) {
        self.countdown = self.patience;
        self.give_up_discarded();
        // What enter refuses now it refuses again when the machine has to sleep, where it is raised.
        let _ = self.driver.poll();
        if !self.lending.loans.is_empty() {
            lending::take_back(self);
        }
        self.expire_timeouts();
    }

    /// Gives up what the owners of are gone.
    #[inline]
    pub fn give_up_discarded(&mut self) {
        if self.discards.any() {
            for discarded in self.discards.take() {
                match discarded {
                    // SAFETY: with the GVL; no other reference is held.
                    Discarded::Flow(flow) => unsafe { (*flow.get()).let_go(self) },
                    Discarded::Buffers(region) => self.driver.unregister_buffers(region),
                }
            }
        }
    }

    /// Has the fibers raise whose timeouts have fired.
    pub fn expire_timeouts(&mut self) {
        while let Some(key) = self.driver.take_expired() {
            let Some(timeout) = self.timeouts.get_mut(key) else {
                continue;
            };
            let fiber = timeout.fiber;
            // A fiber of the program's own may have another task by now.
            let Some(task) = self.find_waiting(fiber) else {
                self.raises.push((fiber, Pending::Timeout(key)));
                continue;
            };
            match self.driver.tasks.state(task) {
                Some(State::Waiting) => self.interrupt(task, Pending::Timeout(key)),
                // Its wait is over: it keeps the result and raises at its next wait, if it is then
                // still inside the block.
                Some(State::Ready(_)) => self.defer(task, Pending::Timeout(key)),
                // It waits somewhere else, in a fiber it has resumed.
                _ => self.raises.push((fiber, Pending::Timeout(key))),
            }
        }
    }

    /// Ends a wait by something to raise or to be given; one that is draining, or over, raises at
    /// its next wait.
    pub fn interrupt(&mut self, task: TaskId, pending: Pending) {
        let waiter = self.waiter(task);
        if !waiter.draining && !waiter.aside && !self.is_held_back(task, &pending) {
            if let Some(wait) = self.driver.tasks.current_wait(task) {
                self.driver.tasks.wake(wait, Wake::Interrupt);
            }
        }
        self.defer(task, pending);
    }

    /// Whether a mask of the fiber's holds back what it is to raise.
    fn is_held_back(&self, task: TaskId, pending: &Pending) -> bool {
        let (Some(waiter), Pending::Timeout(key)) = (self.driver.tasks.get(task), pending) else {
            return false;
        };
        let Some(rare) = &waiter.rare else {
            return false;
        };
        let Some(timeout) = self.timeouts.get(*key) else {
            return false;
        };
        // SAFETY: the masks are Hashes, kept by the frames that have set them.
        unsafe { interrupts::holds_back(&rare.masks, timeout.exception) }
    }

    fn defer(&mut self, task: TaskId, pending: Pending) {
        self.waiter(task).pending.push_back(pending);
    }

    /// Ends the operation that a task is in, because its descriptor is being closed: it raises the exception there,
    /// or nowhere.
    pub fn interrupt_by_close(&mut self, task: TaskId, exception: VALUE) {
        let waiter = self.waiter(task);
        waiter.closed_by = exception;
        if !waiter.draining {
            if let Some(wait) = self.driver.tasks.current_wait(task) {
                self.driver.tasks.wake(wait, Wake::Interrupt);
            }
        }
    }

    /// Makes the exception that a task is to raise now, if any.
    #[inline]
    pub fn take_pending(&mut self, task: TaskId) -> Option<Raise> {
        let waiter = self.waiter(task);
        if waiter.pending.is_empty() && waiter.closed_by == NIL {
            return None;
        }
        self.take_raise(task)
    }

    /// Takes an exception that a task was to raise at its next wait: its fiber ends without one.
    pub fn take_kept(&mut self, task: TaskId) -> Option<VALUE> {
        self.waiter(task)
            .pending
            .iter()
            .find_map(|pending| match pending {
                Pending::Exception(exception) => Some(*exception),
                _ => None,
            })
    }

    /// Keeps what a task was to raise for its next wait, since its operation has moved something: its result counts.
    /// What belongs to the operation goes with it; what cannot be kept (a kill, a throw) is returned.
    #[cold]
    pub fn keep_raise(&mut self, task: TaskId, raise: Raise) -> Result<(), Raise> {
        let waiter = self.waiter(task);
        let pending = match raise {
            Raise::Exception(exception) => match waiter.rare.as_ref().and_then(|rare| rare.taken) {
                Some((made, key)) if made == exception => Pending::Timeout(key),
                _ => Pending::Exception(exception),
            },
            Raise::Unwind => Pending::Unwind,
            raise => return Err(raise),
        };
        waiter.pending.push_front(pending);
        Ok(())
    }

    /// What the operation that a task is in is to raise for the close of its descriptor, if it has been closed.
    #[inline]
    pub fn closed(&mut self, task: TaskId) -> Option<Raise> {
        match self.waiter(task).closed_by {
            NIL => None,
            exception => Some(Raise::Exception(exception)),
        }
    }

    /// Notes that a task has lost the descriptor of an IO.
    #[cold]
    pub fn note_lost(&mut self, lost: Lost) {
        let tasks = &self.driver.tasks;
        self.lost
            .retain(|other| other.task != lost.task && tasks.get(other.task).is_some());
        self.lost.push(lost);
    }

    /// What an operation of a task is to raise that has lost the descriptor of this IO; once.
    #[inline]
    pub fn take_lost(&mut self, task: TaskId, io: VALUE, fd: std::os::fd::RawFd) -> Option<Raise> {
        if self.lost.is_empty() {
            return None;
        }
        let place = self.lost.iter().position(|lost| lost.task == task)?;
        let lost = self.lost.swap_remove(place);
        (lost.io == io && lost.fd == fd).then_some(Raise::Exception(lost.exception))
    }

    /// Notes that bytes were moved without waiting.
    #[inline]
    pub fn count_at_once(&mut self, bytes: usize) {
        self.held.work += 1 + (bytes >> WORK_BYTES) as u32;
    }

    /// Whether the fiber that runs has held the thread so long that the ready are to go first, though nothing made it
    /// wait.
    #[inline]
    pub fn has_held_long(&mut self) -> bool {
        self.held.work >= WORK_PER_LOOK && self.look_at_the_clock()
    }

    #[cold]
    fn look_at_the_clock(&mut self) -> bool {
        let now = clock::now();
        self.held.work = 0;
        if self.held.switches != self.switches {
            self.held.switches = self.switches;
            self.held.since = now;
            return false;
        }
        let long = now.saturating_sub(self.held.since) >= HELD_AT_MOST;
        if long {
            self.held.since = now;
        }
        long
    }

    #[cold]
    fn take_raise(&mut self, task: TaskId) -> Option<Raise> {
        if let Some(raise) = self.closed(task) {
            return Some(raise);
        }
        if self.is_aside(task) {
            return None;
        }
        loop {
            let waiter = self.driver.tasks.get(task)?;
            let place = waiter.pending.iter().position(|pending| {
                !matches!(pending, Pending::Value(_)) && !self.is_held_back(task, pending)
            })?;
            let pending = self.waiter(task).pending.remove(place)?;
            match self.resumption(task, pending) {
                Some(Resumption::Raise(raise)) => return Some(raise),
                Some(Resumption::Value(value)) => {
                    self.waiter(task).pending.push_front(Pending::Value(value));
                }
                None => {}
            }
        }
    }

    /// What a task is to raise or be given next, if anything.
    #[inline]
    pub fn take_resumption(&mut self, task: TaskId) -> Option<Resumption> {
        loop {
            let waiter = self.waiter(task);
            if waiter.closed_by != NIL {
                return Some(Resumption::Raise(Raise::Exception(waiter.closed_by)));
            }
            let pending = if waiter.rare.is_none() {
                waiter.pending.pop_front()?
            } else {
                self.take_let_through(task)?
            };
            let resumption = self.resumption(task, pending);
            if resumption.is_some() {
                return resumption;
            }
        }
    }

    /// Takes the next of what a task is to raise or be given that no mask holds back.
    #[cold]
    fn take_let_through(&mut self, task: TaskId) -> Option<Pending> {
        let waiter = self.driver.tasks.get(task)?;
        let mut pending = waiter.pending.iter();
        let place = pending.position(|pending| !self.is_held_back(task, pending))?;
        self.waiter(task).pending.remove(place)
    }

    /// Whether a task waits, or is about to, in a finalizer or a handler, where it pays no heed to what it is to raise.
    pub fn is_aside(&mut self, task: TaskId) -> bool {
        let waiter = self.waiter(task);
        if !waiter.aside && waiter.is_to_raise() {
            // SAFETY: called by the fiber of the task.
            let aside = unsafe { interrupts::runs_aside() };
            self.waiter(task).aside = aside;
        }
        self.waiter(task).aside
    }

    /// Forgets the values a task was given: they were for a wait that has ended by itself.
    pub fn drop_values(&mut self, task: TaskId) {
        let pending = &mut self.waiter(task).pending;
        pending.retain(|pending| !matches!(pending, Pending::Value(_)));
    }

    /// `None` for a timeout whose block has ended.
    fn resumption(&mut self, task: TaskId, pending: Pending) -> Option<Resumption> {
        match pending {
            Pending::Exception(exception) => Some(Resumption::Raise(Raise::Exception(exception))),
            Pending::Value(value) => Some(Resumption::Value(value)),
            Pending::Unwind => Some(Resumption::Raise(Raise::Unwind)),
            Pending::Timeout(key) => {
                let timeout = self.timeouts.get(key)?;
                if timeout.is_value {
                    return Some(Resumption::Value(timeout.exception));
                }
                let raise = self.make_timeout(key)?;
                if let Raise::Exception(exception) = raise {
                    self.waiter(task).rare().taken = Some((exception, key));
                }
                Some(Resumption::Raise(raise))
            }
        }
    }

    /// Makes the exception of a timeout; `None` if its block has ended.
    pub fn make_timeout(&mut self, key: Key) -> Option<Raise> {
        let timeout = self.timeouts.get(key)?;
        let arguments = [timeout.exception, timeout.message];
        let count = if timeout.message == ruby::UNDEF { 1 } else { 2 };
        // SAFETY: the arguments live on this frame; nothing here needs dropping.
        let made = unsafe { ruby::protect(|| ruby::rb_make_exception(count, arguments.as_ptr())) };
        Some(match made {
            Ok(exception) => {
                if let Some(timeout) = self.timeouts.get_mut(key) {
                    timeout.made = exception;
                }
                Raise::Exception(exception)
            }
            Err(state) => Raise::Jump(state),
        })
    }

    /// Wakes the thread if it sleeps. Called with the GVL by whoever made something ready.
    #[inline]
    pub fn notify(&self) {
        if self.asleep {
            if let Some(waker) = self.driver.waker() {
                waker.wake();
            }
        }
    }

    /// Arms a timer for a running `timeout_after`.
    pub fn arm_timeout(&mut self, key: Key, seconds_from_now: u64) -> Key {
        self.driver.timers.arm(
            clock::now().saturating_add(seconds_from_now),
            Timer::Own(key),
        )
    }

    /// Marks every Ruby object the machine refers to, pinned: the table is keyed by address.
    pub fn mark(&self) {
        let mark = |value: VALUE| {
            // SAFETY: called by the collector, with values that are alive or immediate.
            unsafe { rb_sys::rb_gc_mark(value) };
        };
        self.descriptors.collected();
        mark(self.starting);
        for (_, _, waiter) in self.driver.tasks.iter() {
            mark(waiter.fiber);
            mark(waiter.unblocked_by);
            mark(waiter.held);
            mark(waiter.closed_by);
            if let Some(rare) = &waiter.rare {
                rare.masks.iter().copied().for_each(mark);
            }
            waiter
                .pending
                .iter()
                .filter_map(Pending::object)
                .for_each(mark);
        }
        for (_, held) in self.lending.holds.iter() {
            held.iter().for_each(|object| mark(*object));
        }
        for lost in &self.lost {
            mark(lost.io);
            mark(lost.exception);
        }
        for (_, timeout) in self.timeouts.iter() {
            mark(timeout.fiber);
            mark(timeout.exception);
            mark(timeout.made);
            if timeout.message != ruby::UNDEF {
                mark(timeout.message);
            }
        }
        for (fiber, pending) in &self.raises {
            mark(*fiber);
            pending.object().map(mark);
        }
        if let Some(Raise::Exception(exception)) = self.late {
            mark(exception);
        }
        mark(self.thread);
        mark(self.ractor);
        mark(self.home);
    }
}
