//! One thread's machine with Ruby's fibers on it: whose fiber is which task, and what waits to be
//! raised in whom.
#![deny(unsafe_code)]

pub mod ages;
pub mod caller;
pub mod child;
pub mod closing;
pub mod discards;
pub mod ending;
pub mod fibers;
pub mod handover;
pub mod hints;
pub mod inflow;
pub mod interrupts;
pub mod line;
pub mod looping;
pub mod multishot;
pub mod operate;
pub mod owner;
pub mod pending;
pub mod poll;
pub mod positions;
pub mod receive;
pub mod registry;
pub mod report;
pub mod snapshot;
pub mod splice;
pub mod spun;
pub mod step_back;
pub mod switch;
pub mod task;
pub mod thread_call;
pub mod trace;
pub mod turn;
pub mod wait;
pub mod write_all;

use std::cell::{Cell, RefCell, RefMut};
use std::os::fd::RawFd;
use std::sync::{Arc, Weak};

use uringmachine_runtime::by_descriptor::ByDescriptor;
use uringmachine_runtime::slab::{Key, Slab};
use uringmachine_runtime::{clock, Driver, OpKey, TaskId};

use crate::lending::{self, Lender, Lending};
use crate::os::per_process;
use crate::ruby::gvl::Gvl;
use crate::ruby::{self, fiber, Raise, Value, NIL, UNDEF};

use ages::Ages;
use closing::{Lost, Waits};
use discards::{Discarded, Discards};
use fibers::Fibers;
use hints::Descriptors;
use inflow::Reading;
pub use pending::{Pending, Resumption, Timeout};
use splice::Pipes;
pub use task::Waiter;
use trace::Trace;
use turn::Turns;

/// What profile mode counts.
#[derive(Clone, Copy, Debug)]
pub struct Profile {
    /// When it was turned on, in nanoseconds of CPU time of this thread.
    pub cpu_start: u64,
    /// The same, by the clock.
    pub since: u64,
    /// Nanoseconds in the kernel's wait.
    pub waited: u64,
    /// When the wait began that is not over.
    pub asleep_since: Option<u64>,
}

impl Profile {
    /// The kernel's wait is over.
    pub fn wakes(&mut self) {
        if let Some(since) = self.asleep_since.take() {
            self.waited += clock::now() - since;
        }
    }

    /// Nanoseconds since it was turned on, and how many of them were in the kernel's wait.
    pub fn times(&self) -> (u64, u64) {
        let now = clock::now();
        let asleep = self
            .asleep_since
            .map_or(0, |since| now.saturating_sub(since));
        (now.saturating_sub(self.since), self.waited + asleep)
    }
}

/// The machine of one thread, with its fibers. Used with Ruby's lock only.
///
/// What it consists of is borrowed for as long as a step takes: never across a switch to another fiber, and never while
/// Ruby is called that may allocate, since the collector looks at it then ([`Machine::mark`]) and others may come in.
pub struct Machine {
    parts: Gvl<RefCell<Parts>>,
    /// The UM that owns it: it does not keep that.
    object: Gvl<Cell<Value>>,
    /// The thread that it belongs to, `NIL` before its first use.
    thread: Gvl<Cell<Value>>,
    /// The Ractor of the thread: others have a lock of their own.
    ractor: Gvl<Cell<Value>>,
    forks: u32,
    /// The thread sleeps without the lock.
    asleep: Gvl<Cell<bool>>,
    itself: Weak<Self>,
}

/// What a machine consists of.
pub struct Parts {
    /// The ring, and the tasks, operations and timers on it.
    pub driver: Driver<Waiter>,
    /// Whose fiber is which task.
    pub fibers: Fibers,
    /// Whose turn it is.
    pub turns: Turns,
    /// What is remembered of descriptors.
    pub descriptors: Descriptors,
    /// What is known of reading from each descriptor, and has come from it.
    pub reading: ByDescriptor<Reading>,
    /// The memory that it lends to the kernel.
    pub lending: Lending,
    /// Who waits for which descriptor.
    pub waits: Waits,
    /// What the next operation of a task on an IO is to raise.
    pub lost: Vec<Lost>,
    /// The descriptors that fibers close once what was to be written is.
    pub to_be_closed: Vec<RawFd>,
    pub timeouts: Slab<Timeout>,
    /// What is to be raised in fibers that do not wait in this machine: `Fiber#raise` does it.
    pub raises: Vec<(Value, Pending)>,
    /// The block of the fiber that is being started, until it runs.
    pub starting: Value,
    /// How many operations worked on registered buffers.
    pub fixed: u64,
    /// What nobody wants any more, to be given up by the machine's own thread.
    pub discards: Discards,
    /// Pipes between ends of a splice that are none.
    pub pipes: Pipes,
    /// Nanoseconds asleep and their start, counted in profile mode.
    pub profile: Option<Profile>,
    /// What is noted, while somebody takes a trace.
    pub trace: Option<Box<Trace>>,
    /// When waits began, as far as somebody has looked.
    pub ages: Ages,
    /// The fibers are being unwound, since the thread ends or was interrupted.
    pub ending: bool,
    /// What interrupted that: raised when it is over.
    pub late: Option<Raise>,
}

impl Lender for Machine {
    #[inline]
    fn registered_index(&self, pointer: *const u8, length: usize) -> Option<u16> {
        self.parts().driver.registered_index(pointer, length)
    }

    fn is_over(&self, op: OpKey) -> bool {
        self.parts().driver.is_over(op)
    }

    #[inline]
    fn is_forked(&self) -> bool {
        Machine::is_forked(self)
    }

    #[inline]
    fn lending(&self) -> RefMut<'_, Lending> {
        RefMut::map(self.parts(), |parts| &mut parts.lending)
    }
}

impl Machine {
    /// A machine on a driver, of the UM `object`.
    pub fn new(driver: Driver<Waiter>, object: Value) -> Arc<Self> {
        let parts = Parts {
            driver,
            fibers: Fibers::default(),
            turns: Turns::default(),
            descriptors: Descriptors::default(),
            reading: ByDescriptor::default(),
            lending: Lending::default(),
            waits: Waits::default(),
            lost: Vec::new(),
            to_be_closed: Vec::new(),
            timeouts: Slab::default(),
            raises: Vec::new(),
            starting: NIL,
            fixed: 0,
            discards: Discards::default(),
            pipes: Pipes::default(),
            profile: None,
            trace: None,
            ages: Ages::default(),
            ending: false,
            late: None,
        };
        Arc::new_cyclic(|itself| Self {
            parts: Gvl::new(RefCell::new(parts)),
            object: Gvl::new(Cell::new(object)),
            thread: Gvl::new(Cell::new(NIL)),
            ractor: Gvl::new(Cell::new(NIL)),
            forks: per_process::so_far(),
            asleep: Gvl::new(Cell::new(false)),
            itself: Weak::clone(itself),
        })
    }

    /// What it consists of, for a step: see [`Machine`].
    #[inline]
    pub fn parts(&self) -> RefMut<'_, Parts> {
        self.parts.borrow_mut()
    }

    /// Another hold on it.
    pub fn share(&self) -> Arc<Self> {
        self.itself
            .upgrade()
            .expect("a machine that is used is held")
    }

    /// The UM that owns it.
    pub fn object(&self) -> Value {
        self.object.get()
    }

    /// The collector has moved the UM.
    pub fn set_object(&self, object: Value) {
        self.object.set(object);
    }

    /// Whether this process is a child of the one that made the machine.
    #[inline]
    pub fn is_forked(&self) -> bool {
        self.forks != per_process::so_far()
    }

    /// Leaves the parent's machine to the parent: in a child of fork. Its descriptors are closed, its fibers
    /// are kept no more, and none goes on; what its operations have locked is the child's to use. The records
    /// stay, for a fiber that is unwound all the same.
    pub fn forsake(&self) {
        self.parts().driver.forsake();
        self.unlock_held();
        let mut parts = self.parts();
        for waiter in parts.driver.tasks.iter_mut() {
            waiter.forsake();
        }
        parts.fibers.forsake();
        parts.timeouts = Slab::default();
        parts.raises = Vec::new();
        parts.descriptors = Descriptors::default();
        parts.reading = ByDescriptor::default();
        parts.lending.forsake();
        parts.lost = Vec::new();
        parts.trace = None;
    }

    /// Unlocks what operations have locked that nobody will take the result of. What a UM has kept that is dead, and has not been
    /// freed yet, may be gone.
    pub fn unlock_held(&self) {
        if ruby::is_garbage(self.object()) {
            return;
        }
        let held: Vec<Value> = {
            let parts = self.parts();
            parts.lending.holds.iter().map(|(_, held)| *held).collect()
        };
        held.into_iter().for_each(lending::take_over);
    }

    /// Whether anything can be done with the machine: it is this process's, and not closed.
    pub fn is_usable(&self) -> bool {
        !self.is_forked() && !self.parts().driver.is_closed()
    }

    /// The thread the machine belongs to, `NIL` before its first use.
    #[inline]
    pub fn thread(&self) -> Value {
        self.thread.get()
    }

    /// The Ractor the machine belongs to, `NIL` before its first use.
    #[inline]
    pub fn ractor(&self) -> Value {
        self.ractor.get()
    }

    /// Whether the thread that runs is the one that the machine belongs to, in the process that made it.
    #[inline]
    pub fn is_own(&self) -> bool {
        self.thread() == fiber::current_thread() && !self.is_forked()
    }

    /// Whether another thread than the one that runs has taken it.
    pub fn is_anothers(&self) -> bool {
        self.thread() != NIL && self.thread() != fiber::current_thread()
    }

    /// Whether nobody runs the machine's fibers any more: its thread has ended, or is the parent's.
    pub fn is_abandoned(&self) -> bool {
        self.is_forked()
            || (self.thread() != fiber::current_thread() && !fiber::is_thread_alive(self.thread()))
    }

    /// Binds the machine to a thread, the one that runs, at its first use.
    pub fn bind(&self, thread: Value) -> Result<(), Raise> {
        let enabled = self.parts().driver.enable();
        enabled.map_err(|error| Raise::of(&error, libc::EINVAL))?;
        self.thread.set(thread);
        self.ractor.set(fiber::current_ractor());
        Ok(())
    }

    /// Whether to look at the ring at every switch.
    pub fn set_eager(&self, eager: bool) {
        self.parts().turns.set_eager(eager);
    }

    /// Submits and reaps without waiting, and fires timers.
    pub fn poll(&self) {
        let mut parts = self.parts();
        if parts.discards.any() {
            drop(parts);
            self.give_up_discarded();
            parts = self.parts();
        }
        parts.turns.has_polled();
        // What enter refuses now it refuses again when the machine has to sleep, where it is raised.
        let _ = parts.driver.poll();
        let (has_lent, has_expired) = (!parts.lending.loans.is_empty(), parts.driver.has_expired());
        drop(parts);
        if has_lent {
            lending::take_back(self);
        }
        if has_expired {
            self.expire_timeouts();
        }
    }

    /// Gives up what the owners of are gone.
    #[cold]
    pub fn give_up_discarded(&self) {
        let discarded = self.parts().discards.take();
        for discarded in discarded {
            match discarded {
                Discarded::Flow(flow) => flow.let_go(self),
                Discarded::Buffers(region) => self.parts().driver.unregister_buffers(region),
            }
        }
    }

    /// Wakes the thread if it sleeps; says whether it does. Called with the lock by whoever made something ready.
    #[inline]
    pub fn notify(&self) -> bool {
        let asleep = self.asleep.get();
        if asleep {
            if let Some(waker) = self.parts().driver.waker() {
                waker.wake();
            }
        }
        asleep
    }

    /// Whether the thread sleeps in the kernel, with nothing to run.
    pub fn is_asleep(&self) -> bool {
        self.asleep.get()
    }

    /// Notes whether the thread sleeps.
    #[inline]
    pub fn set_asleep(&self, asleep: bool) {
        self.asleep.set(asleep);
    }

    /// Looks at the parts while the collector runs: where they are borrowed, Ruby is not called that could run it, and the
    /// lock is held, so that nobody changes them.
    #[allow(unsafe_code)]
    fn with_unborrowed<T>(&self, look: impl FnOnce(&Parts) -> T) -> T {
        // SAFETY: as above.
        look(unsafe { &*self.parts.as_ptr() })
    }

    /// Marks every Ruby object the machine refers to, pinned: the table of fibers is keyed by address.
    pub fn mark(&self) {
        self.with_unborrowed(Parts::mark);
        ruby::mark_all(&[self.thread(), self.ractor()]);
    }
}

impl Parts {
    /// The payload of a task that must be there.
    #[inline]
    pub fn waiter(&mut self, task: TaskId) -> &mut Waiter {
        self.driver
            .tasks
            .get_mut(task)
            .expect("a task that waits is in the table")
    }

    /// The thread is about to sleep.
    fn falls_asleep(&mut self) {
        if let Some(profile) = &mut self.profile {
            profile.asleep_since = Some(clock::now());
        }
        if let Some(trace) = &mut self.trace {
            trace.falls_asleep();
        }
    }

    /// It sleeps no more.
    fn wakes(&mut self) {
        if let Some(profile) = &mut self.profile {
            profile.wakes();
        }
        if let Some(trace) = &mut self.trace {
            trace.wakes();
        }
    }

    fn mark(&self) {
        self.descriptors.collected();
        ruby::mark(self.starting);
        for (_, _, waiter) in self.driver.tasks.iter() {
            waiter.mark();
        }
        for (_, held) in self.lending.holds.iter() {
            ruby::mark(*held);
        }
        for lost in &self.lost {
            ruby::mark_all(&[lost.io]);
            if let closing::Ending::Raises(exception) = lost.ending {
                ruby::mark_all(&[exception]);
            }
        }
        for (_, timeout) in self.timeouts.iter() {
            ruby::mark_all(&[timeout.fiber, timeout.exception, timeout.made]);
            if timeout.message != UNDEF {
                ruby::mark(timeout.message);
            }
        }
        for (fiber, pending) in &self.raises {
            ruby::mark(*fiber);
            ruby::mark(pending.object().unwrap_or(NIL));
        }
        if let Some(Raise::Exception(exception)) = self.late {
            ruby::mark(exception);
        }
        ruby::mark_all(&[self.fibers.home, self.fibers.looping()]);
        if let Some(trace) = &self.trace {
            trace.mark();
        }
    }
}

/// The key of nothing: no slab is as large.
pub const NOBODY: Key = Key {
    index: u32::MAX,
    generation: 0,
};
