//! Faults by chance.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::os::fd::RawFd;

use io_uring::squeue::Entry;
use io_uring::{cqueue, opcode, CompletionQueue};

use super::plan::{name_of, Chance, Plan};
use super::{Attempt, Enter};
use crate::operation::{code_of, descriptor_of};

/// Those of one ring.
#[derive(Debug)]
pub struct Faults {
    chance: Option<(&'static Plan, Chance)>,
    /// What the kernel has completed and nobody may see yet.
    held: VecDeque<cqueue::Entry>,
    ready: VecDeque<cqueue::Entry>,
    /// Operations that do nothing, by their `user_data`, with their result.
    refused: Vec<(u64, i32)>,
    /// How many enters the first of `held` has seen.
    age: u32,
}

/// How many enters a completion is held for at most.
const OLD: u32 = 8;

impl Faults {
    /// Those of the ring that is being set up.
    pub fn of_a_ring() -> Self {
        Self {
            chance: Plan::current().map(|plan| (plan, Chance::new(plan.seed))),
            held: VecDeque::new(),
            ready: VecDeque::new(),
            refused: Vec::new(),
            age: 0,
        }
    }

    /// The operation that is submitted: the same, a shorter one, or one that does nothing, and will be said to have failed.
    pub fn submitted(&mut self, entry: Entry) -> Entry {
        let Some((plan, chance)) = &mut self.chance else {
            return entry;
        };
        let submission = Submission(entry);
        let failure = name_of(submission.opcode())
            .and_then(|name| plan.failure(name, chance))
            .or_else(|| (submission.takes_buffers() && chance.one_in(8)).then_some(libc::ENOBUFS));
        if let Some(errno) = failure {
            let user_data = submission.user_data();
            self.refused.push((user_data, -errno));
            return opcode::Nop::new().build().user_data(user_data);
        }
        match submission.attempt() {
            None => submission.0,
            Some(attempt) => {
                let length = submission.length() as usize;
                let length = shorter(plan, chance, attempt, submission.descriptor(), length);
                submission.with_length(length as u32)
            }
        }
    }

    /// What an enter does; `None` if nothing (EINTR, EAGAIN, EBUSY). Less may be submitted than is asked for: then the
    /// kernel does not wait either (io_uring_enter(2)). A wait may end at once (ETIME).
    pub fn entering(&mut self, mut enter: Enter) -> Option<Enter> {
        let is_held = self.holds();
        let Some((_, chance)) = &mut self.chance else {
            return Some(enter);
        };
        self.age += 1;
        if is_held {
            enter.want = 0;
        }
        match chance.below(16) {
            0 => return None,
            1..=3 if enter.to_submit > 0 => {
                enter.to_submit = chance.below(u64::from(enter.to_submit)) as u32;
                enter.want = 0;
            }
            4 if enter.want > 0 => enter.timeout = Some(0),
            _ => {}
        }
        Some(enter)
    }

    /// Whether completions are kept back.
    pub fn holds(&self) -> bool {
        !self.held.is_empty() || !self.ready.is_empty()
    }

    /// Whether completions are there to be reaped.
    pub fn has_completions(&self, queue: &CompletionQueue) -> bool {
        self.holds() || !queue.is_empty()
    }

    /// The next completion.
    pub fn reap(&mut self, queue: &mut CompletionQueue) -> Option<cqueue::Entry> {
        if self.chance.is_none() {
            return queue.next();
        }
        if self.ready.is_empty() {
            if self.held.is_empty() {
                self.age = 0;
            }
            self.held.extend(queue);
            self.release();
        }
        let completion = self.ready.pop_front()?;
        let user_data = completion.user_data();
        match self
            .refused
            .iter()
            .position(|(refused, _)| *refused == user_data)
        {
            None => Some(completion),
            Some(place) => Some(failed(user_data, self.refused.swap_remove(place).1)),
        }
    }

    /// Some of what is held, in another order, or none of it, or all.
    fn release(&mut self) {
        let Some((plan, mut chance)) = self.chance.take() else {
            return;
        };
        let mut count = match chance.below(4) {
            _ if self.age >= OLD => self.held.len(),
            0 => 0,
            1 => chance.below(self.held.len() as u64 + 1) as usize,
            _ => self.held.len(),
        };
        while count > 0 {
            let mut place = chance.below(self.held.len() as u64) as usize;
            // What comes before it, and what comes before that.
            while let Some(before) = self.before(place) {
                place = before;
            }
            self.ready.extend(self.held.remove(place));
            count -= 1;
        }
        self.chance = Some((plan, chance));
    }

    /// The first of what is held that the kernel posts before another.
    fn before(&self, place: usize) -> Option<usize> {
        (0..place).find(|before| are_in_order(&self.held[*before], &self.held[place]))
    }
}

/// Whether the kernel posts one of them before the other, always: completions of one operation, and those that name the bytes
/// of provided buffers.
fn are_in_order(one: &cqueue::Entry, other: &cqueue::Entry) -> bool {
    let names_buffer = |entry: &cqueue::Entry| cqueue::buffer_select(entry.flags()).is_some();
    one.user_data() == other.user_data() || names_buffer(one) && names_buffer(other)
}

/// A completion with an errno.
fn failed(user_data: u64, result: i32) -> cqueue::Entry {
    #[repr(C)]
    struct Fields {
        user_data: u64,
        result: i32,
        flags: u32,
    }
    let flags = 0;
    // SAFETY: an Entry is a struct io_uring_cqe, which has these fields (linux/io_uring.h).
    unsafe {
        std::mem::transmute(Fields {
            user_data,
            result,
            flags,
        })
    }
}

/// An entry whose fields are looked at: a struct io_uring_sqe (linux/io_uring.h).
struct Submission(Entry);

impl Submission {
    const MULTISHOT_RECEIVE: u16 = 1 << 1;
    const BUFFER_SELECT: u8 = 1 << 5;

    fn field<T: Copy>(&self, place: usize) -> T {
        // SAFETY: the struct has 64 bytes, of which these are some.
        unsafe {
            let bytes = std::ptr::from_ref(&self.0).cast::<u8>();
            bytes.add(place).cast::<T>().read()
        }
    }

    fn opcode(&self) -> u8 {
        code_of(&self.0)
    }

    fn descriptor(&self) -> RawFd {
        descriptor_of(&self.0)
    }

    fn length(&self) -> u32 {
        self.field(24)
    }

    fn user_data(&self) -> u64 {
        self.field(32)
    }

    fn with_length(mut self, length: u32) -> Entry {
        // SAFETY: as in `field`.
        unsafe {
            let bytes = std::ptr::from_mut(&mut self.0).cast::<u8>();
            bytes.add(24).cast::<u32>().write(length);
        }
        self.0
    }

    /// Whether it reads into provided buffers, again and again.
    fn takes_buffers(&self) -> bool {
        let receives = self.opcode() == opcode::Recv::CODE
            && self.field::<u16>(2) & Self::MULTISHOT_RECEIVE != 0;
        receives || self.opcode() == opcode::ReadMulti::CODE
    }

    /// How it transfers bytes of memory, which may be fewer.
    fn attempt(&self) -> Option<Attempt> {
        if self.field::<u8>(1) & Self::BUFFER_SELECT != 0 {
            return None;
        }
        match self.opcode() {
            opcode::Read::CODE | opcode::ReadFixed::CODE | opcode::Recv::CODE => {
                Some(Attempt::Read)
            }
            opcode::Write::CODE
            | opcode::WriteFixed::CODE
            | opcode::Send::CODE
            | opcode::SendZc::CODE => Some(Attempt::Write),
            _ => None,
        }
    }
}

/// A length that is as likely the same as any other that is not less than the plan's, where bytes stand in a row.
fn shorter(plan: &Plan, chance: &mut Chance, attempt: Attempt, fd: RawFd, length: usize) -> usize {
    let least = plan.least.max(1) as usize;
    if length <= least || chance.one_in(2) || !may_be_short(fd, attempt, length) {
        return length;
    }
    least + chance.below((length - least) as u64) as usize
}

/// Whether the kernel may transfer fewer bytes than are there or than there is room for: of files but those that are read past
/// the page cache, of streams, and of pipes unless the bytes are to stay together (pipe(7), PIPE_BUF).
fn may_be_short(fd: RawFd, attempt: Attempt, length: usize) -> bool {
    // SAFETY: the call writes to what is on this frame.
    let (flags, kind) = unsafe {
        let mut kind: libc::c_int = 0;
        let mut size = size_of::<libc::c_int>() as libc::socklen_t;
        libc::getsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_TYPE,
            (&raw mut kind).cast(),
            &raw mut size,
        );
        (libc::fcntl(fd, libc::F_GETFL), kind)
    };
    let is_direct = flags & libc::O_DIRECT != 0;
    match mode(fd) {
        libc::S_IFREG => !is_direct,
        libc::S_IFIFO => !is_direct && (attempt == Attempt::Read || length > libc::PIPE_BUF),
        libc::S_IFSOCK => kind == libc::SOCK_STREAM,
        _ => false,
    }
}

fn by_thread<T>(use_: impl FnOnce(&'static Plan, &mut Chance) -> T) -> Option<T> {
    thread_local! {
        static CHANCE: RefCell<Option<Chance>> = const { RefCell::new(None) };
    }
    let plan = Plan::current()?;
    Some(
        CHANCE.with_borrow_mut(|chance| {
            use_(plan, chance.get_or_insert_with(|| Chance::new(plan.seed)))
        }),
    )
}

/// How much of a transfer is attempted.
pub fn attempted(attempt: Attempt, fd: RawFd, length: usize) -> usize {
    by_thread(|plan, chance| shorter(plan, chance, attempt, fd, length)).unwrap_or(length)
}

/// Whether an attempt that is made again through the ring is in vain. One that writes is, where writes are cut short too.
pub fn is_in_vain(attempt: Attempt) -> bool {
    by_thread(|plan, chance| {
        chance.one_in(4) && (attempt == Attempt::Read || plan.least < u32::MAX)
    })
    .unwrap_or(false)
}

/// The kind of file that a descriptor is, S_IFREG say; 0 if it is closed.
fn mode(fd: RawFd) -> libc::mode_t {
    // SAFETY: the call writes to what is on this frame.
    unsafe {
        let mut status: libc::stat = std::mem::zeroed();
        match libc::fstat(fd, &raw mut status) {
            0 => status.st_mode & libc::S_IFMT,
            _ => 0,
        }
    }
}

/// Whether a call about the ring itself fails.
///
/// # Errors
/// That of the plan.
pub fn fails(name: &str) -> io::Result<()> {
    let errno = by_thread(|plan, chance| plan.failure(name, chance)).flatten();
    errno.map_or(Ok(()), |errno| Err(io::Error::from_raw_os_error(errno)))
}

/// How many entries a ring has to submit by.
pub fn submission_entries(entries: u32) -> u32 {
    match Plan::current() {
        Some(plan) if plan.is_narrow() => 1,
        _ => entries,
    }
}

/// How many completions it has room for.
pub fn completion_entries(entries: u32) -> u32 {
    match Plan::current() {
        Some(plan) if plan.is_narrow() => 2,
        _ => entries,
    }
}
