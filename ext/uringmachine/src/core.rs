//! One thread's machine with Ruby's fibers on it: whose fiber is which task, and what waits to be
//! raised in whom.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::atomic::{AtomicU32, Ordering};

use uringmachine_runtime::machine::Timer;
use uringmachine_runtime::slab::{Key, Slab};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{clock, Machine, TaskId, Wake};

use crate::descriptors::Descriptors;
use crate::sys::{self, Raise, FALSE, NIL, VALUE};

/// Counts the forks of this process: a machine made before a fork is not the child's.
static FORKS: AtomicU32 = AtomicU32::new(0);

/// Has the count kept. Called once, when the extension is loaded.
pub fn count_forks() {
    extern "C" fn forked() {
        FORKS.fetch_add(1, Ordering::Relaxed);
    }
    // SAFETY: the handler is async-signal-safe: one atomic addition.
    unsafe { libc::pthread_atfork(None, None, Some(forked)) };
}

/// How many switches may pass before the machine looks at the ring although fibers are runnable.
const SWITCHES_PER_POLL: u32 = 64;

/// What a fiber is to raise when its wait ends by [`Wake::Interrupt`].
#[derive(Clone, Copy, Debug)]
pub enum Pending {
    /// This exception.
    Exception(VALUE),
    /// That of a `timeout_after`, made when it is raised.
    Timeout(Key),
}

/// The payload of a task: a fiber, and how it stands.
#[derive(Debug)]
pub struct Waiter {
    pub fiber: VALUE,
    /// Started by the scheduler: it lives as long as its fiber.
    pub scheduled: bool,
    /// Why its last wait ended.
    pub woken: Wake,
    /// It waits for the kernel to give memory back: nothing may interrupt that.
    pub draining: bool,
    /// The wait may be ended by `unblock`.
    pub blocked: bool,
    /// An `unblock` that came before the `block` it was for.
    pub unblocked_by: VALUE,
    pub pending: Option<Pending>,
}

/// A running `timeout_after` block.
#[derive(Debug)]
pub struct Timeout {
    pub task: TaskId,
    pub fiber: VALUE,
    pub exception: VALUE,
    pub message: VALUE,
    pub fired: bool,
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
    pub machine: Machine<Waiter>,
    pub descriptors: Descriptors,
    pub timeouts: Slab<Timeout>,
    /// Exceptions for fibers that do not wait in this machine: `Fiber#raise` does it.
    pub raises: Vec<(VALUE, VALUE)>,
    /// The task that runs, as far as the machine knows.
    pub current: TaskId,
    /// The root fiber, while it is parked here.
    pub root: Option<TaskId>,
    /// The thread sleeps without the GVL.
    pub asleep: bool,
    by_fiber: ByFiber,
    /// The task of an unscheduled fiber that waited last: kept, since it likely waits again.
    kept: Option<TaskId>,
    thread: VALUE,
    forks: u32,
    countdown: u32,
}

impl Core {
    pub fn new(machine: Machine<Waiter>) -> Self {
        Self {
            machine,
            descriptors: Descriptors::default(),
            timeouts: Slab::default(),
            raises: Vec::new(),
            current: Key {
                index: u32::MAX,
                generation: 0,
            },
            root: None,
            asleep: false,
            by_fiber: ByFiber::default(),
            kept: None,
            thread: NIL,
            forks: FORKS.load(Ordering::Relaxed),
            countdown: SWITCHES_PER_POLL,
        }
    }

    /// Whether this process is a child of the one that made the machine.
    #[inline]
    pub fn is_forked(&self) -> bool {
        self.forks != FORKS.load(Ordering::Relaxed)
    }

    /// The thread the machine belongs to, `NIL` before its first use.
    #[inline]
    pub fn thread(&self) -> VALUE {
        self.thread
    }

    /// Binds the machine to the current thread at its first use.
    pub fn bind(&mut self, thread: VALUE) -> Result<(), Raise> {
        self.machine
            .enable()
            .map_err(|error| Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)))?;
        self.thread = thread;
        Ok(())
    }

    /// The task of the fiber that runs.
    #[inline]
    pub fn current_task(&mut self) -> TaskId {
        // SAFETY: a plain accessor.
        let fiber = unsafe { sys::rb_fiber_current() };
        if let Some(waiter) = self.machine.tasks.get(self.current) {
            if waiter.fiber == fiber {
                return self.current;
            }
        }
        let task = self.task_of(fiber);
        self.current = task;
        task
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
        let task = self.machine.tasks.add(Waiter {
            fiber,
            scheduled,
            woken: Wake::Complete,
            draining: false,
            blocked: false,
            unblocked_by: FALSE,
            pending: None,
        });
        self.by_fiber.insert(fiber, task);
        task
    }

    pub fn remove(&mut self, task: TaskId) {
        if let Some(waiter) = self.machine.tasks.remove(task) {
            self.by_fiber.remove(&waiter.fiber);
        }
    }

    /// The payload of a task that must be there.
    #[inline]
    pub fn waiter(&mut self, task: TaskId) -> &mut Waiter {
        self.machine
            .tasks
            .get_mut(task)
            .expect("a task that waits is in the table")
    }

    /// Ends a wait. The task of an unscheduled fiber goes when another takes its place.
    #[inline]
    pub fn finish_wait(&mut self, task: TaskId) {
        self.machine.tasks.end_wait(task);
        let waiter = self.waiter(task);
        waiter.blocked = false;
        if waiter.scheduled || self.kept == Some(task) {
            return;
        }
        if let Some(other) = self.kept.replace(task) {
            let in_use = self.root == Some(other);
            if !in_use && self.machine.tasks.state(other) == Some(State::Running) {
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
        self.machine.tasks.next_ready()
    }

    /// Submits and reaps without waiting, and fires timers.
    pub fn poll(&mut self) {
        self.countdown = SWITCHES_PER_POLL;
        // What enter refuses now it refuses again when the machine has to sleep, where it is raised.
        let _ = self.machine.poll();
        self.expire_timeouts();
    }

    /// Has the fibers raise whose timeouts have fired.
    pub fn expire_timeouts(&mut self) {
        while let Some(key) = self.machine.take_expired() {
            let Some(timeout) = self.timeouts.get_mut(key) else {
                continue;
            };
            timeout.fired = true;
            let (task, fiber) = (timeout.task, timeout.fiber);
            match self.machine.tasks.state(task) {
                Some(State::Waiting) => self.interrupt(task, Pending::Timeout(key)),
                // Its wait is over: it keeps the result and raises at its next wait, if it is then
                // still inside the block.
                Some(State::Ready(_)) => self.defer(task, Pending::Timeout(key)),
                // It waits somewhere else, in a fiber it has resumed.
                _ => self.raises.push((fiber, sys::fixnum(i64::from(key.index)))),
            }
        }
    }

    /// Ends a wait by something to raise; one that is draining, or over, raises at its next wait.
    pub fn interrupt(&mut self, task: TaskId, pending: Pending) {
        if self.waiter(task).draining {
            self.defer(task, pending);
            return;
        }
        if let Some(wait) = self.machine.tasks.current_wait(task) {
            if self.machine.tasks.wake(wait, Wake::Interrupt) {
                self.waiter(task).pending = Some(pending);
            }
        }
    }

    fn defer(&mut self, task: TaskId, pending: Pending) {
        let waiter = self.waiter(task);
        waiter.pending.get_or_insert(pending);
    }

    /// Makes the exception that a task is to raise now, if any.
    pub fn take_pending(&mut self, task: TaskId) -> Option<Raise> {
        let pending = self.waiter(task).pending.take()?;
        match pending {
            Pending::Exception(exception) => Some(Raise::Exception(exception)),
            Pending::Timeout(key) => {
                let timeout = self.timeouts.get(key)?;
                let arguments = [timeout.exception, timeout.message];
                let count = if timeout.message == sys::UNDEF { 1 } else { 2 };
                // SAFETY: the arguments live on this frame; nothing here needs dropping.
                let made =
                    unsafe { sys::protect(|| sys::rb_make_exception(count, arguments.as_ptr())) };
                Some(match made {
                    Ok(exception) => Raise::Exception(exception),
                    Err(state) => Raise::Jump(state),
                })
            }
        }
    }

    /// Wakes the thread if it sleeps. Called with the GVL by whoever made something ready.
    #[inline]
    pub fn notify(&self) {
        if self.asleep {
            if let Some(waker) = self.machine.waker() {
                waker.wake();
            }
        }
    }

    /// Arms a timer for a running `timeout_after`.
    pub fn arm_timeout(&mut self, key: Key, seconds_from_now: u64) -> Key {
        self.machine.timers.arm(
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
        for (_, _, waiter) in self.machine.tasks.iter() {
            mark(waiter.fiber);
            mark(waiter.unblocked_by);
            if let Some(Pending::Exception(exception)) = waiter.pending {
                mark(exception);
            }
        }
        for (_, timeout) in self.timeouts.iter() {
            mark(timeout.fiber);
            mark(timeout.exception);
            if timeout.message != sys::UNDEF {
                mark(timeout.message);
            }
        }
        for (fiber, exception) in &self.raises {
            mark(*fiber);
            mark(*exception);
        }
        mark(self.thread);
    }
}
