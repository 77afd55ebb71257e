//! Waiting until descriptors are ready, by the ring's poll, and by poll(2) on a thread where that falls short.

use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use uringmachine_runtime::operations::Poll;
use uringmachine_runtime::{OpKey, TaskId};

use super::operate::Failure;
use super::trace::For;
use super::wait::Ended;
use super::{thread_call, Machine};
use crate::os::fd::{self, Fd};
use crate::ruby::Raise;

/// What is waited for by the ring for some events of poll(2). Urgent data wakes with the priority band's bit (tcp.c,
/// `sock_def_readable`), and never who waits for POLLPRI alone.
pub fn wakes_for(events: u32) -> u32 {
    if events & libc::POLLPRI as u32 != 0 {
        events | libc::POLLRDBAND as u32
    } else {
        events
    }
}

/// What the ring answers to a poll of what tells nobody of its changes (a regular file, for urgent data: io_uring/poll.c,
/// `__io_arm_poll_handler`). poll(2) waits there.
pub const NEVER_WAKES: i32 = -libc::EINVAL;

/// What of the three events a poll's answer means, as Ruby's own wait has it (thread.c, rb_thread_io_wait): a hang-up
/// can be read, and an error can be read and written.
pub fn ready_events(answer: i32) -> i64 {
    const FAILED: i16 = libc::POLLERR | libc::POLLNVAL;
    const READS: i16 = libc::POLLIN | libc::POLLRDNORM | libc::POLLHUP | FAILED;
    const WRITES: i16 = libc::POLLOUT | libc::POLLWRNORM | libc::POLLWRBAND | FAILED;
    let mut ready = i64::from(answer & i32::from(libc::POLLPRI));
    for (bits, event) in [(READS, libc::POLLIN), (WRITES, libc::POLLOUT)] {
        if answer & i32::from(bits) != 0 {
            ready |= i64::from(event);
        }
    }
    ready
}

/// Waits until one of `events` is there, or the descriptor has hung up or failed: the events, or 0 at the deadline.
pub fn wait_ready(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    events: i64,
    deadline: Option<u64>,
) -> Result<i64, Raise> {
    let events = wakes_for(events as u32);
    let mut poll = Poll { fd, events };
    loop {
        match machine.ask(me, &mut poll, deadline) {
            Ok(answer) if answer >= 0 => match ready_events(answer) {
                0 => {}
                ready => return Ok(ready),
            },
            Ok(error) if error != NEVER_WAKES => return Err(Raise::errno(-error)),
            Ok(_) => {}
            Err(Failure::Timeout) => return Ok(0),
            Err(Failure::Raise(raise)) => return Err(raise),
            Err(Failure::Scheduled(_)) => continue,
        }
        match poll_on_thread(machine, me, &[(fd, events)], deadline) {
            Ok(Some(answers)) => match ready_events(answers[0]) {
                0 => {}
                ready => return Ok(ready),
            },
            Ok(None) => return Ok(0),
            Err(Failure::Raise(raise)) => return Err(raise),
            Err(_) => {}
        }
    }
}

/// poll(2), on a thread: the answers, or `None` at the deadline. The ring's own poll ends when the peer will send no more
/// (POLLRDHUP), whatever it is for, and would do so again at once (io_uring/poll.c, IO_POLL_UNMASK).
#[cold]
pub fn poll_on_thread(
    machine: &Machine,
    me: TaskId,
    list: &[(RawFd, u32)],
    deadline: Option<u64>,
) -> Result<Option<Vec<i32>>, Failure> {
    let mut files = Vec::with_capacity(list.len());
    for (fd, _) in list {
        files.push(Fd(*fd).duplicate()?);
    }
    let mut polls: Vec<libc::pollfd> = (files.iter().zip(list))
        .map(|(file, (_, events))| fd::entry(file.as_raw_fd(), *events as i16))
        .collect();
    let answers = Arc::new(Mutex::new(Vec::new()));
    let told = Arc::clone(&answers);
    let job = move || {
        let count = match fd::poll_until(&mut polls, deadline) {
            Ok(count) => count,
            Err(errno) => return errno.negative(),
        };
        let revents = polls.iter().map(|poll| i32::from(poll.revents)).collect();
        *told.lock().unwrap_or_else(PoisonError::into_inner) = revents;
        // They are kept open by the job.
        let _ = &files;
        count
    };
    // The close of one of the descriptors ends the wait, though the thread has others.
    for (fd, _) in list {
        machine.parts().waits.begin(*fd, me, None);
    }
    let result = thread_call::call(machine, me, job, || {});
    for (fd, _) in list {
        machine.parts().waits.end(*fd, me);
    }
    match result? {
        0 => Ok(None),
        count if count > 0 => Ok(Some(std::mem::take(
            &mut *answers.lock().unwrap_or_else(PoisonError::into_inner),
        ))),
        errno => Err(Raise::errno(-errno).into()),
    }
}

/// What of a poll's answer makes a descriptor ready for some events, as select(2) has it: a hang-up is only readable,
/// and an error is nothing exceptional.
pub fn selects(events: u32) -> i32 {
    const SETS: [(i16, i16); 3] = [
        (libc::POLLIN, libc::POLLIN | libc::POLLHUP | libc::POLLERR),
        (libc::POLLOUT, libc::POLLOUT | libc::POLLERR),
        (libc::POLLPRI, libc::POLLPRI),
    ];
    SETS.iter()
        .filter(|(event, _)| events & *event as u32 != 0)
        .fold(0, |bits, (_, ready)| bits | i32::from(*ready))
}

/// Polls every descriptor until one is ready; false at the deadline. `counts` is what of a poll's answer makes one
/// ready for its events. One that is answered by what does not count (a hang-up, where only urgent data are of
/// interest), or that never wakes anybody, is polled no more: it would be answered so for ever.
pub fn wait_for_any(
    machine: &Machine,
    me: TaskId,
    list: &[(i32, u32)],
    deadline: Option<u64>,
    counts: impl Fn(u32) -> i32,
) -> Result<bool, Failure> {
    let mut list = list.to_vec();
    loop {
        let Some(answers) = poll_all(machine, me, &list, deadline)? else {
            return Ok(false);
        };
        if list.is_empty() || answers.is_empty() || drop_mistaken(&mut list, &answers, &counts) {
            return Ok(true);
        }
        // What is left and was answered is no news: see `poll_on_thread`.
        let is_old = |answer: &(i32, u32, i32)| list.contains(&(answer.0, answer.1));
        if answers.iter().any(is_old) {
            let Some(answers) = poll_on_thread(machine, me, &list, deadline)? else {
                return Ok(false);
            };
            let answers: Answers = (list.iter().zip(answers))
                .filter(|(_, answer)| *answer != 0)
                .map(|((fd, events), answer)| (*fd, *events, answer))
                .collect();
            if drop_mistaken(&mut list, &answers, &counts) {
                return Ok(true);
            }
        }
    }
}

/// Takes out of a list what has hung up, or failed, without that counting, and what never wakes anybody; says whether
/// anything is ready.
fn drop_mistaken(
    list: &mut Vec<(i32, u32)>,
    answers: &Answers,
    counts: impl Fn(u32) -> i32,
) -> bool {
    const ALWAYS: i32 = (libc::POLLHUP | libc::POLLERR) as i32;
    let mut ready = false;
    for (fd, events, answer) in answers {
        if (*answer < 0 && *answer != NEVER_WAKES)
            || (*answer >= 0 && answer & counts(*events) != 0)
        {
            ready = true;
        } else if *answer == NEVER_WAKES || answer & ALWAYS != 0 {
            list.retain(|entry| *entry != (*fd, *events));
        }
    }
    ready
}

/// What the polls that are over have answered.
type Answers = Vec<(i32, u32, i32)>;

/// Polls until something is answered; `None` at the deadline. Polls that are left are cancelled: they touch no memory.
fn poll_all(
    machine: &Machine,
    me: TaskId,
    list: &[(i32, u32)],
    deadline: Option<u64>,
) -> Result<Option<Answers>, Failure> {
    let wait = machine.begin_wait(me)?;
    let mut operations: Vec<(i32, u32, OpKey)> = Vec::with_capacity(list.len());
    let mut failed = None;
    {
        let mut parts = machine.parts();
        for (fd, events) in list {
            let (fd, events) = (*fd, *events);
            let poll = Poll {
                fd,
                events: wakes_for(events),
            };
            match parts.driver.start_without_memory(poll, wait.id()) {
                Ok(op) => {
                    parts.waits.begin(fd, me, Some(op));
                    operations.push((fd, events, op));
                }
                Err(error) => failed = error.raw_os_error(),
            }
        }
    }
    machine.awaits(
        me,
        match operations[..] {
            [(_, _, op)] => For::Operation(op),
            _ => For::Word("select"),
        },
    );
    let woken = match failed {
        None => Some(wait.until(deadline)),
        Some(_) => None,
    };
    let mut answers = Answers::new();
    {
        let mut parts = machine.parts();
        for (fd, events, op) in operations {
            parts.waits.end(fd, me);
            match parts.driver.take(op) {
                Some(completion) => answers.push((fd, events, completion.result)),
                None => drop(parts.driver.abandon(op)),
            }
        }
    }
    let Some(woken) = woken else {
        return Err(Raise::errno(failed.unwrap_or(libc::EAGAIN)).into());
    };
    match wait.ended(woken)? {
        Ended::Woken => Ok(Some(answers)),
        Ended::Deadline => Ok(None),
        Ended::Scheduled(value) => Err(Failure::Scheduled(value)),
    }
}
