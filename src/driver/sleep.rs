//! How a driver waits: polling, sleeping, reaping, and the timers that fire.

use std::io;

use io_uring::cqueue;

use super::{Driver, Timer, NOBODY, WAKER};
use crate::clock;
use crate::operation::{Completion, Effect, OpKey, Operation};
use crate::operations::PollMultishot;
use crate::ring::Ring;
use crate::slab::Key;
use crate::tasks::{WaitId, Wake};
use crate::timers::TimerKey;
use crate::waker::Waker;

/// A sleep of a driver: until something completes, a deadline has come, or the waker wakes.
pub struct Sleep {
    ring: *mut Ring,
    until: Option<u64>,
}

impl Sleep {
    /// Sleeps.
    ///
    /// # Safety
    /// The driver is alive, and nobody else uses its ring meanwhile: its tasks may be used.
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

/// The result of an operation. One that a signal has interrupted, or a stop of the process, is to be begun again, and the kernel
/// itself would if it were a system call: it says so by a number that programs are not to see, and not every operation makes that
/// EINTR (io_uring/splice.c does not; include/linux/errno.h).
#[inline]
fn interrupted(result: i32) -> i32 {
    const ERESTARTSYS: i32 = 512;
    const ERESTART_RESTARTBLOCK: i32 = 516;
    if (-ERESTART_RESTARTBLOCK..=-ERESTARTSYS).contains(&result) {
        -libc::EINTR
    } else {
        result
    }
}

impl<T> Driver<T> {
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
            let ring = Self::ring_of(&mut self.kernel)?;
            if ring.wants_enter() {
                self.entered += 1;
                ring.enter(0, None)?;
            } else if round > 0 {
                break;
            }
            self.reap();
            if self.lines.works() == 0 {
                break;
            }
        }
        // The eventfd is polled only while the driver sleeps; one that never does looks here.
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

    /// Whether [`Driver::poll`] could find anything without waiting, timers aside.
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
            let mut poll = PollMultishot {
                fd: waker.fd(),
                events: libc::POLLIN as u32,
            };
            let entry = poll.entry().user_data(WAKER);
            // SAFETY: a poll points to nothing.
            unsafe { self.ring()?.push(&entry) }?;
            self.waker_polled = true;
        }
        Ok(())
    }

    /// The coming sleep, as something that can be run while other threads use the driver's tasks.
    pub fn sleeper(&mut self, until: Option<u64>) -> Sleep {
        self.sleeps += 1;
        Sleep {
            ring: self.ring().map_or(std::ptr::null_mut(), std::ptr::from_mut),
            until,
        }
    }

    /// Sleeps until something completes, `until` has come, or the waker wakes; reaps nothing.
    pub fn sleep(&mut self, until: Option<u64>) -> io::Result<()> {
        // SAFETY: the driver is borrowed for the call.
        unsafe { self.sleeper(until).run() }
    }

    /// Moves completions to the waits they end. Returns how many there were.
    pub fn reap(&mut self) -> usize {
        let mut count = 0;
        self.tasks.settle();
        while let Some(entry) = self.ring().ok().and_then(Ring::reap) {
            count += 1;
            match entry.user_data() {
                NOBODY => {}
                WAKER => self.woken(entry.flags()),
                bits => {
                    let result = interrupted(entry.result());
                    self.complete(Key::from_bits(bits), result, entry.flags());
                }
            }
        }
        count
    }

    #[inline]
    fn complete(&mut self, op: OpKey, result: i32, flags: u32) {
        let completion = Completion { result, flags };
        let mut buffers = match &mut self.kernel {
            Some(kernel) if cqueue::buffer_select(flags).is_some() => kernel.provided.as_mut(),
            _ => None,
        };
        let bytes = buffers
            .as_ref()
            .map_or(&[][..], |buffers| buffers.bytes(result, flags));
        let effect = self.in_flight.complete(op, completion, bytes);
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
                // If it cannot be queued now, the multishot is stopped when it brings more.
                if self.cancel(op).is_err() {
                    if let Some(multishot) = self.in_flight.multishot(op) {
                        multishot.stopped = false;
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

    /// Whether any of the embedder's own timers have fired.
    #[inline]
    pub fn has_expired(&self) -> bool {
        !self.expired.is_empty()
    }

    /// Takes one of the embedder's own timers that have fired.
    #[inline]
    pub fn take_expired(&mut self) -> Option<Key> {
        self.expired.pop()
    }
}
