//! Whose turn it is: how long a fiber may hold the thread, and how often the machine looks at its ring.

use uringmachine_runtime::{clock, TaskId};

use super::{interrupts, Machine, Parts};
use crate::ruby::Raise;

/// How many switches may pass before the machine looks at the ring although fibers are runnable.
const SWITCHES_PER_POLL: i32 = 256;

/// How much is moved without waiting between looks at the clock: operations, each of which counts once more for as
/// many bytes as this power of two.
const WORK_PER_LOOK: u32 = 64;
const WORK_BYTES: u32 = 7;
/// How long a fiber whose operations never wait may hold the thread, in nanoseconds.
const HELD_AT_MOST: u64 = 4_000_000;

/// What is counted for that.
#[derive(Debug)]
pub struct Turns {
    /// How many switches to another fiber there were.
    pub switches: u64,
    /// Switches between looks at the ring.
    patience: i32,
    countdown: i32,
    /// About when the machine last looked at the ring.
    polled: u64,
    held: Held,
}

/// How long the fiber that runs has held the thread.
#[derive(Debug, Default)]
struct Held {
    /// What it has moved since the last look at the clock.
    work: u32,
    /// The count of switches at that look, if the fiber has had one: another one is another fiber's, or came after others.
    switches: Option<u64>,
    since: u64,
}

impl Default for Turns {
    fn default() -> Self {
        Self {
            switches: 0,
            patience: SWITCHES_PER_POLL,
            countdown: SWITCHES_PER_POLL,
            polled: 0,
            held: Held::default(),
        }
    }
}

impl Turns {
    /// Whether to look at the ring at every switch.
    pub fn set_eager(&mut self, eager: bool) {
        self.patience = if eager { 1 } else { SWITCHES_PER_POLL };
        self.countdown = self.patience;
    }

    /// The machine has looked at the ring.
    #[inline]
    pub fn has_polled(&mut self) {
        self.countdown = self.patience;
        self.polled = clock::about_now();
    }

    /// Counts a switch; says whether as many have passed as may before the machine looks at the ring.
    #[inline(always)]
    fn have_many_passed(&mut self) -> bool {
        self.countdown -= 1;
        self.countdown <= 0
    }

    /// A fiber begins: what others have held is not its own.
    #[inline]
    pub fn has_begun(&mut self) {
        self.held.switches = None;
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
        if self.held.switches != Some(self.switches) {
            self.held.switches = Some(self.switches);
            self.held.since = now;
            return false;
        }
        let long = now.saturating_sub(self.held.since) >= HELD_AT_MOST;
        if long {
            self.held.since = now;
        }
        long
    }
}

impl Parts {
    /// Whether the machine is to look at the ring, and at the timers, before the next switch: after many, or when the clock has
    /// gone on by a tick while somebody waits for more than a turn.
    #[inline(always)]
    pub fn is_to_poll(&mut self) -> bool {
        self.turns.have_many_passed()
            || (self.driver.tasks.waiting() != self.driver.tasks.queued()
                && clock::about_now() != self.turns.polled)
    }

    /// Whether there is somebody to run.
    #[inline]
    pub fn has_ready(&self) -> bool {
        !self.driver.tasks.queue_is_empty() || !self.raises.is_empty()
    }
}

impl Machine {
    /// Notes that something was done without waiting, and lets those go first that are ready if the fiber has held the
    /// thread for long.
    #[inline]
    pub fn take_turns(&self, me: TaskId) -> Result<(), Raise> {
        let is_long = {
            let turns = &mut self.parts().turns;
            turns.count_at_once(0);
            turns.has_held_long()
        };
        if is_long {
            self.let_go(me)?;
        }
        Ok(())
    }

    /// Whether a fiber may write at once what a socket takes, without a look at anything else. Where others are about to send as
    /// well, one system call for all of them would spare what Ruby's way to it costs: measured, the same for a request to an
    /// HTTP server with 64 connections, a fifth more with 1,000.
    #[inline]
    pub fn writes_now(&self) -> bool {
        let parts = self.parts();
        parts.lost.is_empty() && parts.driver.features().dontwait
    }

    /// As [`Machine::take_turns`], of the current fiber, for what may have moved as many bytes.
    #[inline]
    pub fn take_turns_with(&self, bytes: usize) -> Result<(), Raise> {
        let is_long = {
            let turns = &mut self.parts().turns;
            turns.count_at_once(bytes);
            turns.has_held_long()
        };
        if is_long {
            self.let_go(self.current_task())?;
        }
        Ok(())
    }

    /// Lets those go first that are ready, or whose completion has come. Whoever never waits raises here what it is to
    /// raise: a time limit that has come, say. A finalizer or a handler, which the fiber has not called, goes on.
    #[cold]
    pub fn let_go(&self, me: TaskId) -> Result<(), Raise> {
        if interrupts::runs_aside() {
            return Ok(());
        }
        self.poll();
        let has_ready = self.parts().has_ready();
        if has_ready {
            self.yield_now(me)?;
        }
        self.raise_pending(me)
    }
}
