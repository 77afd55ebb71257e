//! io_select.

use std::ffi::c_int;

use uringmachine_runtime::{opcode, types, OpKey, TaskId, Wake};

use crate::core::{Core, Resumption};
use crate::durations;
use crate::hooks::readiness::{poll_on_thread, wakes_for, NEVER_WAKES};
use crate::scheduler::get;
use crate::switch::{self, Failure};
use crate::sys::{self, Outcome, Raise, FALSE, NIL, VALUE};
use crate::tls;

/// Waits as IO.select.
///
/// Ruby's own IO.select, without waiting, validates, unwraps `to_io`, sees read buffers and makes the
/// result; between two of those each descriptor is polled through the ring.
///
/// @method UringMachine::FiberScheduler#io_select(readable, writable = nil, exceptional = nil, timeout = nil)
/// @param readable [Array<IO>, nil]
/// @param writable [Array<IO>, nil]
/// @param exceptional [Array<IO>, nil]
/// @param timeout [Numeric, nil] seconds
/// @return [Array(Array, Array, Array), nil] what is ready; nil after the timeout
/// @kernel 5.5
/// @example
///   scheduler.io_select([io], nil, nil, 0.1) #=> nil
unsafe extern "C" fn io_select(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; see `switch`.
    unsafe {
        sys::method(|| {
            if !(1..=4).contains(&argc) {
                return Err(Raise::argument(&format!(
                    "wrong number of arguments (given {argc}, expected 1..4)"
                )));
            }
            let core = get(this).core()?;
            let argument = |place| {
                if place < argc {
                    *argv.offset(place as isize)
                } else {
                    NIL
                }
            };
            switch::take_turns(core, (*core).current_task())?;
            let sets = [argument(0), argument(1), argument(2)];
            let deadline = durations::deadline(argument(3))?;
            if tls::is_any_held() {
                let held = held_among(sets[0])?;
                if rb_sys::RARRAY_LEN(held) > 0 {
                    let none = || rb_sys::rb_ary_new();
                    return Ok(rb_sys::rb_ary_new_from_args(3, held, none(), none()));
                }
            }
            let ready = select_now(&sets)?;
            let is_over = || deadline.is_some_and(|at| at <= uringmachine_runtime::clock::now());
            if ready != NIL || is_over() {
                return Ok(ready);
            }
            let me = (*core).current_task();
            let descriptors = descriptors(&sets)?;
            loop {
                let woken = if let Some(list) = &descriptors {
                    match wait_for_any(core, me, list, deadline, selects) {
                        Ok(woken) => woken,
                        Err(Failure::Raise(raise)) => return Err(raise),
                        Err(Failure::Scheduled(_) | Failure::Timeout) => true,
                    }
                } else {
                    switch::pause(core, me, deadline)? != switch::Ended::Deadline
                };
                let ready = select_now(&sets)?;
                if ready != NIL || !woken || is_over() {
                    return Ok(ready);
                }
            }
        })
    }
}

/// Those whose descriptors have records on the ring's side of a TLS connection: the kernel knows nothing of them.
unsafe fn held_among(set: VALUE) -> Outcome {
    // SAFETY: `to_io` may raise, stopped here; the array is on the frame.
    unsafe {
        sys::protect(|| {
            let held = rb_sys::rb_ary_new();
            if sys::is_array(set) {
                let mut place = 0;
                while place < rb_sys::RARRAY_LEN(set) as i64 {
                    let one = rb_sys::rb_ary_entry(set, place as _);
                    if tls::is_held(sys::rb_io_descriptor(rb_sys::rb_io_get_io(one))) {
                        rb_sys::rb_ary_push(held, one);
                    }
                    place += 1;
                }
            }
            held
        })
        .map_err(Raise::Jump)
    }
}

/// IO.select(*sets, 0), past every hook.
unsafe fn select_now(sets: &[VALUE; 3]) -> Outcome {
    unsafe extern "C" fn call(
        _fiber: VALUE,
        sets: VALUE,
        _argc: c_int,
        _argv: *const VALUE,
        _block: VALUE,
    ) -> VALUE {
        // SAFETY: `sets` is the address of the array below, which outlives the call.
        unsafe {
            let sets = &*(sets as *const [VALUE; 3]);
            let arguments = [sets[0], sets[1], sets[2], sys::fixnum(0)];
            sys::funcall(rb_sys::rb_cIO, sys::id("select"), &arguments)
        }
    }
    // SAFETY: exceptions stop at the protection; nothing here needs dropping.
    unsafe {
        sys::protect(|| {
            rb_sys::rb_block_call(
                sys::class(c"Fiber"),
                sys::id("blocking"),
                0,
                std::ptr::null(),
                Some(call),
                sets as *const _ as VALUE,
            )
        })
        .map_err(Raise::Jump)
    }
}

/// The descriptors with their events; `None` if there is nothing to wait for but the time.
unsafe fn descriptors(sets: &[VALUE; 3]) -> Result<Option<Vec<(i32, u32)>>, Raise> {
    let events = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
    let mut list = Vec::new();
    for (set, events) in sets.iter().zip(events) {
        if *set == NIL {
            continue;
        }
        let mut place = 0;
        loop {
            let mut fd = -1;
            let slot = &raw mut fd;
            // SAFETY: IO.select has accepted the sets, but `to_io` may still raise: stopped here,
            // before the list is dropped.
            let more = unsafe {
                sys::protect(|| {
                    if place >= rb_sys::RARRAY_LEN(*set) as i64 {
                        return FALSE;
                    }
                    let io = rb_sys::rb_io_get_io(rb_sys::rb_ary_entry(*set, place as _));
                    let io = if events == libc::POLLOUT {
                        rb_sys::rb_io_get_write_io(io)
                    } else {
                        io
                    };
                    *slot = sys::rb_io_descriptor(io);
                    sys::TRUE
                })
                .map_err(Raise::Jump)?
            };
            if more == FALSE {
                break;
            }
            place += 1;
            let events = events as u32;
            match list.iter_mut().find(|(known, _)| *known == fd) {
                Some((_, wanted)) => *wanted |= events,
                None => list.push((fd, events)),
            }
        }
    }
    Ok((!list.is_empty()).then_some(list))
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
pub unsafe fn wait_for_any(
    core: *mut Core,
    me: TaskId,
    list: &[(i32, u32)],
    deadline: Option<u64>,
    counts: impl Fn(u32) -> i32,
) -> Result<bool, Failure> {
    let mut list = list.to_vec();
    loop {
        // SAFETY: see `switch`.
        unsafe {
            match poll_all(core, me, &list, deadline)? {
                None => return Ok(false),
                Some(answers) => {
                    if list.is_empty() {
                        return Ok(true);
                    }
                    if answers.is_empty() || drop_mistaken(&mut list, &answers, &counts) {
                        return Ok(true);
                    }
                    // What is left and was answered is no news: see `poll_on_thread`.
                    if answers
                        .iter()
                        .any(|answer| list.contains(&(answer.0, answer.1)))
                    {
                        let Some(answers) = poll_on_thread(core, me, &list, deadline)? else {
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
unsafe fn poll_all(
    core: *mut Core,
    me: TaskId,
    list: &[(i32, u32)],
    deadline: Option<u64>,
) -> Result<Option<Answers>, Failure> {
    // SAFETY: see `switch`; the list of operations is dropped after the protected wait.
    unsafe {
        if let Some(raise) = (*core).take_pending(me) {
            return Err(raise.into());
        }
        let wait = (*core).machine.tasks.begin_wait(me);
        let mut operations: Vec<(i32, u32, OpKey)> = Vec::with_capacity(list.len());
        let mut failed = None;
        for (fd, events) in list {
            let entry = opcode::PollAdd::new(types::Fd(*fd), wakes_for(*events)).build();
            match (*core).machine.submit(entry, wait) {
                Ok(op) => {
                    (*core).waits.begin(*fd, me, Some(op));
                    operations.push((*fd, *events, op));
                }
                Err(error) => failed = error.raw_os_error(),
            }
        }
        let timer = deadline.map(|deadline| (*core).machine.wake_at(deadline, wait));
        let result = match failed {
            None => switch::wait(core, me, None),
            Some(_) => Ok(Wake::Complete),
        };
        let mut answers = Answers::new();
        for (fd, events, op) in operations {
            (*core).waits.end(fd, me);
            match (*core).machine.take(op) {
                Some(completion) => answers.push((fd, events, completion.result)),
                None => drop((*core).machine.abandon(op)),
            }
        }
        if let Some(timer) = timer {
            (*core).machine.timers.cancel(timer);
        }
        let ended = match (result, failed) {
            (_, Some(errno)) => Err(Raise::errno(errno).into()),
            (Ok(Wake::Complete), _) => Ok(Some(answers)),
            (Ok(Wake::Timeout), _) => Ok(None),
            (Ok(Wake::Interrupt), _) => match (*core).take_resumption(me) {
                Some(Resumption::Raise(raise)) => Err(raise.into()),
                Some(Resumption::Value(value)) => Err(Failure::Scheduled(value)),
                None => Ok(Some(answers)),
            },
            (Err(state), _) => Err(Raise::Jump(state).into()),
        };
        (*core).finish_wait(me);
        ended
    }
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: the function takes what its arity says.
    unsafe { sys::define_method(class, c"io_select", io_select as *const (), -1) };
}
