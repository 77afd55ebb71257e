//! System calls that wait and that the ring has no operation for.
//!
//! Each has a native thread to itself at once, for it may wait for ever, and a signal interrupts it: one that is given up has
//! ended, and done nothing, when its fiber goes on.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uringmachine_runtime::memory::{Memory, MemoryMut};
use uringmachine_runtime::waker::Waker;
use uringmachine_runtime::{clock, TaskId, WaitId, Wake};

use super::operate::{Failure, InKernel};
use super::trace::For;
use super::wait::{Ended, Wait};
use super::Machine;
use crate::os::fd::Fd;
use crate::os::native_threads::{self, Runner};
use crate::os::per_process::PerProcess;
use crate::os::{self, process};
use crate::ruby::Raise;

/// Nanoseconds between two signals: one that comes before its thread is in the call is lost.
const AGAIN: u64 = 1_000_000;

struct Call {
    given_up: AtomicBool,
    /// Its result is a new descriptor.
    opens: bool,
    /// What it works on, closed when it is over or given up.
    file: Mutex<Option<Arc<OwnedFd>>>,
    state: Mutex<State>,
}

struct State {
    result: Option<i32>,
    /// Whether the result, if it is one, is a descriptor that nobody will be given: it is closed.
    unwanted: bool,
    /// The wait that the end of the call ends.
    wait: WaitId,
}

impl Call {
    fn file(&self) -> MutexGuard<'_, Option<Arc<OwnedFd>>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Enters the result of the call.
    fn end(&self, result: i32, waker: &Waker) {
        let mut state = self.state();
        state.result = Some(result);
        if state.unwanted {
            self.close_opened(result);
        }
        waker.complete(state.wait);
    }

    /// Nobody will take the result; says whether the call is over.
    fn forsake(&self) -> bool {
        let mut state = self.state();
        if let (Some(result), false) = (state.result, state.unwanted) {
            self.close_opened(result);
        }
        state.unwanted = true;
        state.result.is_some()
    }

    fn close_opened(&self, result: i32) {
        if self.opens && result >= 0 {
            let _ = Fd(result).close();
        }
    }
}

/// A call that a fiber waits for.
struct Running {
    /// Where the machine is: only to tell whose call it is.
    machine: usize,
    call: Arc<Call>,
    runner: Arc<Runner>,
}

/// Every call there is. In a child of fork none is.
static RUNNING: PerProcess<Mutex<Vec<Running>>> = PerProcess::new();

fn running() -> MutexGuard<'static, Vec<Running>> {
    RUNNING.get().lock().unwrap_or_else(PoisonError::into_inner)
}

fn place_of(machine: &Machine) -> usize {
    std::ptr::from_ref(machine).addr()
}

/// Has a call on the list while it lives: a fiber that never goes on does not take it off.
struct Listed(Arc<Call>);

impl Listed {
    fn new(machine: &Machine, call: &Arc<Call>, runner: &Arc<Runner>) -> Self {
        running().push(Running {
            machine: place_of(machine),
            call: Arc::clone(call),
            runner: Arc::clone(runner),
        });
        Self(Arc::clone(call))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        running().retain(|entry| !Arc::ptr_eq(&entry.call, &self.0));
    }
}

/// Gives up the calls that fibers of a machine wait for which go on no more: their threads end, and with them the
/// descriptors that these have.
pub fn give_up_all(machine: &Machine) {
    let mut left = Vec::new();
    running().retain_mut(|entry| {
        let is_its = entry.machine == place_of(machine);
        if is_its {
            left.push((Arc::clone(&entry.call), Arc::clone(&entry.runner)));
        }
        !is_its
    });
    for _ in 0..ATTEMPTS {
        left.retain(|(call, runner)| {
            call.given_up.store(true, Ordering::Release);
            call.file().take();
            let is_over = call.forsake();
            if !is_over {
                runner.interrupt();
            }
            !is_over
        });
        if left.is_empty() {
            return;
        }
        std::thread::sleep(std::time::Duration::from_nanos(AGAIN));
    }
}

/// How often a thread is interrupted whose fiber goes on no more: what cannot be interrupted ends by itself.
const ATTEMPTS: usize = 20;

/// Makes a system call on a thread and waits for its end; returns its result, or -errno. `job` is repeated
/// when a signal interrupts it. A call that won the race against an exception keeps its result, but if that
/// cannot be returned, `undo` is called.
pub fn call(
    machine: &Machine,
    me: TaskId,
    mut job: impl FnMut() -> i32 + Send + 'static,
    undo: impl FnOnce(),
) -> Result<i32, Failure> {
    call_with(machine, me, How::default(), move |_| job(), |_| undo())
}

/// As [`call`], of a call that is made though the fiber is to raise: it is interrupted then, and that is raised after it.
pub fn call_anyway(
    machine: &Machine,
    me: TaskId,
    mut job: impl FnMut() -> i32 + Send + 'static,
) -> Result<i32, Failure> {
    let how = How {
        anyway: true,
        ..How::default()
    };
    call_with(machine, me, how, move |_| job(), |_| {})
}

/// As [`call`], for a call whose result is a new descriptor, which is closed if nobody can be given it.
pub fn open(
    machine: &Machine,
    me: TaskId,
    mut job: impl FnMut() -> i32 + Send + 'static,
) -> Result<i32, Failure> {
    let opened = Arc::new(AtomicI32::new(-1));
    let told = Arc::clone(&opened);
    let job = move |_| {
        let result = job();
        told.store(result, Ordering::Release);
        result
    };
    let undo = |_| {
        let _ = Fd(opened.load(Ordering::Acquire)).close();
    };
    let how = How {
        opens: true,
        ..How::default()
    };
    call_with(machine, me, how, job, undo)
}

/// How a call is made.
#[derive(Default)]
struct How {
    /// The descriptor for it.
    file: Option<OwnedFd>,
    /// Its result is a new descriptor.
    opens: bool,
    /// It is made though its fiber is to raise.
    anyway: bool,
}

impl How {
    fn on(file: OwnedFd) -> Self {
        Self {
            file: Some(file),
            ..Self::default()
        }
    }
}

/// As [`call`].
fn call_with(
    machine: &Machine,
    me: TaskId,
    how: How,
    mut job: impl FnMut(RawFd) -> i32 + Send + 'static,
    undo: impl FnOnce(RawFd),
) -> Result<i32, Failure> {
    let How {
        file,
        opens,
        anyway,
    } = how;
    let number = file.as_ref().map_or(-1, AsRawFd::as_raw_fd);
    let waker = machine.parts().driver.waker().cloned();
    let Some(waker) = waker else {
        return Ok(-libc::EBADF);
    };
    let mut first = machine.take_pending(me);
    if !anyway {
        if let Some(raise) = first {
            return Err(raise.into());
        }
    }
    let mut wait = machine.begin_wait_anyway(me);
    machine.awaits(me, For::Word("worker thread"));
    let call = Arc::new(Call {
        given_up: AtomicBool::new(false),
        opens,
        file: Mutex::new(file.map(Arc::new)),
        state: Mutex::new(State {
            result: None,
            unwanted: false,
            wait: wait.id(),
        }),
    });
    let worker = Arc::clone(&call);
    let begun = native_threads::run(move || {
        // It stays open while the call runs, also if it is given up.
        let file = worker.file().clone();
        let mut result = job(number);
        // A signal that was for the thread's last call is no reason to end this one.
        while result == -libc::EINTR && !worker.given_up.load(Ordering::Acquire) {
            result = job(number);
        }
        // What the job owns goes before anybody learns of its end.
        drop(job);
        drop(file);
        worker.end(result, &waker);
    });
    let runner = match begun {
        Ok(runner) => runner,
        Err(errno) => {
            if let Some(raise) = first {
                machine.parts().keep_raise(me, raise)?;
            }
            return Ok(errno.negative());
        }
    };
    let listed = Listed::new(machine, &call, &runner);
    let mut woken = Ok(Wake::Interrupt);
    if first.is_none() {
        woken = match wait.suspend() {
            Ok(wake) => Ok(wake),
            Err(raise) => {
                first = Some(raise);
                Ok(Wake::Interrupt)
            }
        };
    }
    let is_over = first.is_none() && matches!(woken, Ok(Wake::Complete));
    let (result, second) = finish(machine, me, &mut wait, &call, &runner);
    drop(listed);
    let ended = match (first, second) {
        (None, None) if result >= 0 || is_over => {
            if !is_over {
                machine.parts().drop_values(me);
            }
            Ok(result)
        }
        (None, None) => match wait.ended(woken) {
            Ok(Ended::Scheduled(value)) => Err(Failure::Scheduled(value)),
            Ok(_) => Ok(-libc::EINTR),
            Err(raise) => Err(raise.into()),
        },
        (first, second) => {
            if result >= 0 {
                undo(number);
            }
            Err(Failure::Raise(match first {
                Some(first) => machine.first_of(me, first, second),
                None => second.unwrap_or_else(|| Raise::errno(libc::EINTR)),
            }))
        }
    };
    // The thread may not have let go of the call yet.
    drop(call.file().take());
    ended
}

/// The result of a call; one that still runs is given up, and waited for whatever is raised meanwhile.
fn finish(
    machine: &Machine,
    me: TaskId,
    wait: &mut Wait,
    call: &Call,
    runner: &Runner,
) -> (i32, Option<Raise>) {
    let mut second = None;
    loop {
        if machine.is_forked() {
            // The thread is the parent's.
            return (-libc::EINTR, second);
        }
        {
            let mut state = call.state();
            if let Some(result) = state.result {
                machine.parts().waiter(me).draining = false;
                return (result, second);
            }
            state.wait = wait.renew();
        }
        machine.parts().waiter(me).draining = true;
        call.given_up.store(true, Ordering::Release);
        runner.interrupt();
        if let Err(raise) = wait.until(Some(clock::now().saturating_add(AGAIN))) {
            second = Some(raise);
        }
    }
}

/// Makes a call on a descriptor that may take long, off the machine's thread.
pub fn call_on(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    job: impl Fn(RawFd) -> i32 + Send + 'static,
) -> Result<i32, Failure> {
    let file = Fd(fd).duplicate()?;
    call_with(machine, me, How::on(file), job, |_| {})
}

/// Memory that a thread works on while its fiber keeps it.
#[derive(Clone, Copy)]
pub struct Lent {
    pointer: *mut u8,
    length: u32,
}

// SAFETY: the thread is over before the memory goes: see `with_memory`.
#[allow(unsafe_code)]
unsafe impl Send for Lent {}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl Memory for Lent {
    fn pointer(&self) -> *const u8 {
        self.pointer
    }

    fn length(&self) -> u32 {
        self.length
    }
}

// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl MemoryMut for Lent {
    fn pointer_mut(&mut self) -> *mut u8 {
        self.pointer
    }
}

/// Makes a call on a descriptor that reads or writes memory, off the machine's thread. `moved` is the count, also when the
/// fiber is to raise; else the result is that, or -errno.
pub fn with_memory(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    memory: &mut impl MemoryMut,
    moved: &mut usize,
    attempt: fn(RawFd, &mut Lent) -> os::Result<usize>,
) -> Result<i32, Failure> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    let (pointer, length) = (memory.pointer_mut(), memory.length());
    // The memory is borrowed until this returns, which is when the thread is over, or is the parent process's; a panic in
    // between ends the process.
    let in_use = InKernel;
    let lent = Lent { pointer, length };
    let result = call_on(machine, me, fd, move |fd| {
        let mut lent = lent;
        match attempt(fd, &mut lent) {
            Ok(count) => {
                counted.store(count, Ordering::Release);
                i32::try_from(count).unwrap_or(i32::MAX)
            }
            Err(errno) => errno.negative(),
        }
    });
    std::mem::forget(in_use);
    *moved = count.load(Ordering::Acquire);
    result
}

/// flock(2), with the lock given back if nobody can be told of it.
pub fn flock(machine: &Machine, me: TaskId, fd: RawFd, operation: i32) -> Result<i32, Failure> {
    let file = Fd(fd).duplicate()?;
    let lock = |file, operation| match Fd(file).lock(operation) {
        Ok(()) => 0,
        Err(errno) => errno.negative(),
    };
    let unlock = |file| {
        lock(file, libc::LOCK_UN);
    };
    call_with(
        machine,
        me,
        How::on(file),
        move |file| lock(file, operation),
        unlock,
    )
}

/// waitid(2), whose options say WNOWAIT: a change that is not told is not taken.
pub fn wait_id(
    machine: &Machine,
    me: TaskId,
    id_type: libc::idtype_t,
    id: u32,
    options: i32,
) -> Result<i32, Failure> {
    let job = move || match process::wait(id_type, id, options) {
        Ok(_) => 0,
        Err(errno) => errno.negative(),
    };
    call(machine, me, job, || {})
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use uringmachine_runtime::slab::Key;

    use super::*;
    use crate::os::{fd, transfer, Errno};

    /// An open that waits.
    fn opening() -> Call {
        let task = Key {
            index: 0,
            generation: 0,
        };
        let state = State {
            result: None,
            unwanted: false,
            wait: WaitId { task, serial: 1 },
        };
        Call {
            given_up: AtomicBool::new(false),
            opens: true,
            file: Mutex::new(None),
            state: Mutex::new(state),
        }
    }

    /// What a read of a pipe says whose other end the call has opened.
    fn after(events: impl FnOnce(&Call, RawFd, &Waker)) -> Result<usize, Errno> {
        let (reader, writer) = fd::pipe_without_waiting().unwrap();
        let opened = writer.into_raw_fd();
        events(&opening(), opened, &Waker::new().unwrap());
        let result = transfer::read(reader.as_raw_fd(), &mut &mut [0_u8; 1][..]);
        if result != Ok(0) {
            Fd(opened).close().unwrap();
        }
        result
    }

    #[test]
    fn a_descriptor_that_nobody_wants_any_more_is_closed() {
        let late = after(|call, opened, waker| {
            assert!(!call.forsake());
            call.end(opened, waker);
        });
        assert_eq!(late, Ok(0));
        let early = after(|call, opened, waker| {
            call.end(opened, waker);
            assert!(call.forsake());
        });
        assert_eq!(early, Ok(0));
        let wanted = after(|call, opened, waker| call.end(opened, waker));
        assert_eq!(wanted, Err(Errno(libc::EAGAIN)));
    }
}
