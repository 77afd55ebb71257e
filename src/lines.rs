//! Who writes to a descriptor: one at a time, in the order they came. It is a task, which makes its operations
//! itself, or work that nobody waits for, which the driver does: bytes to be written, all of them, a shutdown, a
//! close.

use std::collections::VecDeque;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;

use crate::by_descriptor::ByDescriptor;
use crate::operation::Operation;
use crate::operations::{self, CURRENT};
use crate::position;
use crate::tasks::{TaskId, WaitId};

/// Writes that wait are joined up to so many bytes.
const JOINED: usize = 64 << 10;

/// What is to be done to a descriptor, with nobody waiting for it.
#[derive(Debug)]
pub enum Work {
    /// These bytes are written.
    Write(Write),
    /// The connection is shut down, in that direction.
    Shutdown(i32),
    /// The descriptor is closed.
    Close,
}

/// Bytes to be written.
#[derive(Debug)]
pub struct Write {
    bytes: Vec<u8>,
    done: usize,
    position: u64,
    /// One message, which is neither joined with others nor written in parts.
    is_message: bool,
    /// It waits until the descriptor takes bytes.
    polls: bool,
}

impl Write {
    /// Bytes for a position of a file, or the [`CURRENT`] one.
    pub fn new(bytes: Vec<u8>, position: u64, is_message: bool) -> Self {
        Self {
            bytes,
            done: 0,
            position,
            is_message,
            polls: false,
        }
    }

    /// Appends bytes that were given later, if that makes no difference.
    fn join(&mut self, other: &Self) -> bool {
        let joins = !(self.is_message || other.is_message)
            && (self.position, other.position) == (CURRENT, CURRENT)
            && self.bytes.len() + other.bytes.len() <= JOINED;
        if joins {
            self.bytes.extend_from_slice(&other.bytes);
        }
        joins
    }

    /// Takes the result of an operation; `Ok(true)` if all is written, or the errno.
    fn progress(&mut self, result: i32) -> Result<bool, i32> {
        if std::mem::take(&mut self.polls) && result >= 0 {
            return Ok(false);
        }
        match result {
            0 if self.bytes.len() > self.done => Err(libc::EIO),
            count if count >= 0 => {
                self.done += count as usize;
                Ok(self.is_message || self.done >= self.bytes.len())
            }
            // A descriptor in non-blocking mode that the kernel does not wait for by itself.
            error if error == -libc::EAGAIN => {
                self.polls = true;
                Ok(false)
            }
            error if error == -libc::EINTR => Ok(false),
            error => Err(-error),
        }
    }
}

/// Work that is under way.
#[derive(Debug)]
pub struct Job {
    /// The descriptor.
    pub fd: RawFd,
    /// What is done.
    pub work: Work,
    /// Which of the files that have had this number it is about.
    generation: u32,
    /// It has its turn in the line.
    has_turn: bool,
}

impl Job {
    /// Has it done to another descriptor of the same file, if it is about this one.
    pub fn rename(&mut self, fd: RawFd, new: RawFd, (old, generation): (u32, u32)) {
        if self.fd == fd && self.generation == old {
            (self.fd, self.generation) = (new, generation);
        }
    }

    /// The operation that does it, or the next part of it. It points to the job's own bytes.
    pub fn entry(&self) -> Entry {
        let fd = self.fd;
        match &self.work {
            Work::Write(write) if write.polls => {
                let events = libc::POLLOUT as u32;
                operations::Poll { fd, events }.entry()
            }
            Work::Write(write) => {
                let memory = &write.bytes[write.done..];
                let offset = match write.position {
                    CURRENT => CURRENT,
                    position => position + write.done as u64,
                };
                operations::Write { fd, memory, offset }.entry()
            }
            Work::Shutdown(how) => operations::Shutdown { fd, how: *how }.entry(),
            Work::Close => operations::Close { fd }.entry(),
        }
    }
}

#[derive(Debug)]
enum Turn {
    Task(WaitId),
    Work(Work),
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Holder {
    #[default]
    Nobody,
    Task(TaskId),
    Work,
}

#[derive(Debug, Default)]
struct Line {
    holder: Holder,
    waiting: VecDeque<Turn>,
    /// The errno of work that has failed, until somebody is told, and the file it was about: the number may be another
    /// one's by then.
    error: i32,
    file: Option<Identity>,
    generation: u32,
}

impl Line {
    fn has_work(&self) -> bool {
        self.holder == Holder::Work
            || (self.waiting.iter()).any(|turn| matches!(turn, Turn::Work(_)))
    }

    fn next(&mut self, fd: RawFd) -> Next {
        self.holder = Holder::Nobody;
        match self.waiting.pop_front() {
            None => Next::Nothing,
            Some(Turn::Task(wait)) => {
                self.holder = Holder::Task(wait.task);
                Next::Wake(wait)
            }
            Some(Turn::Work(work)) => {
                self.holder = Holder::Work;
                Next::Start(Box::new(Job {
                    fd,
                    work,
                    generation: self.generation,
                    has_turn: true,
                }))
            }
        }
    }
}

/// The device and inode of an open file.
pub type Identity = (libc::dev_t, libc::ino_t);

/// Which file a descriptor is; `None` for a closed one.
pub fn identity(fd: RawFd) -> Option<Identity> {
    // SAFETY: an all-zero stat is valid, and fstat fills it or fails.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        (libc::fstat(fd, &mut status) == 0).then_some((status.st_dev, status.st_ino))
    }
}

/// Whose turn it is after somebody's.
#[derive(Debug)]
pub enum Next {
    /// Nobody's who waits.
    Nothing,
    /// The task's that is in this wait.
    Wake(WaitId),
    /// That of this work.
    Start(Box<Job>),
}

/// The lines of one driver's descriptors.
#[derive(Debug, Default)]
pub struct Lines {
    lines: ByDescriptor<Line>,
    works: usize,
    /// Whether there may be an error that nobody was told of.
    failed: bool,
}

impl Lines {
    /// Gives a task its turn, if nobody writes and nobody waits to.
    #[inline]
    pub fn begin(&mut self, fd: RawFd, task: TaskId) -> bool {
        match self.lines.of(fd) {
            Some(line) if line.holder == Holder::Nobody => {
                line.holder = Holder::Task(task);
                true
            }
            Some(_) => false,
            // No file has this number, which the kernel will say.
            None => true,
        }
    }

    /// Has a task wait for its turn: it is woken when that has come, or when the file is closed.
    pub fn wait(&mut self, fd: RawFd, wait: WaitId) {
        if let Some(line) = self.lines.of(fd) {
            line.waiting.push_back(Turn::Task(wait));
        }
    }

    /// Whether it is a task's turn.
    pub fn is_turn(&self, fd: RawFd, task: TaskId) -> bool {
        (self.lines.get(fd)).is_some_and(|line| line.holder == Holder::Task(task))
    }

    /// Ends the turn of a task, if it has it.
    #[inline]
    pub fn end(&mut self, fd: RawFd, task: TaskId) -> Next {
        match self.lines.get_mut(fd) {
            Some(line) if line.holder == Holder::Task(task) => {
                if line.waiting.is_empty() {
                    line.holder = Holder::Nobody;
                    return Next::Nothing;
                }
                line.next(fd)
            }
            _ => Next::Nothing,
        }
    }

    /// Takes a task out of the line that does not wait any more; if its turn has come meanwhile, it ends.
    pub fn leave(&mut self, fd: RawFd, wait: WaitId) -> Next {
        if let Some(line) = self.lines.get_mut(fd) {
            line.waiting
                .retain(|turn| !matches!(turn, Turn::Task(waiting) if *waiting == wait));
        }
        self.end(fd, wait.task)
    }

    /// Adds work to the end of the line.
    pub fn add(&mut self, fd: RawFd, work: Work) -> Next {
        let Some(line) = self.lines.of(fd) else {
            return Next::Nothing;
        };
        if let (Some(Turn::Work(Work::Write(last))), Work::Write(write)) =
            (line.waiting.back_mut(), &work)
        {
            if last.join(write) {
                return Next::Nothing;
            }
        }
        self.works += 1;
        line.waiting.push_back(Turn::Work(work));
        match line.holder {
            Holder::Nobody => line.next(fd),
            _ => Next::Nothing,
        }
    }

    /// Work that is done at once, beside the line.
    pub fn aside(&mut self, fd: RawFd, work: Work) -> Next {
        let Some(line) = self.lines.of(fd) else {
            return Next::Nothing;
        };
        self.works += 1;
        Next::Start(Box::new(Job {
            fd,
            work,
            generation: line.generation,
            has_turn: false,
        }))
    }

    /// Takes the result of a job's operation: the job goes on, or the next turn begins.
    pub fn worked(&mut self, mut job: Box<Job>, result: i32) -> Next {
        let done = match &mut job.work {
            Work::Write(write) => {
                if write.position == CURRENT && result > 0 && !write.polls {
                    let moved = result as usize;
                    if moved < write.bytes.len() - write.done {
                        position::catch_up(job.fd, moved);
                    }
                }
                write.progress(result)
            }
            // The peer has gone, which whoever reads is told.
            Work::Shutdown(_) if result == -libc::ENOTCONN => Ok(true),
            Work::Shutdown(_) | Work::Close if result < 0 => Err(-result),
            _ => Ok(true),
        };
        if let Ok(false) = done {
            return Next::Start(job);
        }
        self.works -= 1;
        let Some(line) =
            (self.lines.get_mut(job.fd)).filter(|line| line.generation == job.generation)
        else {
            return Next::Nothing;
        };
        if let Err(errno) = done {
            (line.error, line.file) = (errno, identity(job.fd));
            self.failed = true;
            if matches!(&job.work, Work::Write(write) if !write.is_message) {
                // Not what follows a gap.
                let before = line.waiting.len();
                line.waiting
                    .retain(|turn| !matches!(turn, Turn::Work(Work::Write(_))));
                self.works -= before - line.waiting.len();
            }
        }
        if job.has_turn {
            line.next(job.fd)
        } else {
            Next::Nothing
        }
    }

    /// Whether there is work for a descriptor that is not done.
    pub fn has_work(&self, fd: RawFd) -> bool {
        self.works > 0 && self.lines.get(fd).is_some_and(Line::has_work)
    }

    /// How much work is not done.
    pub fn works(&self) -> usize {
        self.works
    }

    /// Takes the errno of work that has failed.
    #[inline]
    pub fn take_error(&mut self, fd: RawFd) -> Option<i32> {
        if !self.failed {
            return None;
        }
        let line = self.lines.get_mut(fd)?;
        match std::mem::take(&mut line.error) {
            0 => None,
            errno => (line.file == identity(fd)).then_some(errno),
        }
    }

    /// Whether there may be an errno to be taken.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Sends the tasks away: the descriptor is being closed, once the work is done that was given before. Returns
    /// their waits, and what goes on if one of them was writing.
    pub fn dismiss(&mut self, fd: RawFd) -> (Vec<WaitId>, Next) {
        let Some(line) = self.lines.get_mut(fd) else {
            return (Vec::new(), Next::Nothing);
        };
        let mut waits = Vec::new();
        line.waiting.retain(|turn| match turn {
            Turn::Task(wait) => {
                waits.push(*wait);
                false
            }
            Turn::Work(_) => true,
        });
        let next = match line.holder {
            Holder::Task(_) => line.next(fd),
            _ => Next::Nothing,
        };
        (waits, next)
    }

    /// Begins a new line for whoever has the number next. Returns the waits of the tasks that stood in the old one;
    /// its work is not done.
    pub fn forget(&mut self, fd: RawFd) -> Vec<WaitId> {
        let Some(line) = self.lines.get_mut(fd) else {
            return Vec::new();
        };
        line.holder = Holder::Nobody;
        line.error = 0;
        line.generation = line.generation.wrapping_add(1);
        let mut waits = Vec::new();
        for turn in line.waiting.drain(..) {
            match turn {
                Turn::Task(wait) => waits.push(wait),
                Turn::Work(_) => self.works -= 1,
            }
        }
        waits
    }

    /// Has the work for a descriptor done to another one, of the same file. Returns the generations of both, for the
    /// job that is under way.
    pub fn rename(&mut self, fd: RawFd, new: RawFd) -> Option<(u32, u32)> {
        let line = self.lines.get_mut(fd)?;
        let waiting = std::mem::take(&mut line.waiting);
        let holder = std::mem::take(&mut line.holder);
        let old = line.generation;
        let line = self.lines.of(new)?;
        (line.waiting, line.holder) = (waiting, holder);
        Some((old, line.generation))
    }

    /// The descriptors whose work waits for a task to end its turn.
    pub fn behind_tasks(&mut self) -> Vec<RawFd> {
        if self.works == 0 {
            return Vec::new();
        }
        self.lines
            .iter_mut()
            .filter(|(_, line)| matches!(line.holder, Holder::Task(_)) && line.has_work())
            .map(|(fd, _)| fd)
            .collect()
    }

    /// Gives up all work that has not begun; returns the descriptors that were to be closed.
    pub fn give_up(&mut self) -> Vec<RawFd> {
        let mut closes = Vec::new();
        if self.works == 0 {
            return closes;
        }
        for (fd, line) in self.lines.iter_mut() {
            line.waiting.retain(|turn| match turn {
                Turn::Task(_) => true,
                Turn::Work(work) => {
                    self.works -= 1;
                    if matches!(work, Work::Close) {
                        closes.push(fd);
                    }
                    false
                }
            });
        }
        closes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::slab::Key;

    fn wait(index: u32) -> WaitId {
        let generation = 0;
        WaitId {
            task: Key { index, generation },
            serial: u64::from(index),
        }
    }

    fn write(bytes: &[u8]) -> Work {
        Work::Write(Write::new(bytes.to_vec(), CURRENT, false))
    }

    fn started(next: Next) -> Box<Job> {
        match next {
            Next::Start(job) => job,
            other => panic!("{other:?}"),
        }
    }

    fn left(job: &Job) -> &[u8] {
        match &job.work {
            Work::Write(write) => &write.bytes[write.done..],
            _ => &[],
        }
    }

    #[test]
    fn tasks_take_turns_in_the_order_they_came() {
        let mut lines = Lines::default();
        assert!(lines.begin(3, wait(1).task));
        assert!(!lines.begin(3, wait(2).task));
        assert!(lines.begin(4, wait(2).task));
        (2..5).for_each(|index| lines.wait(3, wait(index)));
        assert!(matches!(lines.leave(3, wait(3)), Next::Nothing));
        // It is not its turn.
        assert!(matches!(lines.end(3, wait(2).task), Next::Nothing));
        assert!(matches!(lines.end(3, wait(1).task), Next::Wake(next) if next == wait(2)));
        assert!(lines.is_turn(3, wait(2).task));
        assert!(matches!(lines.leave(3, wait(2)), Next::Wake(next) if next == wait(4)));
        assert!(matches!(lines.end(3, wait(4).task), Next::Nothing));
        assert!(lines.begin(3, wait(1).task));
    }

    #[test]
    fn a_short_write_goes_on_and_small_ones_that_wait_are_joined() {
        let mut lines = Lines::default();
        let job = started(lines.add(3, write(b"hello")));
        assert!(matches!(lines.add(3, write(b"a")), Next::Nothing));
        assert!(matches!(lines.add(3, write(b"b")), Next::Nothing));
        assert!(matches!(lines.add(3, Work::Shutdown(1)), Next::Nothing));
        assert!(matches!(lines.add(3, write(b"c")), Next::Nothing));
        assert!(!lines.begin(3, wait(1).task));
        let job = started(lines.worked(job, 2));
        assert_eq!(left(&job), b"llo");
        let job = started(lines.worked(job, -libc::EINTR));
        let job = started(lines.worked(job, -libc::EAGAIN));
        let job = started(lines.worked(job, i32::from(libc::POLLOUT)));
        let job = started(lines.worked(job, 3));
        assert_eq!(left(&job), b"ab");
        let job = started(lines.worked(job, 2));
        assert!(matches!(job.work, Work::Shutdown(1)));
        let job = started(lines.worked(job, 0));
        assert_eq!(left(&job), b"c");
        assert!(matches!(lines.worked(job, 1), Next::Nothing));
        assert!(!lines.has_work(3));
        assert_eq!(lines.take_error(3), None);
    }

    #[test]
    fn what_is_done_aside_takes_no_turn_and_tells_its_error() {
        let mut lines = Lines::default();
        assert!(lines.begin(3, wait(1).task));
        let job = started(lines.aside(3, Work::Shutdown(0)));
        assert!(!lines.has_work(3));
        assert!(matches!(lines.worked(job, -libc::ENOTSOCK), Next::Nothing));
        assert!(lines.is_turn(3, wait(1).task));
        assert_eq!(
            (lines.take_error(3), lines.works()),
            (Some(libc::ENOTSOCK), 0)
        );
    }

    #[test]
    fn nothing_follows_a_gap_but_the_close() {
        let mut lines = Lines::default();
        let job = started(lines.add(3, write(b"lost")));
        lines.add(3, Work::Shutdown(1));
        lines.add(3, write(b"late"));
        lines.add(3, Work::Close);
        let job = started(lines.worked(job, -libc::EPIPE));
        assert!(matches!(job.work, Work::Shutdown(1)));
        let job = started(lines.worked(job, -libc::ENOTCONN));
        assert!(matches!(job.work, Work::Close));
        assert_eq!(lines.take_error(3), Some(libc::EPIPE));
        assert_eq!(lines.take_error(3), None);
    }

    #[test]
    fn messages_are_neither_joined_nor_lost_for_another_ones_error() {
        let mut lines = Lines::default();
        let message = |bytes: &[u8]| Work::Write(Write::new(bytes.to_vec(), CURRENT, true));
        let job = started(lines.add(3, message(b"one")));
        lines.add(3, message(b"two"));
        lines.add(3, message(b""));
        let job = started(lines.worked(job, -libc::ECONNREFUSED));
        assert_eq!(left(&job), b"two");
        let job = started(lines.worked(job, 3));
        assert_eq!(left(&job), b"");
        assert!(matches!(lines.worked(job, 0), Next::Nothing));
        assert_eq!(lines.take_error(3), Some(libc::ECONNREFUSED));
    }

    #[test]
    fn a_close_sends_tasks_away_and_work_on() {
        let mut lines = Lines::default();
        assert!(lines.begin(3, wait(1).task));
        lines.wait(3, wait(2));
        lines.add(3, write(b"before"));
        let (waits, next) = lines.dismiss(3);
        assert_eq!(waits, [wait(2)]);
        let job = started(next);
        assert!(matches!(lines.end(3, wait(1).task), Next::Nothing));
        lines.add(3, Work::Close);
        lines.wait(3, wait(4));
        let job = started(lines.worked(job, 6));
        assert!(matches!(job.work, Work::Close));
        assert_eq!(lines.forget(3), [wait(4)]);
        // The number is another file's.
        assert!(lines.begin(3, wait(5).task));
        assert!(matches!(lines.worked(job, 0), Next::Nothing));
        assert!(lines.is_turn(3, wait(5).task));
        assert_eq!(lines.works(), 0);
    }
}
