//! A trace: what the fibers of a machine did, and when, noted while somebody wants it. A machine that is not traced looks at one
//! field when a wait begins, and when it ends.

mod records;
mod taken;

use std::collections::HashMap;
use std::hash::BuildHasherDefault;
use std::os::fd::RawFd;
use std::sync::Arc;

use uringmachine_runtime::{OpKey, TaskId, Wake};

use super::fibers::AddressHasher;
use super::{Machine, Parts, Pending};
use crate::ruby::call::Place;
use crate::ruby::{self, class_of, fiber, Raise, Value, NIL};
pub use records::Name;
use records::{Budget, End, Kind, Record, Records, UNKNOWN};
pub use taken::{begin, end, is_taken, join};

/// What a fiber is about to wait for, where the machine does not know it anyway.
#[derive(Clone, Copy, Debug)]
pub enum For {
    /// An operation.
    Operation(OpKey),
    /// What these words say.
    Word(&'static str),
}

/// A wait that is not over.
struct Open {
    task: TaskId,
    since: u64,
    name: u16,
    fd: RawFd,
    op: Option<OpKey>,
}

/// A fiber, as the trace knows it.
struct Track {
    number: u32,
    waits: Option<Open>,
    /// Whose track's fiber has ended its wait, and when.
    woken: Option<(u32, u64)>,
}

/// A multishot operation that is not over.
struct Stream {
    since: u64,
    name: u16,
    fd: RawFd,
}

/// What is noted of one machine.
pub struct Trace {
    records: Records,
    tracks: HashMap<Value, Track, BuildHasherDefault<AddressHasher>>,
    /// With so many tracks, those of fibers that have ended go.
    many: usize,
    names: Vec<Name>,
    numbers: HashMap<Name, u16>,
    /// The machine's own track.
    own: u32,
    /// When the fiber that runs began to.
    since: u64,
    asleep_since: Option<u64>,
    /// What a task is about to wait for.
    next: Option<(TaskId, For)>,
    streams: HashMap<OpKey, Stream>,
    /// Nothing is noted any more.
    is_over: bool,
}

impl Trace {
    fn new(budget: Arc<Budget>) -> Self {
        let (own, since) = (budget.track(), budget.now());
        Self {
            records: Records::new(budget),
            tracks: HashMap::default(),
            many: 64,
            names: Vec::new(),
            numbers: HashMap::new(),
            own,
            since,
            asleep_since: None,
            next: None,
            streams: HashMap::new(),
            is_over: false,
        }
    }

    fn now(&self) -> u64 {
        self.records.budget.now()
    }

    /// The machine's own track.
    pub fn own(&self) -> u32 {
        self.own
    }

    /// What records call things by their numbers.
    pub fn names(&self) -> &[Name] {
        &self.names
    }

    /// What was noted.
    pub fn into_records(self) -> Records {
        self.records
    }

    /// Marks what it refers to: names, and fibers, which it knows by their addresses.
    pub fn mark(&self) {
        for name in &self.names {
            if let Name::Class(value) | Name::Text(value) = name {
                ruby::mark(*value);
            }
        }
        self.tracks.keys().copied().for_each(ruby::mark);
    }

    /// The number of a name. Of those that come when there are too many, nothing is told.
    fn name(&mut self, name: Name) -> u16 {
        if let Some(number) = self.numbers.get(&name) {
            return *number;
        }
        let Ok(number) = u16::try_from(self.names.len()) else {
            return u16::MAX;
        };
        self.names.push(name);
        self.numbers.insert(name, number);
        number
    }

    /// A new track, of a fiber that runs the block at a place, if that is known.
    fn meet(&mut self, fiber: Value, place: Option<Place>, parent: Option<u32>, at: u64) -> u32 {
        if self.tracks.len() >= self.many {
            self.tracks.retain(|fiber, _| fiber::is_alive(*fiber));
            self.many = (2 * self.tracks.len()).max(64);
        }
        let number = self.records.budget.track();
        let (name, line) = match place {
            Some(place) => (self.name(Name::Text(place.file)), place.line),
            None => (self.name(Name::Word("fiber")), UNKNOWN),
        };
        let parent = parent.map_or(UNKNOWN, |parent| parent as i32);
        let met = Record::new(Kind::Met, number, at, at).named(name, parent);
        self.records.push(met.ended(line, End::Complete));
        let track = Track {
            number,
            waits: None,
            woken: None,
        };
        self.tracks.insert(fiber, track);
        number
    }

    /// The track of the fiber that runs.
    fn running(&mut self, fiber: Value) -> u32 {
        match self.tracks.get(&fiber) {
            Some(track) => track.number,
            None => {
                // The frames of no other can be looked at.
                let is_current = fiber == fiber::current();
                let place = is_current.then(Place::outermost).flatten();
                self.meet(fiber, place, None, self.since)
            }
        }
    }

    /// A fiber has run until now.
    fn has_run(&mut self, track: u32) -> u64 {
        let now = self.now();
        self.records
            .push(Record::new(Kind::Run, track, self.since, now));
        self.since = now;
        now
    }

    fn waits(&mut self, fiber: Value, task: TaskId, name: Name, fd: RawFd, op: Option<OpKey>) {
        let number = self.running(fiber);
        let now = self.has_run(number);
        self.opens(fiber, task, (name, fd, op), now);
    }

    fn opens(
        &mut self,
        fiber: Value,
        task: TaskId,
        (name, fd, op): (Name, RawFd, Option<OpKey>),
        since: u64,
    ) {
        let name = self.name(name);
        if let Some(track) = self.tracks.get_mut(&fiber) {
            track.waits = Some(Open {
                task,
                since,
                name,
                fd,
                op,
            });
        }
    }

    /// A fiber's wait is over.
    fn goes_on(&mut self, fiber: Value, result: Option<i32>, end: End) {
        let now = self.now();
        let Some(track) = self.tracks.get_mut(&fiber) else {
            return;
        };
        let Some(open) = track.waits.take() else {
            return;
        };
        let record = Record::new(Kind::Wait, track.number, open.since, now);
        let record = record.named(open.name, open.fd);
        self.records
            .push(record.ended(result.unwrap_or(UNKNOWN), end));
        if let Some((waker, since)) = track.woken.take() {
            let record = Record::new(Kind::Woken, track.number, since, now);
            self.records.push(record.named(0, waker as i32));
        }
        self.since = now;
    }

    /// What the fiber of a task is about to wait for.
    pub fn awaits(&mut self, me: TaskId, what: For) {
        self.next = Some((me, what));
    }

    /// The thread is about to sleep.
    pub fn falls_asleep(&mut self) {
        self.asleep_since = Some(self.now());
    }

    /// It sleeps no more.
    pub fn wakes(&mut self) {
        if let Some(since) = self.asleep_since.take().filter(|_| !self.is_over) {
            let now = self.now();
            self.records
                .push(Record::new(Kind::Sleep, self.own, since, now));
            self.since = now;
        }
    }

    /// A multishot operation begins.
    fn stream_begins(&mut self, op: OpKey, name: Name, fd: RawFd) {
        if !self.is_over {
            let (since, name) = (self.now(), self.name(name));
            self.streams.insert(op, Stream { since, name, fd });
        }
    }

    /// A multishot operation is given up.
    pub fn stream_ends(&mut self, op: OpKey) {
        if let Some(stream) = self.streams.remove(&op) {
            let now = self.now();
            let record = Record::new(Kind::Multishot, self.own, stream.since, now);
            self.records.push(record.named(stream.name, stream.fd));
        }
    }

    /// Notes what is not over, and nothing more. `running` is the fiber that runs.
    fn finish(&mut self, running: Option<Value>) {
        if let Some(fiber) = running {
            let number = self.running(fiber);
            if (self.tracks.get(&fiber)).is_some_and(|track| track.waits.is_none()) {
                self.has_run(number);
            }
        }
        let now = self.now();
        for track in self.tracks.values() {
            if let Some(open) = &track.waits {
                let record = Record::new(Kind::Wait, track.number, open.since, now);
                let record = record.named(open.name, open.fd);
                self.records.push(record.ended(UNKNOWN, End::Open));
            }
        }
        self.wakes();
        for op in self.streams.keys().copied().collect::<Vec<_>>() {
            self.stream_ends(op);
        }
        self.is_over = true;
    }
}

impl Parts {
    /// Takes the trace, to note something in it of what else there is.
    #[inline]
    fn note(&mut self, note: impl FnOnce(&mut Self, &mut Trace)) {
        if let Some(mut trace) = self.trace.take() {
            if !trace.is_over {
                note(self, &mut trace);
            }
            self.trace = Some(trace);
        }
    }

    /// The fiber of a task is about to wait.
    #[inline(always)]
    pub fn trace_wait(&mut self, me: TaskId) {
        if self.trace.is_some() {
            self.note_wait(me);
        }
    }

    /// The wait of a task's fiber is over.
    #[inline(always)]
    pub fn trace_end_of_wait(&mut self, me: TaskId, woken: &Result<Wake, Raise>) {
        if self.trace.is_some() {
            self.note_end_of_wait(me, woken);
        }
    }

    #[cold]
    fn note_wait(&mut self, me: TaskId) {
        self.note(|parts, trace| {
            let next = trace.next.take().filter(|(task, _)| *task == me);
            let waiter = parts.waiter(me);
            let fiber = waiter.fiber;
            // A handler waits in the middle of its fiber's wait, or a wait goes on.
            if (trace.tracks.get(&fiber)).is_some_and(|track| track.waits.is_some()) {
                return;
            }
            let name = match next.map(|(_, what)| what) {
                Some(For::Word(word)) => Name::Word(word),
                Some(For::Operation(op)) => {
                    let (name, fd) = parts.driver.operation(op).unwrap_or(("other", -1));
                    return trace.waits(fiber, me, Name::Word(name), fd, Some(op));
                }
                None if waiter.draining => Name::Word("cancel"),
                None if waiter.yielding => Name::Word("schedule"),
                None if waiter.blocker != NIL => Name::Class(class_of(waiter.blocker)),
                None if waiter.blocked => Name::Word("sleep"),
                None => Name::Word("wait"),
            };
            trace.waits(fiber, me, name, UNKNOWN, None);
        });
    }

    #[cold]
    fn note_end_of_wait(&mut self, me: TaskId, woken: &Result<Wake, Raise>) {
        let end = match woken {
            Ok(Wake::Complete) => End::Complete,
            Ok(Wake::Timeout) => End::Timeout,
            _ => End::Interrupt,
        };
        self.note(|parts, trace| {
            let fiber = parts.waiter(me).fiber;
            let open = trace
                .tracks
                .get(&fiber)
                .and_then(|track| track.waits.as_ref());
            if let Some(open) = open.filter(|open| open.task == me) {
                let result = open.op.and_then(|op| parts.driver.result(op));
                trace.goes_on(fiber, result, end);
            }
        });
    }

    /// A fiber goes on that the machine has not known meanwhile.
    pub fn trace_return(&mut self, fiber: Value) {
        self.note(|_, trace| trace.goes_on(fiber, None, End::Complete));
    }

    /// A fiber is started, whose block begins at a place: at once, or when its task does.
    #[inline(always)]
    pub fn trace_start(&mut self, fiber: Value, place: Option<Place>, task: Option<TaskId>) {
        if self.trace.is_some() {
            self.note_start(fiber, place, task);
        }
    }

    #[cold]
    fn note_start(&mut self, fiber: Value, place: Option<Place>, task: Option<TaskId>) {
        self.note(|_, trace| {
            let parent = trace.running(fiber::current());
            let now = trace.now();
            trace.meet(fiber, place, Some(parent), now);
            if let Some(task) = task {
                trace.opens(fiber, task, (Name::Word("start"), UNKNOWN, None), now);
            }
        });
    }

    /// The fiber that runs has ended the wait of another one.
    #[cold]
    pub fn trace_wake(&mut self, task: TaskId) {
        self.note(|parts, trace| {
            let fiber_of = |task| parts.driver.tasks.get(task).map(|waiter| waiter.fiber);
            let fibers = (fiber_of(parts.fibers.current), fiber_of(task));
            let (Some(waker), Some(woken)) = fibers else {
                return;
            };
            // It is another thread's that runs, if this is not.
            if waker != fiber::current() {
                return;
            }
            let (by, now) = (trace.running(waker), trace.now());
            if let Some(track) = trace.tracks.get_mut(&woken) {
                track.woken = Some((by, now));
            }
        });
    }

    /// The fiber of a task is to raise something, or to be given it.
    fn trace_interrupt(&mut self, task: TaskId, pending: &Pending) {
        let name = match pending {
            Pending::Exception(exception) => Name::Class(class_of(*exception)),
            Pending::Timeout(_) => Name::Word("timeout"),
            Pending::Value(_) => Name::Word("value"),
            Pending::Unwind => Name::Word("unwinding"),
        };
        self.note(|parts, trace| {
            let fiber = parts.waiter(task).fiber;
            if let Some(number) = trace.tracks.get(&fiber).map(|track| track.number) {
                let (name, now) = (trace.name(name), trace.now());
                let record = Record::new(Kind::Interrupted, number, now, now);
                trace.records.push(record.named(name, UNKNOWN));
            }
        });
    }

    /// A fiber that the machine has started ends.
    #[cold]
    pub fn trace_end(&mut self, fiber: Value) {
        self.note(|_, trace| {
            // One that never began, or is ended by somebody else, has not run until now.
            let is_running = fiber == fiber::current();
            if let Some(track) = trace.tracks.remove(&fiber) {
                let now = match is_running {
                    true => trace.has_run(track.number),
                    false => trace.now(),
                };
                if let Some(open) = track.waits {
                    let record = Record::new(Kind::Wait, track.number, open.since, now);
                    let record = record.named(open.name, open.fd);
                    trace.records.push(record.ended(UNKNOWN, End::Interrupt));
                }
                let record = Record::new(Kind::Ended, track.number, now, now);
                trace.records.push(record);
            }
        });
    }

    /// Operations in the kernel that complete again and again have a record of their own.
    #[cold]
    pub fn trace_stream(&mut self, op: OpKey) {
        self.note(|parts, trace| {
            if let Some((name, fd)) = parts.driver.operation(op) {
                trace.stream_begins(op, Name::Word(name), fd);
            }
        });
    }
}

impl Machine {
    /// Whether it is traced.
    #[inline]
    pub fn is_traced(&self) -> bool {
        self.parts().trace.is_some()
    }

    /// Notes what the fiber of a task is about to wait for, in a trace.
    #[inline]
    pub fn awaits(&self, me: TaskId, what: For) {
        if let Some(trace) = &mut self.parts().trace {
            trace.awaits(me, what);
        }
    }

    /// Where a block begins that a fiber is to run, if that is of interest.
    #[inline]
    pub fn trace_place(&self, block: Value) -> Result<Option<Place>, Raise> {
        if self.is_traced() {
            return Place::of_block(block);
        }
        Ok(None)
    }

    /// Notes what the fiber of a task is to raise, or to be given.
    #[inline]
    pub(super) fn trace_pending(&self, task: TaskId, pending: &Pending) {
        if self.is_traced() {
            self.parts().trace_interrupt(task, pending);
        }
    }

    /// The root fiber of a thread waits for all others.
    pub(super) fn trace_root(&self, me: TaskId) {
        let mut parts = self.parts();
        if let Some(trace) = &mut parts.trace {
            trace.awaits(me, For::Word("fibers"));
            parts.trace_wait(me);
        }
    }
}
