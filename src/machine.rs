//! One machine: ring, operations, tasks, timers and waker of one thread.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode, types};

use crate::buffer_ring::{BufferRing, GROUP};
use crate::clock;
use crate::error::SetupError;
use crate::features::Features;
use crate::fixed_buffers::{FixedBuffers, Mapping, RegionId};
use crate::fixed_files::FixedFiles;
use crate::lines::Lines;
use crate::ops::{self, descriptor_of, Completion, Effect, OpKey, Ops};
use crate::ring::Ring;
use crate::slab::Key;
use crate::stream::{Arrivals, Stream};
use crate::tasks::{Tasks, WaitId, Wake};
use crate::timers::{TimerKey, Timers};
use crate::waker::Waker;

mod turns;

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
    /// It is the embedder's own: [`Machine::take_expired`] hands it out.
    Own(Key),
}

/// A sleep of a machine: until something completes, a deadline has come, or the waker wakes.
pub struct Sleep {
    ring: *mut Ring,
    until: Option<u64>,
}

impl Sleep {
    /// Sleeps.
    ///
    /// # Safety
    /// The machine is alive, and nobody else uses its ring meanwhile: its tasks may be used.
    pub unsafe fn run(&self) -> io::Result<()> {
        if self.ring.is_null() {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        }
        let timeout = self
            .until
            .map(|deadline| deadline.saturating_sub(clock::now()));
        // SAFETY: the caller's promise.
        unsafe { (*self.ring).enter(1, timeout) }
    }
}

/// What of a machine holds descriptors.
struct Kernel {
    ring: Ring,
    waker: Waker,
    features: Features,
    /// After the ring: the kernel takes from the buffers until the ring is closed.
    buffers: Option<BufferRing>,
    fixed: FixedBuffers,
    files: FixedFiles,
}

/// What a machine has done and has at hand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    /// Operations submitted since the start.
    pub operations: u64,
    /// Sleeps in the kernel since the start.
    pub sleeps: u64,
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
pub struct Machine<T> {
    /// The kernel's side: gone once the machine is closed.
    kernel: Option<Kernel>,
    ops: Ops,
    lines: Lines,
    waker_polled: bool,
    expired: Vec<Key>,
    submitted: u64,
    sleeps: u64,
    /// The tasks and the run queue.
    pub tasks: Tasks<T>,
    /// The deadlines.
    pub timers: Timers<Timer>,
}

impl<T> Machine<T> {
    /// Sets the ring up; [`Machine::enable`] binds it to a thread. With `sqpoll` a thread of the
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
                buffers: None,
                fixed: FixedBuffers::default(),
                files: FixedFiles::default(),
            }),
            ops: Ops::default(),
            lines: Lines::default(),
            waker_polled: false,
            expired: Vec::new(),
            submitted: 0,
            sleeps: 0,
            tasks: Tasks::default(),
            timers: Timers::default(),
        })
    }

    /// Binds the machine to the calling thread.
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

    /// A handle to wake the machine by; `None` once it is closed.
    #[inline]
    pub fn waker(&self) -> Option<&Waker> {
        self.kernel.as_ref().map(|kernel| &kernel.waker)
    }

    /// The ring, or EBADF once the machine is closed.
    #[inline]
    fn ring(&mut self) -> io::Result<&mut Ring> {
        match &mut self.kernel {
            Some(kernel) => Ok(&mut kernel.ring),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// Whether [`Machine::close`] was called.
    pub fn is_closed(&self) -> bool {
        self.kernel.is_none()
    }

    /// Gives the ring and the eventfd back. Every operation must be over: see
    /// [`Machine::shut_down`].
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
            std::mem::forget(kernel.buffers);
            std::mem::forget(kernel.fixed);
        }
    }

    /// What the machine has done and has at hand.
    pub fn counts(&mut self) -> Counts {
        let buffers = self
            .kernel
            .as_ref()
            .and_then(|kernel| kernel.buffers.as_ref());
        Counts {
            operations: self.submitted,
            sleeps: self.sleeps,
            in_flight: self.ops.in_flight(),
            orphans: self.ops.orphans(),
            free: self.ops.free(),
            buffers: buffers.map_or(0, BufferRing::count),
            buffer_space: buffers.map_or(0, BufferRing::space),
            unsubmitted: self.ring().map_or(0, Ring::unsubmitted),
        }
    }

    /// How many operations the kernel has, or has ended without anybody taking the result.
    pub fn operations(&self) -> usize {
        self.ops.len()
    }

    /// Drops the records of operations that are over, with what they have brought: nobody will look.
    pub fn drop_results(&mut self) {
        for fd in self.ops.take_opened() {
            // SAFETY: nobody has been given the descriptor.
            unsafe { libc::close(fd) };
        }
        if self.is_quiet() {
            self.ops = Ops::default();
        }
    }

    /// Whether the kernel has given everything back.
    pub fn is_quiet(&self) -> bool {
        self.ops.in_flight() == 0
    }

    /// Whether nothing is to be done: the kernel has given everything back, and no work waits for its turn.
    pub fn is_at_rest(&self) -> bool {
        self.is_quiet() && self.lines.works() == 0
    }

    /// Gives up the work that nobody waits for and that has not begun; what was to be closed is.
    pub fn give_up_work(&mut self) {
        for fd in self.lines.give_up() {
            // SAFETY: the machine was given the descriptor to close.
            unsafe { libc::close(fd) };
        }
    }

    /// Whether the kernel has operations that may work on memory the machine does not own.
    pub fn has_waited_operations(&self) -> bool {
        self.ops.any_on_others_memory()
    }

    /// Queues an operation whose completion ends `wait`.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and unmoved until [`Machine::take`] has returned
    /// the operation's result.
    #[inline]
    pub unsafe fn submit(&mut self, entry: Entry, wait: WaitId) -> io::Result<OpKey> {
        let op = self.ops.start(wait, descriptor_of(&entry));
        if ops::opens(&entry) {
            self.ops.note_opening(op);
        }
        // SAFETY: the caller's promise.
        unsafe { self.push(op, entry) }
    }

    /// Queues an operation whose result nobody will want. The memory it works on, if any, is
    /// kept until the kernel is done with it.
    ///
    /// # Safety
    /// The entry points to nothing but `memory`.
    pub unsafe fn submit_orphan(
        &mut self,
        entry: Entry,
        memory: Option<Box<[u8]>>,
    ) -> io::Result<OpKey> {
        let op = self.ops.start_orphan(memory, descriptor_of(&entry));
        // SAFETY: the caller's promise.
        unsafe { self.push(op, entry) }
    }

    /// Starts a multishot operation. One that brings bytes must name the group of
    /// [`Machine::buffer_group`].
    pub fn start_stream(&mut self, entry: Entry, arrivals: Arrivals) -> io::Result<OpKey> {
        let op = (self.ops).start_stream(arrivals, descriptor_of(&entry));
        // SAFETY: a multishot operation points to no memory of its own.
        unsafe { self.push(op, entry) }
    }

    unsafe fn push(&mut self, op: OpKey, entry: Entry) -> io::Result<OpKey> {
        // SAFETY: the caller's promise.
        match unsafe { self.push_entry(op, entry) } {
            Ok(()) => Ok(op),
            Err(error) => {
                self.ops.forget(op);
                Err(error)
            }
        }
    }

    /// On an error the entry has not reached the queue, so the kernel does not have it.
    unsafe fn push_entry(&mut self, op: OpKey, entry: Entry) -> io::Result<()> {
        let entry = entry.user_data(op.to_bits());
        self.submitted += 1;
        match &mut self.kernel {
            // SAFETY: the caller's promise.
            Some(kernel) => unsafe { kernel.ring.push(&kernel.files.redirect(entry)) },
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
        }
    }

    /// The group of provided buffers, made at its first use.
    pub fn buffer_group(&mut self) -> io::Result<u16> {
        let Some(kernel) = &mut self.kernel else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        if kernel.buffers.is_none() {
            kernel.buffers = Some(kernel.ring.provide_buffers()?);
        }
        Ok(GROUP)
    }

    /// Registers `count` buffers of `size` bytes, a multiple of the page size, for fixed reads and writes;
    /// returns the region and its memory.
    pub fn register_buffers(
        &mut self,
        count: u32,
        size: usize,
    ) -> io::Result<(RegionId, Arc<Mapping>)> {
        let Some(kernel) = &mut self.kernel else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        kernel.fixed.register(kernel.ring.uring(), count, size)
    }

    /// Registers the file of a descriptor: operations on that descriptor use it from now on.
    pub fn register_file(&mut self, fd: RawFd) -> io::Result<()> {
        let Some(kernel) = &mut self.kernel else {
            return Err(io::Error::from_raw_os_error(libc::EBADF));
        };
        // What is queued means the slot as it is.
        kernel.ring.flush()?;
        kernel.files.release_abandoned(kernel.ring.uring());
        kernel.files.register(kernel.ring.uring(), fd)
    }

    /// Takes a registered file out of the ring; false if the descriptor has none.
    #[inline]
    pub fn unregister_file(&mut self, fd: RawFd) -> bool {
        match &mut self.kernel {
            Some(kernel) if kernel.files.has(fd) => {
                // As above. What the kernel does not take now fails with EBADF.
                let _ = kernel.ring.flush();
                kernel.files.unregister(kernel.ring.uring(), fd)
            }
            _ => false,
        }
    }

    /// Whether there is anything on a descriptor: an operation, work that nobody waits for, a registered file.
    pub fn uses(&self, fd: RawFd) -> bool {
        self.ops.any_on(fd)
            || self.lines.has_work(fd)
            || (self.kernel.as_ref()).is_some_and(|kernel| kernel.files.has(fd))
    }

    /// Forgets a registered file whose descriptor is about to be closed, by any thread: the ring lets go of it when
    /// its own thread polls. False if the descriptor has none.
    pub fn forget_file(&mut self, fd: RawFd) -> bool {
        match &mut self.kernel {
            Some(kernel) if kernel.files.has(fd) => kernel.files.abandon(fd),
            _ => false,
        }
    }

    /// Takes registered buffers out of the ring.
    pub fn unregister_buffers(&mut self, region: RegionId) {
        if let Some(kernel) = &mut self.kernel {
            kernel.fixed.unregister(kernel.ring.uring(), region);
        }
    }

    /// The index of the registered buffer that all of these bytes lie in.
    #[inline]
    pub fn fixed_index(&self, pointer: *const u8, length: usize) -> Option<u16> {
        let kernel = self.kernel.as_ref()?;
        if kernel.fixed.is_empty() {
            return None;
        }
        kernel.fixed.slot(pointer, length)
    }

    /// A stream that has not been discarded.
    #[inline]
    pub fn stream(&mut self, op: OpKey) -> Option<&mut Stream> {
        self.ops.stream(op)
    }

    /// Gives a stream up and cancels it: what it still brings is thrown away.
    pub fn discard_stream(&mut self, op: OpKey) -> io::Result<()> {
        if self.ops.discard_stream(op) {
            self.cancel(op)?;
        }
        Ok(())
    }

    /// Takes the result of an operation; `None` while the kernel has it.
    #[inline]
    pub fn take(&mut self, op: OpKey) -> Option<Completion> {
        self.ops.take(op)
    }

    /// Takes the result of an operation, though the kernel still has its memory: [`Machine::is_over`] says when
    /// it has given it back.
    pub fn take_early(&mut self, op: OpKey) -> Option<Completion> {
        self.ops.take_early(op)
    }

    /// Lets the completion of `op` end another wait.
    pub fn retarget(&mut self, op: OpKey, wait: WaitId) {
        self.ops.retarget(op, wait);
    }

    /// Asks the kernel to cancel an operation. The operation still ends by its own completion.
    pub fn cancel(&mut self, op: OpKey) -> io::Result<()> {
        let entry = opcode::AsyncCancel::new(op.to_bits())
            .build()
            .user_data(NOBODY);
        // SAFETY: a cancel points to nothing.
        unsafe { self.ring()?.push(&entry) }
    }

    /// Cancels an operation on no memory, such as a poll, whose result nobody wants.
    pub fn abandon(&mut self, op: OpKey) -> io::Result<()> {
        if self.ops.orphan(op) {
            self.cancel(op)?;
        }
        Ok(())
    }

    /// Arms a timer that ends `wait` at `deadline`.
    #[inline]
    pub fn wake_at(&mut self, deadline: u64, wait: WaitId) -> TimerKey {
        self.timers.arm(deadline, Timer::Wait(wait))
    }

    /// Submits and reaps without waiting, and fires the timers that are due.
    pub fn poll(&mut self) -> io::Result<()> {
        self.let_go_of_files()?;
        // Work goes on as long as it does so at once.
        const ROUNDS: usize = 16;
        for round in 0..ROUNDS {
            let ring = self.ring()?;
            if ring.wants_enter() {
                ring.enter(0, None)?;
            } else if round > 0 {
                break;
            }
            self.reap();
            if self.lines.works() == 0 {
                break;
            }
        }
        // The eventfd is polled only while the machine sleeps; one that never does looks here.
        if self.waker().is_some_and(Waker::has_completed) {
            self.take_handed_over();
        }
        self.fire();
        Ok(())
    }

    /// Has the ring let go of registered files that were forgotten. What is queued means them still.
    #[inline]
    fn let_go_of_files(&mut self) -> io::Result<()> {
        match &mut self.kernel {
            Some(kernel) if kernel.files.has_abandoned() => {
                kernel.ring.flush()?;
                kernel.files.release_abandoned(kernel.ring.uring());
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Whether [`Machine::poll`] could find anything without waiting, timers aside.
    #[inline]
    pub fn wants_poll(&mut self) -> bool {
        self.kernel.as_mut().is_some_and(|kernel| {
            kernel.ring.has_completions()
                || kernel.ring.wants_enter()
                || kernel.files.has_abandoned()
        })
    }

    /// Sees to it that another thread can end the coming sleep.
    pub fn prepare_sleep(&mut self) -> io::Result<()> {
        if !self.waker_polled {
            let Some(waker) = self.waker() else {
                return Err(io::Error::from_raw_os_error(libc::EBADF));
            };
            let entry = opcode::PollAdd::new(types::Fd(waker.fd()), libc::POLLIN as u32)
                .multi(true)
                .build()
                .user_data(WAKER);
            // SAFETY: a poll points to nothing.
            unsafe { self.ring()?.push(&entry) }?;
            self.waker_polled = true;
        }
        Ok(())
    }

    /// The coming sleep, as something that can be run while other threads use the machine's tasks.
    pub fn sleeper(&mut self, until: Option<u64>) -> Sleep {
        self.sleeps += 1;
        Sleep {
            ring: self.ring().map_or(std::ptr::null_mut(), std::ptr::from_mut),
            until,
        }
    }

    /// Sleeps until something completes, `until` has come, or the waker wakes; reaps nothing.
    pub fn sleep(&mut self, until: Option<u64>) -> io::Result<()> {
        // SAFETY: the machine is borrowed for the call.
        unsafe { self.sleeper(until).run() }
    }

    /// Moves completions to the waits they end. Returns how many there were.
    pub fn reap(&mut self) -> usize {
        let mut count = 0;
        while let Some(entry) = self.ring().ok().and_then(Ring::reap) {
            count += 1;
            match entry.user_data() {
                NOBODY => {}
                WAKER => self.woken(entry.flags()),
                bits => self.complete(Key::from_bits(bits), entry.result(), entry.flags()),
            }
        }
        count
    }

    #[inline]
    fn complete(&mut self, op: OpKey, result: i32, flags: u32) {
        let completion = Completion { result, flags };
        let mut buffers = match &mut self.kernel {
            Some(kernel) if cqueue::buffer_select(flags).is_some() => kernel.buffers.as_mut(),
            _ => None,
        };
        let bytes = buffers
            .as_ref()
            .map_or(&[][..], |buffers| buffers.bytes(result, flags));
        let effect = self.ops.complete(op, completion, bytes);
        if let Some(buffers) = &mut buffers {
            buffers.give_back(result, flags);
        }
        let wait = match effect {
            Effect::None => None,
            Effect::Wakes(wait) => Some(wait),
            Effect::Works => {
                self.worked(op, result);
                None
            }
            Effect::Floods(wait) => {
                // If it cannot be queued now, the stream is stopped when it brings more.
                if self.cancel(op).is_err() {
                    if let Some(stream) = self.ops.stream(op) {
                        stream.stopped = false;
                    }
                }
                wait
            }
        };
        if let Some(wait) = wait {
            self.tasks.wake(wait, Wake::Complete);
        }
    }

    fn woken(&mut self, flags: u32) {
        self.waker_polled = cqueue::more(flags);
        // Reset before taking: a hand-over after the take wakes again.
        let Some(waker) = self.waker() else { return };
        waker.reset();
        self.take_handed_over();
    }

    fn take_handed_over(&mut self) {
        let Some(waker) = self.waker() else { return };
        for wait in waker.take_completed() {
            self.tasks.wake(wait, Wake::Complete);
        }
    }

    /// Fires the timers that are due.
    pub fn fire(&mut self) {
        if self.timers.is_empty() {
            return;
        }
        let now = clock::now();
        while let Some(timer) = self.timers.expire(now) {
            match timer {
                Timer::Wait(wait) => {
                    self.tasks.wake(wait, Wake::Timeout);
                }
                Timer::Own(key) => self.expired.push(key),
            }
        }
    }

    /// Takes one of the embedder's own timers that have fired.
    #[inline]
    pub fn take_expired(&mut self) -> Option<Key> {
        self.expired.pop()
    }

    /// Waits, without running tasks, until the kernel has given `op` back, at most for `limit`
    /// nanoseconds; says whether it has. Cancelled polls and socket operations end at once; a file
    /// operation under way ends when the disk answers.
    pub fn drain(&mut self, op: OpKey, limit: u64) -> io::Result<bool> {
        let deadline = clock::now() + limit;
        loop {
            self.ring()?.enter(0, None)?;
            self.reap();
            if self.is_over(op) {
                return Ok(true);
            }
            let now = clock::now();
            if now >= deadline {
                return Ok(false);
            }
            self.ring()?.enter(1, Some(deadline - now))?;
            self.reap();
        }
    }

    /// Whether the kernel has given an operation back.
    pub fn is_over(&self, op: OpKey) -> bool {
        self.ops.is_over(op)
    }

    /// Cancels everything and waits at most `limit` nanoseconds; says whether the kernel has given
    /// everything back. If not, what it may write to must be leaked. Tasks go on no more. Work that nobody waits for
    /// may, for a tenth of that time; what was to be closed then is. Memory that it only reads, for a peer that takes its time
    /// ([`Machine::take_early`]), is waited for no longer either, and must be kept.
    pub fn shut_down(&mut self, limit: u64) -> bool {
        let start = clock::now();
        let deadline = start + limit;
        if let Some(kernel) = &mut self.kernel {
            // What is queued means the slots as they are.
            let _ = kernel.ring.flush();
            kernel.files.clear(kernel.ring.uring());
        }
        if self.lines.works() > 0 {
            self.end_turns();
            let until = start + limit / 10;
            self.wait_until(until, |machine| machine.lines.works() == 0);
            self.give_up_work();
        }
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any().all())
            .build()
            .user_data(NOBODY);
        // SAFETY: a cancel points to nothing.
        let pushed = self.ring().and_then(|ring| unsafe { ring.push(&entry) });
        if pushed.is_ok() {
            let ended = |machine: &Self| machine.ops.in_flight() == machine.ops.lent();
            self.wait_until(deadline, ended);
            let until = deadline.min(clock::now() + limit / 10);
            self.wait_until(until, |machine| !ended(machine) || machine.ops.lent() == 0);
        }
        self.ops.in_flight() == self.ops.lent()
    }

    /// Submits and reaps, and runs no task, until something is so, or `deadline` has come.
    fn wait_until(&mut self, deadline: u64, is_so: impl Fn(&Self) -> bool) {
        let mut wait = None;
        loop {
            let entered = self.ring().and_then(|ring| match wait {
                None => ring.enter(0, None),
                limit => ring.enter(1, limit),
            });
            self.reap();
            let now = clock::now();
            if entered.is_err() || is_so(self) || now >= deadline {
                return;
            }
            wait = (!self.ring().is_ok_and(|ring| ring.wants_enter())).then(|| deadline - now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::State;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;

    fn machine() -> Machine<()> {
        let mut machine = Machine::new(8, Features::from_environment(), None).unwrap();
        machine.enable().unwrap();
        machine
    }

    fn pipe() -> (std::io::PipeReader, std::io::PipeWriter) {
        std::io::pipe().unwrap()
    }

    fn poll_entry(fd: &impl AsRawFd) -> Entry {
        opcode::PollAdd::new(types::Fd(fd.as_raw_fd()), libc::POLLIN as u32).build()
    }

    #[test]
    fn a_completion_ends_the_wait_it_belongs_to() {
        let mut machine = machine();
        let (reader, mut writer) = pipe();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        // SAFETY: a poll points to nothing.
        let op = unsafe { machine.submit(poll_entry(&reader), wait) }.unwrap();
        machine.poll().unwrap();
        assert_eq!(machine.take(op), None);
        writer.write_all(b"x").unwrap();
        machine.sleep(None).unwrap();
        machine.reap();
        assert_eq!(machine.tasks.next_ready(), Some((task, Wake::Complete)));
        assert_eq!(machine.take(op).unwrap().result, i32::from(libc::POLLIN));
        assert_eq!(machine.operations(), 0);
    }

    #[test]
    fn a_cancelled_read_is_drained_before_its_memory_is_given_back() {
        let mut machine = machine();
        let (reader, mut writer) = pipe();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        let mut memory = [7u8; 8];
        let entry =
            opcode::Read::new(types::Fd(reader.as_raw_fd()), memory.as_mut_ptr(), 8).build();
        // SAFETY: `memory` outlives the drain below.
        let op = unsafe { machine.submit(entry, wait) }.unwrap();
        machine.poll().unwrap();
        machine.cancel(op).unwrap();
        assert!(machine.drain(op, u64::MAX / 2).unwrap());
        assert_eq!(machine.take(op).unwrap().result, -libc::ECANCELED);
        writer.write_all(b"late").unwrap();
        machine.poll().unwrap();
        assert_eq!(memory, [7; 8]);
        let mut late = [0; 4];
        (&reader).read_exact(&mut late).unwrap();
        assert_eq!(&late, b"late");
    }

    #[test]
    fn an_operation_that_won_the_race_keeps_its_result() {
        let mut machine = machine();
        let (reader, mut writer) = pipe();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        let mut memory = [0u8; 8];
        let entry =
            opcode::Read::new(types::Fd(reader.as_raw_fd()), memory.as_mut_ptr(), 8).build();
        // SAFETY: `memory` outlives the drain below.
        let op = unsafe { machine.submit(entry, wait) }.unwrap();
        machine.poll().unwrap();
        writer.write_all(b"won").unwrap();
        machine.poll().unwrap();
        machine.cancel(op).unwrap();
        assert!(machine.drain(op, u64::MAX / 2).unwrap());
        assert_eq!(machine.take(op).unwrap().result, 3);
        assert_eq!(&memory[..3], b"won");
    }

    #[test]
    fn another_thread_ends_the_sleep_and_completes_a_wait() {
        let mut machine = machine();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        let waker = machine.waker().unwrap().clone();
        machine.prepare_sleep().unwrap();
        let thread = std::thread::spawn(move || waker.complete(wait));
        while machine.tasks.state(task) == Some(State::Waiting) {
            machine.prepare_sleep().unwrap();
            machine.sleep(None).unwrap();
            machine.reap();
        }
        thread.join().unwrap();
        assert_eq!(machine.tasks.next_ready(), Some((task, Wake::Complete)));
    }

    #[test]
    fn a_machine_that_never_sleeps_sees_what_another_thread_completes() {
        let mut machine = machine();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        let waker = machine.waker().unwrap().clone();
        std::thread::spawn(move || waker.complete(wait))
            .join()
            .unwrap();
        machine.poll().unwrap();
        assert_eq!(machine.tasks.next_ready(), Some((task, Wake::Complete)));
    }

    #[test]
    fn a_wake_before_the_sleep_is_not_lost() {
        let mut machine = machine();
        for _ in 0..3 {
            machine.waker().unwrap().wake();
            machine.prepare_sleep().unwrap();
            machine.sleep(None).unwrap();
            machine.reap();
        }
    }

    #[test]
    fn a_deadline_ends_the_sleep_and_wakes_with_a_timeout() {
        let mut machine = machine();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        machine.wake_at(clock::now() + 1_000_000, wait);
        let mut woken = None;
        while woken.is_none() {
            let deadline = machine.timers.next_deadline();
            machine.sleep(deadline).unwrap();
            machine.fire();
            woken = machine.tasks.next_ready();
        }
        assert_eq!(woken, Some((task, Wake::Timeout)));
    }

    #[test]
    fn shutting_down_gives_everything_back() {
        let mut machine = machine();
        let (reader, _writer) = pipe();
        let task = machine.tasks.add(());
        let mut memory = [0u8; 8];
        for _ in 0..20 {
            let wait = machine.tasks.begin_wait(task);
            let fd = types::Fd(reader.as_raw_fd());
            let entry = opcode::Read::new(fd, memory.as_mut_ptr(), 8).build();
            // SAFETY: `memory` outlives the shut-down below.
            unsafe { machine.submit(entry, wait) }.unwrap();
        }
        machine.poll().unwrap();
        assert!(machine.shut_down(10_000_000_000));
    }

    #[test]
    fn an_operation_on_a_bad_descriptor_fails_alone() {
        let mut machine = machine();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        let closed = {
            let file = File::open("/dev/null").unwrap();
            file.as_raw_fd()
        };
        let entry = opcode::PollAdd::new(types::Fd(closed), libc::POLLIN as u32).build();
        // SAFETY: a poll points to nothing.
        let op = unsafe { machine.submit(entry, wait) }.unwrap();
        machine.poll().unwrap();
        assert_eq!(machine.take(op).unwrap().result, -libc::EBADF);
        machine.poll().unwrap();
    }

    fn receive(machine: &mut Machine<()>, fd: &impl AsRawFd, limit: usize) -> OpKey {
        let group = machine.buffer_group().unwrap();
        let entry = opcode::RecvMulti::new(types::Fd(fd.as_raw_fd()), group).build();
        machine.start_stream(entry, Arrivals::bytes(limit)).unwrap()
    }

    fn received(machine: &mut Machine<()>, op: OpKey) -> Vec<u8> {
        match &mut machine.stream(op).unwrap().arrivals {
            Arrivals::Bytes { bytes, .. } => {
                let received = bytes.as_slice().to_vec();
                bytes.consume(received.len());
                received
            }
            Arrivals::Descriptors(_) => unreachable!(),
        }
    }

    #[test]
    fn a_multishot_receive_brings_every_byte_in_order_and_the_end() {
        for mask in ["", "incremental_buffers"] {
            let features = Features::from_environment().masked(mask);
            let mut machine = Machine::<()>::new(8, features, None).unwrap();
            machine.enable().unwrap();
            let (receiver, mut sender) = std::os::unix::net::UnixStream::pair().unwrap();
            let op = receive(&mut machine, &receiver, usize::MAX);
            let mut sent = Vec::new();
            for round in 0..2_000u32 {
                let message: Vec<u8> = (0..round % 700).map(|byte| (byte + round) as u8).collect();
                sender.write_all(&message).unwrap();
                sent.extend(message);
                machine.poll().unwrap();
            }
            drop(sender);
            while machine.stream(op).unwrap().ended.is_none() {
                machine.sleep(None).unwrap();
                machine.reap();
            }
            assert_eq!(machine.stream(op).unwrap().ended, Some(0));
            assert!(received(&mut machine, op) == sent, "mask {mask:?}");
            machine.discard_stream(op).unwrap();
            assert_eq!(machine.operations(), 0);
        }
    }

    #[test]
    fn a_flooding_receive_is_stopped_and_goes_on_without_losing_a_byte() {
        let mut machine = machine();
        let (receiver, mut sender) = std::os::unix::net::UnixStream::pair().unwrap();
        let op = receive(&mut machine, &receiver, 1000);
        // More than the limit, before anything is consumed.
        for number in 0..10u8 {
            sender.write_all(&[number; 500]).unwrap();
            machine.poll().unwrap();
        }
        let writer = std::thread::spawn(move || {
            for number in 10..200u8 {
                sender.write_all(&[number; 500]).unwrap();
            }
        });
        let (mut op, mut got, mut stops) = (op, Vec::new(), 0);
        while got.len() < 100_000 {
            got.extend(received(&mut machine, op));
            if machine.stream(op).unwrap().is_resumable() {
                machine.discard_stream(op).unwrap();
                op = receive(&mut machine, &receiver, 1000);
                stops += 1;
            } else if got.len() < 100_000 {
                machine.sleep(Some(clock::now() + 10_000_000)).unwrap();
            }
            machine.reap();
        }
        assert!(stops > 0);
        writer.join().unwrap();
        let expected: Vec<u8> = (0..200u8).flat_map(|number| [number; 500]).collect();
        assert!(got == expected);
    }

    #[test]
    fn a_discarded_accept_closes_what_it_accepted() {
        let mut machine = machine();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let entry = opcode::AcceptMulti::new(types::Fd(listener.as_raw_fd())).build();
        let op = machine
            .start_stream(entry, Arrivals::descriptors())
            .unwrap();
        let mut client = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        while matches!(&machine.stream(op).unwrap().arrivals, Arrivals::Descriptors(fds) if fds.is_empty())
        {
            machine.sleep(None).unwrap();
            machine.reap();
        }
        machine.discard_stream(op).unwrap();
        while machine.operations() > 0 {
            machine.sleep(None).unwrap();
            machine.reap();
        }
        assert_eq!(client.read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_forsaken_machine_has_no_descriptor_and_runs_nobody() {
        let mut machine = machine();
        let ready = machine.tasks.add(());
        let timed = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(ready);
        machine.tasks.wake(wait, Wake::Complete);
        let wait = machine.tasks.begin_wait(timed);
        machine.wake_at(0, wait);
        let waker = machine.waker().unwrap().clone();
        let fd = waker.fd();
        machine.forsake();
        // SAFETY: fcntl takes any number.
        assert_eq!(unsafe { libc::fcntl(fd, libc::F_GETFD) }, -1);
        waker.complete(wait);
        machine.fire();
        assert_eq!(machine.tasks.next_ready(), None);
        assert!(machine.poll().is_err());
    }

    #[test]
    fn an_orphan_keeps_its_memory_until_it_is_written() {
        let mut machine = machine();
        let (mut reader, writer) = pipe();
        let memory: Box<[u8]> = (*b"orphan").into();
        let fd = types::Fd(writer.as_raw_fd());
        let entry = opcode::Write::new(fd, memory.as_ptr(), 6).build();
        // SAFETY: the entry points to the memory that is given along.
        unsafe { machine.submit_orphan(entry, Some(memory)) }.unwrap();
        assert_eq!(machine.counts().orphans, 1);
        machine.poll().unwrap();
        let mut bytes = [0; 6];
        reader.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"orphan");
        assert_eq!(machine.operations(), 0);
    }

    #[test]
    fn a_registered_buffer_is_read_into_and_written_from() {
        let mut machine = machine();
        let (region, memory) = machine.register_buffers(4, 4096).unwrap();
        let (other, _) = machine.register_buffers(2, 8192).unwrap();
        assert_ne!(region, other);
        // SAFETY: within the region's memory.
        let third = unsafe { memory.base().add(2 * 4096) };
        assert_eq!(machine.fixed_index(third, 4096), Some(2));
        // SAFETY: as above.
        assert_eq!(machine.fixed_index(unsafe { third.add(10) }, 4090), None);
        assert_eq!(machine.fixed_index(std::ptr::dangling(), 1), None);
        let (reader, mut writer) = pipe();
        let task = machine.tasks.add(());
        let wait = machine.tasks.begin_wait(task);
        writer.write_all(b"fixed").unwrap();
        let fd = types::Fd(reader.as_raw_fd());
        let entry = opcode::ReadFixed::new(fd, third, 4096, 2).build();
        // SAFETY: the memory is the region's.
        let op = unsafe { machine.submit(entry, wait) }.unwrap();
        machine.poll().unwrap();
        assert_eq!(machine.take(op).unwrap().result, 5);
        // SAFETY: the kernel has given the memory back.
        assert_eq!(unsafe { std::slice::from_raw_parts(third, 5) }, b"fixed");
        machine.unregister_buffers(region);
        assert_eq!(machine.fixed_index(third, 4096), None);
        // SAFETY: the memory is there for as long as somebody has it.
        assert_eq!(unsafe { std::slice::from_raw_parts(third, 5) }, b"fixed");
        memory.discard();
        // SAFETY: as above.
        assert_eq!(unsafe { *third }, 0);
        let (again, _) = machine.register_buffers(4, 4096).unwrap();
        assert_eq!(again, region);
    }
}
