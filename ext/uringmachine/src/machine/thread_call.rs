//! System calls that wait and that the ring has no operation for.
//!
//! Each runs on a thread of its own, which a signal interrupts: one that is given up has ended, and done
//! nothing, when its fiber goes on. The threads of [`crate::off_thread::resolver`] are few; calls that may wait for ever
//! would use them up.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::thread::JoinHandleExt;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use nix::errno::Errno;
use nix::sys::signal::{SigSet, Signal};
use uringmachine_runtime::waker::Waker;
use uringmachine_runtime::{clock, TaskId, WaitId, Wake};

use crate::machine::switch::{self, Failure};
use crate::machine::{Core, Resumption};
use crate::os::per_process::PerProcess;
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
            // SAFETY: nobody has been given the descriptor.
            unsafe { libc::close(result) };
        }
    }
}

/// A call that a fiber waits for.
struct Running {
    core: *mut Core,
    call: Arc<Call>,
    thread: libc::pthread_t,
}

// SAFETY: the core's address only tells whose call it is.
unsafe impl Send for Running {}

/// Every call there is. In a child of fork none is.
static RUNNING: PerProcess<Mutex<Vec<Running>>> = PerProcess::new();

fn running() -> MutexGuard<'static, Vec<Running>> {
    RUNNING.get().lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has a call on the list while it lives: a fiber that never goes on does not take it off.
struct Listed(Arc<Call>);

impl Listed {
    fn new(core: *mut Core, call: &Arc<Call>, thread: &JoinHandle<()>) -> Self {
        running().push(Running {
            core,
            call: Arc::clone(call),
            thread: thread.as_pthread_t(),
        });
        Self(Arc::clone(call))
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        running().retain(|entry| !Arc::ptr_eq(&entry.call, &self.0));
    }
}

/// Gives up the calls that fibers of a core wait for which go on no more: their threads end, and with them the
/// descriptors that these have.
pub fn give_up_all(core: *mut Core) {
    let mut left = Vec::new();
    running().retain_mut(|entry| {
        if entry.core == core {
            left.push((Arc::clone(&entry.call), entry.thread));
        }
        entry.core != core
    });
    for _ in 0..ATTEMPTS {
        left.retain(|(call, thread)| {
            call.given_up.store(true, Ordering::Release);
            call.file().take();
            if call.forsake() {
                // SAFETY: the handle is on the frame of a fiber that is never run again.
                unsafe { libc::pthread_detach(*thread) };
                return false;
            }
            interrupt(*thread);
            true
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
///
/// # Safety
/// Called by the fiber of `me`, on a core that lives as long as it waits.
pub unsafe fn call(
    core: *mut Core,
    me: TaskId,
    mut job: impl FnMut() -> i32 + Send + 'static,
    undo: impl FnOnce(),
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    unsafe { call_with(core, me, How::default(), move |_| job(), |_| undo()) }
}

/// As [`call`], of a call that is made though the fiber is to raise: it is interrupted then, and that is raised after it.
///
/// # Safety
/// As [`call`].
pub unsafe fn call_anyway(
    core: *mut Core,
    me: TaskId,
    mut job: impl FnMut() -> i32 + Send + 'static,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    unsafe {
        let how = How {
            anyway: true,
            ..How::default()
        };
        call_with(core, me, how, move |_| job(), |_| {})
    }
}

/// As [`call`], for a call whose result is a new descriptor, which is closed if nobody can be given it.
///
/// # Safety
/// As [`call`].
pub unsafe fn open(
    core: *mut Core,
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
        // SAFETY: nobody has been given the descriptor.
        unsafe { libc::close(opened.load(Ordering::Acquire)) };
    };
    // SAFETY: the caller's promise.
    unsafe {
        let how = How {
            opens: true,
            ..How::default()
        };
        call_with(core, me, how, job, undo)
    }
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
unsafe fn call_with(
    core: *mut Core,
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
    // SAFETY: see `switch`; what this frame owns is dropped, since the waits are protected.
    unsafe {
        let Some(waker) = (*core).driver.waker().cloned() else {
            return Ok(-libc::EBADF);
        };
        let mut first = None;
        if let Some(raise) = (*core).take_pending(me) {
            if !anyway {
                return Err(raise.into());
            }
            first = Some(raise);
        }
        let call = Arc::new(Call {
            given_up: AtomicBool::new(false),
            opens,
            file: Mutex::new(file.map(Arc::new)),
            state: Mutex::new(State {
                result: None,
                unwanted: false,
                wait: (*core).driver.tasks.begin_wait(me),
            }),
        });
        let worker = Arc::clone(&call);
        let spawned = std::thread::Builder::new()
            .name("um-call".into())
            .stack_size(128 * 1024)
            .spawn(move || {
                leave_signals_to_ruby();
                // It stays open while the call runs, also if it is given up.
                let file = worker.file().clone();
                let mut result = job(number);
                while result == -libc::EINTR && !worker.given_up.load(Ordering::Acquire) {
                    result = job(number);
                }
                // What the job owns goes before anybody learns of its end.
                drop(job);
                drop(file);
                worker.end(result, &waker);
            });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(error) => {
                (*core).finish_wait(me);
                if let Some(raise) = first {
                    (*core).keep_raise(me, raise)?;
                }
                return Ok(-error.raw_os_error().unwrap_or(libc::EAGAIN));
            }
        };
        let listed = Listed::new(core, &call, &thread);
        let mut waited = Ok(Wake::Interrupt);
        if first.is_none() {
            waited = switch::wait(core, me, None);
            first = waited.err().map(|state| switch::unwinding(state));
        }
        let (result, second) = finish(core, me, &call, &thread);
        drop(listed);
        let ended = match (first, second) {
            (None, None) if result >= 0 || matches!(waited, Ok(Wake::Complete)) => {
                if !matches!(waited, Ok(Wake::Complete)) {
                    (*core).drop_values(me);
                }
                Ok(result)
            }
            (None, None) => match (*core).take_resumption(me) {
                Some(Resumption::Raise(raise)) => Err(Failure::Raise(raise)),
                Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                None => Ok(-libc::EINTR),
            },
            (first, second) => {
                if result >= 0 {
                    undo(number);
                }
                Err(Failure::Raise(match first {
                    Some(first) => switch::first_of(core, me, first, second),
                    None => second.unwrap_or_else(|| Raise::errno(libc::EINTR)),
                }))
            }
        };
        // The thread may not have let go of the call yet.
        drop(call.file().take());
        (*core).finish_wait(me);
        ended
    }
}

/// The result of a call; one that still runs is given up, and waited for whatever is raised meanwhile.
unsafe fn finish(
    core: *mut Core,
    me: TaskId,
    call: &Call,
    thread: &JoinHandle<()>,
) -> (i32, Option<Raise>) {
    let mut second = None;
    // SAFETY: see `switch`.
    unsafe {
        loop {
            if (*core).is_forked() {
                // The thread is the parent's.
                return (-libc::EINTR, second);
            }
            let wait = {
                let mut state = call.state();
                if let Some(result) = state.result {
                    (*core).waiter(me).draining = false;
                    return (result, second);
                }
                state.wait = (*core).driver.tasks.begin_wait(me);
                state.wait
            };
            (*core).waiter(me).draining = true;
            call.given_up.store(true, Ordering::Release);
            interrupt(thread.as_pthread_t());
            let timer = (*core)
                .driver
                .wake_at(clock::now().saturating_add(AGAIN), wait);
            if let Err(state) = switch::wait(core, me, None) {
                second = Some(switch::unwinding(state));
            }
            (*core).driver.timers.cancel(timer);
        }
    }
}

/// Interrupts a thread's system call by the signal that Ruby interrupts its own threads with: its handler
/// does nothing, and lets no call go on (thread_pthread.c, `null_func`).
fn interrupt(thread: libc::pthread_t) {
    // SAFETY: the struct is filled by the call. The thread is neither joined nor detached, so its handle is
    // valid.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGVTALRM, std::ptr::null(), &mut action) == 0
            && !matches!(action.sa_sigaction, libc::SIG_DFL | libc::SIG_IGN)
            && action.sa_flags & libc::SA_RESTART == 0
        {
            libc::pthread_kill(thread, libc::SIGVTALRM);
        }
    }
}

/// Every signal but the one that interrupts is for Ruby's threads.
fn leave_signals_to_ruby() {
    let mut signals = SigSet::all();
    signals.remove(Signal::SIGVTALRM);
    // It fails for numbers that are none only.
    let _ = signals.thread_set_mask();
}

/// The result of a system call, or -errno.
pub fn result_of(result: i32) -> i32 {
    if result >= 0 {
        return result;
    }
    -Errno::last_raw()
}

/// A descriptor of the same open file for a call on a thread: the number it was made from may be closed
/// meanwhile, and given to another file.
pub fn duplicate(fd: RawFd) -> Result<OwnedFd, Raise> {
    // SAFETY: fcntl takes any number; what it returns is new and nobody else's.
    unsafe {
        match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 3) {
            -1 => Err(Raise::errno(Errno::last_raw())),
            new => Ok(OwnedFd::from_raw_fd(new)),
        }
    }
}

/// Makes a call on a descriptor that may take long, off the machine's thread.
///
/// # Safety
/// As [`call`].
pub unsafe fn call_on(
    core: *mut Core,
    me: TaskId,
    fd: RawFd,
    job: impl Fn(RawFd) -> i32 + Send + 'static,
) -> Result<i32, Failure> {
    let file = duplicate(fd)?;
    // SAFETY: the caller's promise.
    unsafe { call_with(core, me, How::on(file), job, |_| {}) }
}

/// flock(2), with the lock given back if nobody can be told of it.
///
/// # Safety
/// As [`call`].
pub unsafe fn flock(
    core: *mut Core,
    me: TaskId,
    fd: RawFd,
    operation: i32,
) -> Result<i32, Failure> {
    let file = duplicate(fd)?;
    // SAFETY: flock points to nothing.
    let lock = |file, operation| result_of(unsafe { libc::flock(file, operation) });
    let unlock = |file| {
        lock(file, libc::LOCK_UN);
    };
    // SAFETY: the caller's promise.
    unsafe {
        call_with(
            core,
            me,
            How::on(file),
            move |file| lock(file, operation),
            unlock,
        )
    }
}

/// waitid(2), whose options say WNOWAIT: a change that is not told is not taken.
///
/// # Safety
/// As [`call`].
pub unsafe fn wait_id(
    core: *mut Core,
    me: TaskId,
    id_type: libc::idtype_t,
    id: u32,
    options: i32,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise; the siginfo is the thread's own.
    unsafe {
        call(
            core,
            me,
            move || {
                let mut info: libc::siginfo_t = std::mem::zeroed();
                result_of(libc::waitid(id_type, id, &mut info, options))
            },
            || {},
        )
    }
}
