//! Waiting: the fiber that must wait hands the thread to the next runnable fiber, or, if there is
//! none, submits, sleeps and reaps itself. There is no loop fiber.

use std::ffi::{c_int, c_void};

use uringmachine_runtime::driver::Sleep;
use uringmachine_runtime::operation::{self, Completion};
use uringmachine_runtime::tasks::State;
use uringmachine_runtime::{waker, Entry, OpKey, TaskId, Wake};

use crate::machine::{self, interrupts, registry, report, Core, Pending, Resumption};
use crate::ruby::{self, Raise, NIL, VALUE};

/// How long a cancelled operation is waited for with the thread, before other fibers run again:
/// sockets, pipes and polls give their memory back at once.
pub const DRAIN_AT_ONCE: u64 = 200_000;

/// Suspends the task until its wait has ended. May longjmp: whoever transfers here may raise.
unsafe fn suspend(core: *mut Core, me: TaskId) -> Wake {
    // SAFETY: `core` is alive as long as a fiber waits in it, and each reference made from it ends
    // before the next switch.
    unsafe {
        loop {
            let woken = match (*core).driver.tasks.state(me) {
                Some(State::Running) => Some((*core).waiter(me).woken),
                _ => None,
            };
            if let Some(wake) = woken.and_then(|wake| heed(core, me, wake)) {
                return wake;
            }
            if !(*core).raises.is_empty() {
                raise_elsewhere(core, me);
                continue;
            }
            match (*core).next_ready() {
                Some((task, wake)) if task == me => {
                    if let Some(wake) = heed(core, me, wake) {
                        return wake;
                    }
                }
                Some((task, wake)) => {
                    transfer_to(core, task, wake);
                    (*core).current = me;
                }
                None => idle(core, me),
            }
            (*core).end_interruptions(me);
        }
    }
}

/// How a wait ends that has been woken; `None` if it goes on: it pays no heed to an interrupt in a finalizer or a
/// handler, but to what closes its descriptor.
#[inline]
unsafe fn heed(core: *mut Core, me: TaskId, wake: Wake) -> Option<Wake> {
    // SAFETY: as in `suspend`.
    unsafe {
        if wake != Wake::Interrupt {
            return Some(wake);
        }
        let waiter = (*core).waiter(me);
        let heeds = waiter.closed_by != NIL || !waiter.is_to_raise();
        if heeds || !(*core).is_aside(me) {
            return Some(wake);
        }
        (*core).driver.tasks.go_on_waiting(me)
    }
}

/// Switches to a ready task. May longjmp, as [`suspend`]. Returns what the switch back brought.
#[inline]
unsafe fn transfer_to(core: *mut Core, task: TaskId, wake: Wake) -> VALUE {
    // SAFETY: as in `suspend`.
    unsafe {
        (*core).switches += 1;
        (*core).current = task;
        let waiter = (*core).waiter(task);
        waiter.woken = wake;
        let fiber = waiter.fiber;
        if waiter.fresh {
            return start(core, task, fiber);
        }
        ruby::transfer(fiber, &[])
    }
}

/// Switches to a fiber that this machine has not run yet, with the value it was scheduled with.
#[cold]
unsafe fn start(core: *mut Core, task: TaskId, fiber: VALUE) -> VALUE {
    // SAFETY: as in `suspend`.
    unsafe {
        let waiter = (*core).waiter(task);
        waiter.fresh = false;
        let spun = waiter.spun;
        if !ruby::truthy(ruby::rb_fiber_alive_p(fiber)) {
            // Somebody else has run it to its end, or has killed it.
            if spun {
                crate::machine::spun::end_unstarted(core, fiber);
            } else {
                (*core).remove(task);
            }
            return NIL;
        }
        let value = match waiter.pending.front() {
            Some(Pending::Value(value)) => *value,
            // A fiber of the program's own is given the exception as a value.
            Some(Pending::Exception(exception)) if !spun => *exception,
            _ => NIL,
        };
        if !(spun && matches!(waiter.pending.front(), Some(Pending::Exception(_)))) {
            waiter.pending.pop_front();
        }
        if !spun {
            (*core).keep(task);
        }
        machine::set_starting(if spun { core } else { std::ptr::null_mut() });
        ruby::transfer(fiber, &[value])
    }
}

/// Nothing is runnable: takes what has completed, or sleeps until something does.
unsafe fn idle(core: *mut Core, me: TaskId) {
    // SAFETY: as in `suspend`.
    unsafe {
        (*core).give_up_discarded();
        if (*core).driver.wants_poll() {
            (*core).poll();
        } else {
            (*core).driver.fire();
            (*core).expire_timeouts();
        }
        if !(*core).driver.tasks.queue_is_empty() || !(*core).raises.is_empty() {
            return;
        }
        if let Err(error) = (*core).driver.prepare_sleep() {
            Raise::errno(error.raw_os_error().unwrap_or(libc::EINVAL)).leave();
        }
        let deadline = (*core).driver.timers.next_deadline();
        let mut sleep = SleepCall {
            sleep: (*core).driver.sleeper(deadline),
            errno: 0,
            ran: false,
        };
        (*core).asleep = true;
        let slept = (*core).profile.map(|_| uringmachine_runtime::clock::now());
        let eventfd = (*core).driver.waker().map_or(-1, |waker| waker.fd());
        ruby::rb_nogvl(
            SleepCall::run,
            (&raw mut sleep).cast(),
            Some(end_sleep),
            eventfd as usize as *mut c_void,
            ruby::NOGVL_INTR_FAIL | ruby::NOGVL_UBF_ASYNC_SAFE,
        );
        (*core).asleep = false;
        if let (Some(since), Some(profile)) = (slept, &mut (*core).profile) {
            profile.waited += uringmachine_runtime::clock::now() - since;
        }
        if sleep.errno != 0 {
            Raise::errno(sleep.errno).leave();
        }
        (*core).driver.reap();
        if ruby::rb_thread_interrupted((*core).thread()) != 0 {
            check_interrupts(core, me);
        } else if !sleep.ran {
            // Ruby refuses to sleep on the timer's tick and on postponed jobs too (thread.c,
            // unblock_function_set), and does so until somebody has looked after them.
            ruby::rb_thread_check_ints();
        }
    }
}

struct SleepCall {
    sleep: Sleep,
    errno: i32,
    ran: bool,
}

impl SleepCall {
    unsafe extern "C" fn run(data: *mut c_void) -> *mut c_void {
        // SAFETY: `data` is the SleepCall on the frame of `idle`, which waits for this call.
        unsafe {
            let call = &mut *data.cast::<SleepCall>();
            call.ran = true;
            if let Err(error) = call.sleep.run() {
                call.errno = error.raw_os_error().unwrap_or(libc::EINVAL);
            }
        }
        std::ptr::null_mut()
    }
}

/// The unblock function: any thread, no GVL; only writes to the eventfd whose number it is given.
unsafe extern "C" fn end_sleep(eventfd: *mut c_void) {
    waker::wake_fd(eventfd as usize as c_int);
}

/// An interrupt (a signal, Thread#raise, Thread#kill) belongs to the thread, not to the fiber that
/// happened to wait last: if the root fiber is parked here, it gets it.
unsafe fn check_interrupts(core: *mut Core, me: TaskId) {
    // SAFETY: as in `suspend`. A fiber switch checks interrupts on arrival (cont.c, fiber_switch).
    unsafe {
        match (*core).interrupt_target() {
            // What interrupts the end of a thread is raised when that is over: no ensure block is cut short.
            _ if (*core).ending => {
                if let Err(state) = ruby::protect(|| {
                    ruby::rb_thread_check_ints();
                    NIL
                }) {
                    let raise = unwinding(state);
                    (*core).late.get_or_insert(raise);
                }
            }
            Some(root) if root != me => {
                let fiber = (*core).waiter(root).fiber;
                (*core).current = root;
                ruby::transfer(fiber, &[]);
                (*core).current = me;
            }
            _ => ruby::rb_thread_check_ints(),
        }
    }
}

/// Raises in a fiber that does not wait in this machine: it has resumed one that does, or it was
/// suspended by its own program.
#[cold]
unsafe fn raise_elsewhere(core: *mut Core, me: TaskId) {
    // SAFETY: as in `suspend`; rb_fiber_raise refuses a fiber it cannot raise in by an exception,
    // which must not reach the fiber that only happened to look here.
    unsafe {
        let (fiber, pending) = (*core).raises.remove(0);
        // It may wait here by now.
        if let Some(task) = (*core).find_waiting(fiber) {
            if (*core).driver.tasks.state(task) != Some(State::Running) {
                (*core).interrupt(task, pending);
                return;
            }
        }
        let exception = match pending {
            Pending::Exception(exception) | Pending::Value(exception) => exception,
            Pending::Unwind => return,
            Pending::Timeout(key) => match (*core).timeouts.get(key) {
                Some(timeout) if !timeout.is_value => match (*core).make_timeout(key) {
                    Some(Raise::Exception(exception)) => exception,
                    Some(raise) => raise.leave(),
                    None => return,
                },
                _ => return,
            },
        };
        if ruby::rb_obj_is_fiber(fiber) != ruby::TRUE {
            ruby::funcall(fiber, ruby::id("raise"), &[exception]);
        } else if ruby::truthy(ruby::rb_fiber_alive_p(fiber)) {
            ruby::raise_in(fiber, &[exception]);
        }
        (*core).current = me;
    }
}

/// Waits under a frame that no unwinding passes. `start` is a new fiber to switch to first, with
/// its argument.
pub unsafe fn wait(
    core: *mut Core,
    me: TaskId,
    start: Option<(VALUE, VALUE)>,
) -> Result<Wake, c_int> {
    // SAFETY: see `suspend`.
    unsafe {
        wait_after(core, me, || {
            if let Some((fiber, argument)) = start {
                ruby::transfer(fiber, &[argument]);
                (*core).current = me;
            }
        })
    }
}

/// As [`wait`], after `start`, which may switch, and longjmp.
unsafe fn wait_after(core: *mut Core, me: TaskId, start: impl FnOnce()) -> Result<Wake, c_int> {
    let mut wake = Wake::Complete;
    let slot = &raw mut wake;
    let mut start = Some(start);
    // SAFETY: the closure holds plain values; `wake` and `start` outlive it.
    let result = unsafe {
        (*core).waiter(me).inside = true;
        loop {
            let result = ruby::protect(|| {
                if let Some(start) = start.take() {
                    start();
                }
                *slot = suspend(core, me);
                NIL
            });
            match result {
                Err(state) if (*core).ending && keep_for_later(core, state) => continue,
                result => break result,
            }
        }
    };
    // SAFETY: as above.
    unsafe {
        (*core).waiter(me).inside = false;
        (*core).end_interruptions(me);
        (*core).current = me;
    }
    result.map(|_| wake)
}

/// While a thread ends: keeps what interrupts it for the end, if that is what came to a wait. A switch to a fiber looks
/// for interrupts when it arrives (cont.c, fiber_switch), and its ensure block is not to be cut short by them.
#[cold]
unsafe fn keep_for_later(core: *mut Core, state: c_int) -> bool {
    // SAFETY: called right after the unwinding was stopped.
    unsafe {
        let error = ruby::current_error();
        let is_killed = ruby::as_fixnum(error).is_some();
        let is_fatal = ruby::is_a(error, rb_sys::rb_eException) && report::is_fatal(error);
        if is_killed || is_fatal {
            (*core).late.get_or_insert(unwinding(state));
        }
        is_killed || is_fatal
    }
}

/// Runs `switch`, which may transfer to another fiber. The current one goes on as soon as that waits, or ends.
pub unsafe fn step_aside(core: *mut Core, switch: impl FnOnce() -> VALUE) -> ruby::Outcome {
    let mut value = NIL;
    let slot = &raw mut value;
    // SAFETY: see `suspend`; `value` outlives the closure.
    unsafe {
        let me = (*core).current_task();
        let wait = (*core).driver.tasks.begin_wait(me);
        (*core).driver.tasks.wake_first(wait, Wake::Complete);
        let result = wait_after(core, me, || {
            *slot = switch();
            (*core).current = me;
        });
        (*core).finish_wait(me);
        result.map(|_| value).map_err(Raise::Jump)
    }
}

/// How a wait for no operation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Somebody woke it.
    Woken,
    /// Its deadline came.
    Deadline,
    /// A machine's `schedule` gave it a value.
    Scheduled(VALUE),
}

/// Waits until woken or until `deadline`.
pub unsafe fn pause(core: *mut Core, me: TaskId, deadline: Option<u64>) -> Result<Ended, Raise> {
    // SAFETY: see `suspend`.
    unsafe {
        if let Some(raise) = (*core).take_pending(me) {
            return Err(raise);
        }
        let wait_id = (*core).driver.tasks.begin_wait(me);
        let timer = deadline.map(|deadline| (*core).driver.wake_at(deadline, wait_id));
        let result = wait(core, me, None);
        if let Some(timer) = timer {
            (*core).driver.timers.cancel(timer);
        }
        let ended = match result {
            Ok(Wake::Complete) => Ok(Ended::Woken),
            // Whoever was waited for has given what it had to this fiber, though its time was up, or it is to raise:
            // it takes that, and raises at its next wait. Nobody else would be given it.
            Ok(Wake::Timeout | Wake::Interrupt) if was_unblocked(core, me) => Ok(Ended::Woken),
            Ok(Wake::Timeout) => Ok(Ended::Deadline),
            Ok(Wake::Interrupt) => match (*core).take_resumption(me) {
                Some(Resumption::Raise(raise)) => Err(raise),
                Some(Resumption::Value(value)) => Ok(Ended::Scheduled(value)),
                None => Ok(Ended::Woken),
            },
            Err(state) => Err(Raise::Jump(state)),
        };
        let passes_on = ended.is_err() && was_unblocked(core, me);
        let blocker = (*core).waiter(me).blocker;
        (*core).finish_wait(me);
        if passes_on {
            // It was given what it leaves: Fiber#raise does not wait.
            let raise = ended.map_err(|raise| match raise {
                Raise::Jump(state) => unwinding(state),
                raise => raise,
            });
            registry::pass_on(blocker);
            return raise;
        }
        ended
    }
}

/// Whether a task in `block` was woken by `unblock` after its wait had been ended by something else.
unsafe fn was_unblocked(core: *mut Core, me: TaskId) -> bool {
    // SAFETY: as in `suspend`.
    unsafe { (*core).waiter(me).blocked && (*core).driver.tasks.take_completion(me) }
}

/// Lets every other runnable fiber run once.
pub unsafe fn yield_now(core: *mut Core, me: TaskId) -> Result<(), Raise> {
    // SAFETY: see `suspend`.
    unsafe {
        if let Some(raise) = (*core).take_pending(me) {
            return Err(raise);
        }
        let wait_id = (*core).driver.tasks.begin_wait(me);
        (*core).driver.tasks.wake(wait_id, Wake::Complete);
        let result = wait(core, me, None);
        (*core).finish_wait(me);
        result.map(drop).map_err(Raise::Jump)
    }
}

/// Notes that something was done without waiting, and lets those go first that are ready if the fiber has held the
/// thread for long.
#[inline]
pub unsafe fn take_turns(core: *mut Core, me: TaskId) -> Result<(), Raise> {
    // SAFETY: see `suspend`.
    unsafe {
        (*core).count_at_once(0);
        if (*core).has_held_long() {
            let_go(core, me)?;
        }
        Ok(())
    }
}

/// As [`take_turns`], of the current fiber, for what may have moved as many bytes.
#[inline]
pub unsafe fn take_turns_with(core: *mut Core, bytes: usize) -> Result<(), Raise> {
    // SAFETY: see `suspend`.
    unsafe {
        (*core).count_at_once(bytes);
        if (*core).has_held_long() {
            let_go(core, (*core).current_task())?;
        }
        Ok(())
    }
}

/// Lets those go first that are ready, or whose completion has come. Whoever never waits raises here what it is to
/// raise: a time limit that has come, say. A finalizer or a handler, which the fiber has not called, goes on.
#[cold]
pub unsafe fn let_go(core: *mut Core, me: TaskId) -> Result<(), Raise> {
    // SAFETY: see `suspend`.
    unsafe {
        if interrupts::runs_aside() {
            return Ok(());
        }
        (*core).poll();
        if !(*core).driver.tasks.queue_is_empty() || !(*core).raises.is_empty() {
            yield_now(core, me)?;
        }
        match (*core).take_pending(me) {
            Some(raise) => Err(raise),
            None => Ok(()),
        }
    }
}

/// Waits until somebody schedules the fiber, and returns the value it is given.
pub unsafe fn await_schedule(core: *mut Core, me: TaskId) -> Result<VALUE, Raise> {
    // SAFETY: see `suspend`.
    unsafe {
        match (*core).take_resumption(me) {
            Some(Resumption::Value(value)) => return Ok(value),
            Some(Resumption::Raise(raise)) => return Err(raise),
            None => {}
        }
        (*core).driver.tasks.begin_wait(me);
        (*core).waiter(me).yielding = true;
        let result = wait(core, me, None);
        (*core).waiter(me).yielding = false;
        let ended = match result {
            Ok(_) => match (*core).take_resumption(me) {
                Some(Resumption::Value(value)) => Ok(value),
                Some(Resumption::Raise(raise)) => Err(raise),
                None => Ok(NIL),
            },
            Err(state) => Err(Raise::Jump(state)),
        };
        (*core).finish_wait(me);
        ended
    }
}

/// Hands the thread over without being known to the machine meanwhile, so that a fiber that nobody
/// schedules any more can be collected. Returns the value it is scheduled with, if it ever is.
pub unsafe fn switch_away(core: *mut Core, me: TaskId) -> Result<VALUE, Raise> {
    /// The task of a fiber the machine does not know: no slab is as large.
    const NOBODY: TaskId = TaskId {
        index: u32::MAX,
        generation: 0,
    };
    // SAFETY: see `suspend`. The closure holds plain values.
    unsafe {
        let waiter = (*core).waiter(me);
        let fiber = waiter.fiber;
        if waiter.scheduled || fiber == (*core).home || !waiter.pending.is_empty() {
            return await_schedule(core, me);
        }
        (*core).remove(me);
        let mut value = NIL;
        let slot = &raw mut value;
        let result = ruby::protect(|| {
            loop {
                if !(*core).raises.is_empty() {
                    raise_elsewhere(core, NOBODY);
                    continue;
                }
                match (*core).next_ready() {
                    Some((task, _)) if (*core).waiter(task).fiber == fiber => {
                        (*core).current = task;
                        let waiter = (*core).waiter(task);
                        waiter.fresh = false;
                        if let Some(Pending::Value(value) | Pending::Exception(value)) =
                            waiter.pending.pop_front()
                        {
                            *slot = value;
                        }
                        break;
                    }
                    Some((task, wake)) => {
                        *slot = transfer_to(core, task, wake);
                        // Whoever schedules this fiber makes it a task again; else it was only
                        // passed by: a fiber ended.
                        let known = (*core).driver.tasks.get((*core).current);
                        if known.is_some_and(|waiter| waiter.fiber == fiber) {
                            break;
                        }
                        (*core).current = NOBODY;
                    }
                    None => {
                        idle(core, NOBODY);
                        // The handler of a signal that has waited here leaves a task behind.
                        if let Some(task) = (*core).find(fiber) {
                            if (*core).driver.tasks.state(task) == Some(State::Running) {
                                let pending = (*core).waiter(task).pending.pop_front();
                                if let Some(Pending::Value(value) | Pending::Exception(value)) =
                                    pending
                                {
                                    (*core).current = task;
                                    *slot = value;
                                    break;
                                }
                                (*core).remove(task);
                            }
                        }
                    }
                }
            }
            NIL
        });
        if let Some(task) = (*core).find(fiber) {
            (*core).current = task;
            (*core).driver.tasks.end_wait(task);
        }
        result.map_err(Raise::Jump)?;
        if ruby::is_a(value, rb_sys::rb_eException) {
            return Err(Raise::Exception(value));
        }
        Ok(value)
    }
}

/// Why an operation brought no result.
#[derive(Debug)]
pub enum Failure {
    /// Its deadline passed before it could do anything.
    Timeout,
    /// Its fiber is to raise.
    Raise(Raise),
    /// A machine's `schedule` gave its fiber this value instead.
    Scheduled(VALUE),
}

impl From<Raise> for Failure {
    fn from(raise: Raise) -> Self {
        Self::Raise(raise)
    }
}

/// Submits an operation and waits for its completion; returns the result, or -errno.
///
/// On a timeout or an exception the operation is cancelled and drained: when this returns, the kernel
/// touches the operation's memory no more. An operation that won that race keeps its result.
///
/// # Safety
/// What the entry points to stays valid and unmoved until this returns.
#[inline]
pub unsafe fn operate(
    core: *mut Core,
    me: TaskId,
    entry: Entry,
    deadline: Option<u64>,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    unsafe { operate_for(core, me, entry, deadline, Yields::Count) }
}

/// What the result of an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Yields {
    /// A number.
    Count,
    /// A new descriptor: closed if nobody can be given it.
    Descriptor,
}

/// As [`operate`].
///
/// # Safety
/// As [`operate`].
pub unsafe fn operate_for(
    core: *mut Core,
    me: TaskId,
    entry: Entry,
    deadline: Option<u64>,
    yields: Yields,
) -> Result<i32, Failure> {
    // SAFETY: the caller's promise.
    unsafe { operate_noting(core, me, entry, deadline, yields, &mut 0) }
}

/// As [`operate_for`], for whoever must know what the kernel did even when the fiber is to raise: `seen`
/// is the result of the operation, if it came to one.
///
/// # Safety
/// As [`operate`].
pub unsafe fn operate_noting(
    core: *mut Core,
    me: TaskId,
    entry: Entry,
    deadline: Option<u64>,
    yields: Yields,
    seen: &mut i32,
) -> Result<i32, Failure> {
    // SAFETY: see `suspend`; the caller keeps the memory.
    unsafe {
        if let Some(raise) = (*core).take_pending(me) {
            return Err(Failure::Raise(raise));
        }
        let wait_id = (*core).driver.tasks.begin_wait(me);
        let fd = operation::descriptor_of(&entry);
        let op = match (*core).driver.submit(entry, wait_id) {
            Ok(op) => op,
            Err(error) => {
                (*core).finish_wait(me);
                return Ok(-error.raw_os_error().unwrap_or(libc::EAGAIN));
            }
        };
        (*core).waits.begin(fd, me, Some(op));
        let timer = deadline.map(|deadline| (*core).driver.wake_at(deadline, wait_id));
        let result = wait(core, me, None);
        if let Some(timer) = timer {
            (*core).driver.timers.cancel(timer);
        }
        let taken = match result {
            Ok(Wake::Complete) => (*core).driver.take(op),
            _ => None,
        };
        let ended = match (result, taken) {
            (_, Some(completion)) => {
                *seen = completion.result;
                Ok(completion.result)
            }
            (Ok(wake), None) => match drain(core, me, op, seen) {
                (completion, Some(raise)) => {
                    if yields == Yields::Descriptor && completion.result >= 0 {
                        libc::close(completion.result);
                    }
                    Err(Failure::Raise(raise))
                }
                // It won the race: the result counts, and what was to be raised waits.
                (completion, None) if completion.result >= 0 => {
                    (*core).drop_values(me);
                    Ok(completion.result)
                }
                (_, None) if wake == Wake::Timeout => Err(Failure::Timeout),
                (_, None) => match (*core).take_resumption(me) {
                    Some(Resumption::Raise(raise)) => Err(Failure::Raise(raise)),
                    Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                    None => Ok(-libc::EINTR),
                },
            },
            (Err(state), None) => {
                let first = unwinding(state);
                let (completion, second) = drain(core, me, op, seen);
                if yields == Yields::Descriptor && completion.result >= 0 {
                    libc::close(completion.result);
                }
                Err(Failure::Raise(first_of(core, me, first, second)))
            }
        };
        (*core).waits.end(fd, me);
        (*core).finish_wait(me);
        ended
    }
}

/// What [`ruby::protect`] stopped: as an exception if it is one, so that it can be kept.
pub unsafe fn unwinding(state: c_int) -> Raise {
    // SAFETY: called right after the unwinding was stopped.
    match unsafe { ruby::take_exception() } {
        Some(exception) => Raise::Exception(exception),
        None => Raise::Jump(state),
    }
}

/// What is raised first of two unwindings; a second exception is raised at the fiber's next wait.
pub unsafe fn first_of(core: *mut Core, me: TaskId, first: Raise, second: Option<Raise>) -> Raise {
    match (first, second) {
        (Raise::Exception(first), Some(Raise::Exception(second))) => {
            // SAFETY: the core is alive while one of its fibers runs a method.
            let pending = unsafe { &mut (*core).waiter(me).pending };
            pending.push_front(Pending::Exception(second));
            Raise::Exception(first)
        }
        (_, Some(second)) => second,
        (first, None) => first,
    }
}

/// Cancels an operation and waits for its own completion, whatever is raised meanwhile; returns that
/// too.
unsafe fn drain(
    core: *mut Core,
    me: TaskId,
    op: OpKey,
    seen: &mut i32,
) -> (Completion, Option<Raise>) {
    // SAFETY: see `suspend`.
    unsafe {
        let mut second = None;
        let _ = (*core).driver.cancel(op);
        let _ = (*core).driver.drain(op, DRAIN_AT_ONCE);
        loop {
            if (*core).is_forked() {
                // The operation is the parent's, and so is its memory.
                let completion = Completion {
                    result: -libc::ECANCELED,
                    flags: 0,
                };
                return (completion, second);
            }
            if let Some(completion) = (*core).driver.take_early(op) {
                // Only the peer decides when the kernel lets go of the memory: the fiber does not wait for that.
                (*core).waiter(me).draining = false;
                (*core).waiter(me).lent = Some(op);
                *seen = completion.result;
                return (completion, second);
            }
            if let Some(completion) = (*core).driver.take(op) {
                (*core).waiter(me).draining = false;
                *seen = completion.result;
                return (completion, second);
            }
            let wait_id = (*core).driver.tasks.begin_wait(me);
            (*core).driver.retarget(op, wait_id);
            (*core).waiter(me).draining = true;
            if let Err(state) = wait(core, me, None) {
                second = Some(unwinding(state));
            }
        }
    }
}

/// The root fiber's part while it waits for all others: runs what is ready, or waits for something to
/// be, once. Control comes back here when a fiber ends.
pub unsafe fn run_others(core: *mut Core, me: TaskId) -> Result<(), Raise> {
    // SAFETY: see `suspend`. The closure holds plain values.
    unsafe {
        let result = ruby::protect(|| {
            if !(*core).raises.is_empty() {
                raise_elsewhere(core, me);
                return NIL;
            }
            match (*core).next_ready() {
                Some((task, wake)) => {
                    transfer_to(core, task, wake);
                }
                None => idle(core, me),
            }
            NIL
        });
        (*core).current = me;
        result.map(drop).map_err(Raise::Jump)
    }
}
