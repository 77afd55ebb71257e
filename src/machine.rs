//! One machine: ring, operations, tasks, timers and waker of one thread.

use std::io;

use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode, types};

use crate::clock;
use crate::error::SetupError;
use crate::features::Features;
use crate::ops::{Completion, OpKey, Ops};
use crate::ring::Ring;
use crate::slab::Key;
use crate::tasks::{Tasks, WaitId, Wake};
use crate::timers::{TimerKey, Timers};
use crate::waker::Waker;

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
}

/// Everything that one thread needs to run tasks on io_uring. `T` is the payload of a task.
pub struct Machine<T> {
    /// The kernel's side: gone once the machine is closed.
    kernel: Option<Kernel>,
    ops: Ops,
    waker_polled: bool,
    expired: Vec<Key>,
    /// The tasks and the run queue.
    pub tasks: Tasks<T>,
    /// The deadlines.
    pub timers: Timers<Timer>,
}

impl<T> Machine<T> {
    /// Sets the ring up; [`Machine::enable`] binds it to a thread.
    pub fn new(entries: u32, mask: Features) -> Result<Self, SetupError> {
        let ring = Ring::new(entries, mask)?;
        let waker = Waker::new().map_err(|error| {
            SetupError::from_errno(error.raw_os_error().unwrap_or(libc::EMFILE), entries)
        })?;
        Ok(Self {
            kernel: Some(Kernel {
                features: ring.features(),
                ring,
                waker,
            }),
            ops: Ops::default(),
            waker_polled: false,
            expired: Vec::new(),
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

    /// How many operations the kernel has, or has ended without anybody taking the result.
    pub fn operations(&self) -> usize {
        self.ops.len()
    }

    /// Queues an operation whose completion ends `wait`.
    ///
    /// # Safety
    /// Whatever the entry points to stays valid and unmoved until [`Machine::take`] has returned
    /// the operation's result.
    #[inline]
    pub unsafe fn submit(&mut self, entry: Entry, wait: WaitId) -> io::Result<OpKey> {
        let op = self.ops.start(wait);
        let entry = entry.user_data(op.to_bits());
        // SAFETY: the caller's promise.
        let pushed = self.ring().and_then(|ring| unsafe { ring.push(&entry) });
        if let Err(error) = pushed {
            // The entry never reached the queue, so the kernel does not have it.
            self.ops.complete(
                op,
                Completion {
                    result: 0,
                    flags: 0,
                },
            );
            self.ops.take(op);
            return Err(error);
        }
        Ok(op)
    }

    /// Takes the result of an operation; `None` while the kernel has it.
    #[inline]
    pub fn take(&mut self, op: OpKey) -> Option<Completion> {
        self.ops.take(op)
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
        let ring = self.ring()?;
        if ring.wants_enter() {
            ring.enter(0, None)?;
        }
        self.reap();
        self.fire();
        Ok(())
    }

    /// Whether [`Machine::poll`] could find anything without waiting, timers aside.
    #[inline]
    pub fn wants_poll(&mut self) -> bool {
        self.ring()
            .is_ok_and(|ring| ring.has_completions() || ring.wants_enter())
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
                bits => {
                    let completion = Completion {
                        result: entry.result(),
                        flags: entry.flags(),
                    };
                    if let Some(wait) = self.ops.complete(Key::from_bits(bits), completion) {
                        self.tasks.wake(wait, Wake::Complete);
                    }
                }
            }
        }
        count
    }

    fn woken(&mut self, flags: u32) {
        self.waker_polled = cqueue::more(flags);
        // Reset before taking: a hand-over after the take wakes again.
        let Some(waker) = self.waker() else { return };
        waker.reset();
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
    /// everything back. If not, what it may write to must be leaked.
    pub fn shut_down(&mut self, limit: u64) -> bool {
        let entry = opcode::AsyncCancel2::new(types::CancelBuilder::any().all())
            .build()
            .user_data(NOBODY);
        let deadline = clock::now() + limit;
        // SAFETY: a cancel points to nothing.
        let pushed = self.ring().and_then(|ring| unsafe { ring.push(&entry) });
        if pushed.is_err() {
            return self.ops.in_flight() == 0;
        }
        let mut wait = None;
        loop {
            let entered = self.ring().and_then(|ring| match wait {
                None => ring.enter(0, None),
                limit => ring.enter(1, limit),
            });
            self.reap();
            let now = clock::now();
            if entered.is_err() || self.ops.in_flight() == 0 || now >= deadline {
                break;
            }
            wait = Some(deadline - now);
        }
        self.ops.in_flight() == 0
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
        let mut machine = Machine::new(8, Features::from_environment()).unwrap();
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
}
