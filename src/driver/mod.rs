//! One driver: ring, operations, tasks, timers and waker of one thread.

use std::io;
use std::os::fd::RawFd;

use crate::error::SetupError;
use crate::features::Features;
use crate::in_flight::{InFlight, Known};
use crate::lines::Lines;
use crate::operation::{name_of, OpKey, CODES};
use crate::provided_buffers::ProvidedBuffers;
use crate::registered_buffers::RegisteredBuffers;
use crate::registered_files::RegisteredFiles;
use crate::ring::Ring;
use crate::slab::Key;
use crate::tasks::{Tasks, WaitId};
use crate::timers::Timers;
use crate::waker::Waker;

mod registered;
mod sleep;
mod submit;
mod turns;

pub use sleep::Sleep;

/// `user_data` of the poll on the waker's eventfd. No operation has it: the slab would have to be
/// full.
const WAKER: u64 = u64::MAX;
/// `user_data` of entries whose completion nobody wants to see: cancels.
const NOBODY: u64 = u64::MAX - 1;

/// What a timer does when it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Timer {
    /// It ends a wait.
    Wait(WaitId),
    /// It is the embedder's own: [`Driver::take_expired`] hands it out.
    Own(Key),
}

/// What of a driver holds descriptors.
struct Kernel {
    ring: Ring,
    waker: Waker,
    features: Features,
    /// After the ring: the kernel takes from the buffers until the ring is closed.
    provided: Option<ProvidedBuffers>,
    registered: RegisteredBuffers,
    files: RegisteredFiles,
}

/// What a driver has done and has at hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Operations submitted since the start.
    pub operations: u64,
    /// Sleeps in the kernel since the start.
    pub sleeps: u64,
    /// Calls of io_uring_enter since the start.
    pub enters: u64,
    /// Operations the kernel has.
    pub in_flight: usize,
    /// Of those, the ones nobody waits for.
    pub orphans: usize,
    /// Entries not submitted yet.
    pub unsubmitted: usize,
    /// Records of operations kept for reuse.
    pub free: usize,
    /// Provided buffers.
    pub buffers: usize,
    /// Their bytes.
    pub buffer_space: usize,
}

/// Everything that one thread needs to run tasks on io_uring. `T` is the payload of a task.
pub struct Driver<T> {
    /// The kernel's side: gone once the driver is closed.
    kernel: Option<Kernel>,
    in_flight: InFlight,
    lines: Lines,
    waker_polled: bool,
    expired: Vec<Key>,
    /// How many operations were submitted, by their code.
    submitted: [u64; CODES],
    sleeps: u64,
    /// Calls of io_uring_enter that were no sleeps: the driver's, and, as far as is known, the ring's own.
    entered: u64,
    flushes: u64,
    /// The tasks and the run queue.
    pub tasks: Tasks<T>,
    /// The deadlines.
    pub timers: Timers<Timer>,
}

impl<T> Driver<T> {
    /// Sets the ring up; [`Driver::enable`] binds it to a thread. With `sqpoll` a thread of the
    /// kernel submits, and goes to sleep after that many idle milliseconds.
    pub fn new(entries: u32, mask: Features, sqpoll: Option<u32>) -> Result<Self, SetupError> {
        let ring = Ring::new(entries, mask, sqpoll)?;
        let waker = Waker::new().map_err(|error| {
            SetupError::from_errno(error.raw_os_error().unwrap_or(libc::EMFILE), entries)
        })?;
        Ok(Self {
            kernel: Some(Kernel {
                features: ring.features(),
                ring,
                waker,
                provided: None,
                registered: RegisteredBuffers::default(),
                files: RegisteredFiles::default(),
            }),
            in_flight: InFlight::default(),
            lines: Lines::default(),
            waker_polled: false,
            expired: Vec::new(),
            submitted: [0; CODES],
            sleeps: 0,
            entered: 0,
            flushes: 0,
            tasks: Tasks::default(),
            timers: Timers::default(),
        })
    }

    /// Binds the driver to the calling thread.
    pub fn enable(&mut self) -> io::Result<()> {
        self.ring()?.enable()
    }

    /// What may be used on this kernel.
    #[inline]
    pub fn features(&self) -> Features {
        self.kernel
            .as_ref()
            .map_or(Features::ALL, |kernel| kernel.features)
    }

    /// A handle to wake the driver by; `None` once it is closed.
    #[inline]
    pub fn waker(&self) -> Option<&Waker> {
        self.kernel.as_ref().map(|kernel| &kernel.waker)
    }

    /// The ring, or EBADF once the driver is closed.
    #[inline]
    pub(super) fn ring(&mut self) -> io::Result<&mut Ring> {
        Self::ring_of(&mut self.kernel)
    }

    #[inline]
    fn ring_of(kernel: &mut Option<Kernel>) -> io::Result<&mut Ring> {
        match kernel {
            Some(kernel) => Ok(&mut kernel.ring),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// See [`Ring::enter`].
    #[inline]
    pub(super) fn enter(&mut self, want: u32, timeout: Option<u64>) -> io::Result<()> {
        self.entered += 1;
        self.ring()?.enter(want, timeout)
    }

    /// Whether [`Driver::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.kernel.is_none()
    }

    /// Gives the ring and the eventfd back. Every operation must be over: see
    /// [`Driver::shut_down`].
    pub fn close(&mut self) {
        self.kernel = None;
    }

    /// Leaves the ring to the process that made it: for a child of fork, in which the ring is not mapped,
    /// and whose own mappings may lie where it was. Its copies of the descriptors are closed. No task goes
    /// on by itself from now on.
    pub fn forsake(&mut self) {
        if let Some(kernel) = self.kernel.take() {
            kernel.ring.forsake();
            kernel.waker.forsake();
        }
        self.tasks.forget_ready();
        self.timers = Timers::default();
        self.expired = Vec::new();
        self.lines = Lines::default();
    }

    /// Closes the ring and keeps its memory for ever: for one that the kernel may still write to.
    pub fn leak(&mut self) {
        if let Some(kernel) = self.kernel.take() {
            kernel.ring.forsake();
            std::mem::forget(kernel.provided);
            std::mem::forget(kernel.registered);
        }
    }

    /// What the driver has done and has at hand. While it sleeps nobody else looks at its ring, all of whose entries are
    /// submitted then.
    pub fn counts(&mut self, sleeps: bool) -> Counts {
        let unsubmitted = match &mut self.kernel {
            Some(kernel) if !sleeps => {
                self.flushes = kernel.ring.flushes();
                kernel.ring.unsubmitted()
            }
            _ => 0,
        };
        let buffers = self
            .kernel
            .as_ref()
            .and_then(|kernel| kernel.provided.as_ref());
        Counts {
            operations: self.submitted.iter().sum(),
            sleeps: self.sleeps,
            enters: self.sleeps + self.entered + self.flushes,
            in_flight: self.in_flight.count(),
            orphans: self.in_flight.orphans(),
            free: self.in_flight.free(),
            buffers: buffers.map_or(0, ProvidedBuffers::count),
            buffer_space: buffers.map_or(0, ProvidedBuffers::space),
            unsubmitted,
        }
    }

    /// The operations submitted since the start, by name. What are two to the kernel may have one name.
    pub fn submitted(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let counted = self.submitted.iter().enumerate();
        counted
            .filter(|(_, count)| **count > 0)
            .map(|(code, count)| (name_of(code as u8), *count))
    }

    /// What an operation is called, and its descriptor, or a negative number.
    pub fn operation(&self, op: OpKey) -> Option<(&'static str, RawFd)> {
        self.in_flight.named(op)
    }

    /// The result of an operation that is over, and stays to be taken.
    pub fn result(&self, op: OpKey) -> Option<i32> {
        self.in_flight.result(op)
    }

    /// The operations that the kernel has.
    pub fn known_operations(&self) -> impl Iterator<Item = Known> + '_ {
        self.in_flight.known()
    }

    /// How many operations the kernel has, or has ended without anybody taking the result.
    pub fn operations(&self) -> usize {
        self.in_flight.len()
    }

    /// Drops the records of operations that are over, with what they have brought: nobody will look.
    pub fn drop_results(&mut self) {
        for fd in self.in_flight.take_opened() {
            // SAFETY: nobody has been given the descriptor.
            unsafe { libc::close(fd) };
        }
        if self.is_quiet() {
            self.in_flight = InFlight::default();
        }
    }

    /// Whether the kernel has given everything back.
    pub fn is_quiet(&self) -> bool {
        self.in_flight.count() == 0
    }

    /// Whether nothing is to be done: the kernel has given everything back, and no work waits for its turn.
    pub fn is_at_rest(&self) -> bool {
        self.is_quiet() && self.lines.works() == 0
    }

    /// Gives up the work that nobody waits for and that has not begun; what was to be closed is.
    pub fn give_up_work(&mut self) {
        for fd in self.lines.give_up() {
            // SAFETY: the driver was given the descriptor to close.
            unsafe { libc::close(fd) };
        }
    }

    /// Whether the kernel has operations that may work on memory the driver does not own.
    pub fn has_waited_operations(&self) -> bool {
        self.in_flight.any_on_others_memory()
    }
}
