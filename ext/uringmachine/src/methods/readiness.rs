//! poll and select: waiting for descriptors without using them.

use std::ffi::c_int;

use magnus::{Error, RClass};
use uringmachine_runtime::operations::Poll;
use uringmachine_runtime::types;

use crate::machine::caller::{machine_method, number, Answer, Caller};
use crate::machine::poll::{poll_on_thread, selects, wait_for_any, wakes_for, NEVER_WAKES};
use crate::machine::switch::Failure;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, Raise, VALUE};

/// Waits until a descriptor is ready: at once, if bytes have come before that nobody was given.
///
/// @method UringMachine#poll(fd, mask)
/// @param fd [Integer] file descriptor
/// @param mask [Integer] what for: UM::POLLIN, UM::POLLOUT, or both
/// @return [Integer] what it is ready for; UM::POLLERR and POLLHUP too, if they are so
/// @raise [SystemCallError] Errno::EBADF
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 5.1
/// @example
///   machine.poll(fd, UM::POLLIN) #=> 1, which is UM::POLLIN
fn poll(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: a poll points to nothing.
    unsafe {
        let fd = types::Fd(arguments.fd(0, "fd")?);
        let mask = arguments.unsigned(1, "mask")?;
        if mask & READS != 0 && caller.kept(fd.0)?.is_some() {
            return Ok(number((mask & READS) as i32));
        }
        let wanted = wakes_for(mask);
        let poll = Poll {
            fd: fd.0,
            events: wanted,
        };
        let mut answer = match caller.result(poll) {
            Err(Failure::Raise(Raise::Errno(errno))) if -errno == NEVER_WAKES => 0,
            answer => answer?,
        };
        loop {
            // What was added to be woken is nothing that was asked for.
            let asked = answer & (mask as i32 | i32::from(ALWAYS | libc::POLLNVAL));
            if asked != 0 {
                return Ok(number(asked));
            }
            let answers = poll_on_thread(caller.core, caller.me, &[(fd.0, wanted)], None)?;
            answer = answers.map_or(0, |answers| answers[0]);
        }
    }
}

/// The events of a descriptor that has bytes to read.
const READS: u32 = (libc::POLLIN | libc::POLLRDNORM) as u32;

/// The events that the three sets of `select` wait for.
const EVENTS: [libc::c_short; 3] = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
/// What makes a descriptor ready in whichever set it is.
const ALWAYS: libc::c_short = libc::POLLERR | libc::POLLHUP;

/// Waits until one of many descriptors is ready.
///
/// @method UringMachine#select(rfds, wfds, efds)
/// @param rfds [Array<Integer>, nil] descriptors to read from
/// @param wfds [Array<Integer>, nil] descriptors to write to
/// @param efds [Array<Integer>, nil] descriptors with urgent data, or an error
/// @return [Array(Array<Integer>, Array<Integer>, Array<Integer>)] those of each that are ready. Without a
///   descriptor it returns at once
/// @raise [SystemCallError] Errno::EBADF if one is closed
/// @raise [TypeError] if a set is no Array, or a descriptor no Integer
/// @raise [ArgumentError] if a descriptor is out of range
/// @kernel 5.1
/// @example
///   machine.select([first, second], [], []) #=> [[second], [], []]
fn select(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: see `switch`.
    unsafe {
        let sets = read_sets(&arguments)?;
        let ready = wait_for_ready(&caller, &sets)?;
        Ok(to_arrays(ready)?)
    }
}

/// The descriptors of each set.
type Sets = [Vec<c_int>; 3];

unsafe fn read_sets(arguments: &Arguments) -> Result<Sets, Raise> {
    let mut sets = Sets::default();
    for (place, name) in ["rfds", "wfds", "efds"].into_iter().enumerate() {
        let Some(list) = arguments.optional(place) else {
            continue;
        };
        // SAFETY: the type is checked; nothing of Ruby's runs that could shorten the array.
        unsafe {
            if !ruby::is_array(list) {
                return Err(arguments::wrong_type(list, name, "an Array"));
            }
            for index in 0..rb_sys::RARRAY_LEN(list) {
                let fd = rb_sys::rb_ary_entry(list, index as _);
                sets[place].push(arguments::int(fd, name)?);
            }
        }
    }
    Ok(sets)
}

/// Waits by polls of the ring, then asks poll(2) which are ready: all that are, not only the first, and
/// none that has been taken by another fiber meanwhile.
unsafe fn wait_for_ready(caller: &Caller, sets: &Sets) -> Result<Sets, Failure> {
    let wanted: Vec<(c_int, u32)> = (sets.iter().zip(EVENTS))
        .flat_map(|(fds, events)| fds.iter().map(move |fd| (*fd, events as u32)))
        .collect();
    if wanted.is_empty() {
        return Ok(Sets::default());
    }
    loop {
        // What was read ahead can be read at once.
        let mut kept = Vec::new();
        for fd in &sets[0] {
            // SAFETY: see `switch`.
            if unsafe { caller.again().kept(*fd)? }.is_some() {
                kept.push(*fd);
            }
        }
        if kept.is_empty() {
            // SAFETY: see `switch`.
            unsafe {
                let caller = caller.again();
                wait_for_any(caller.core, caller.me, &wanted, None, |events| {
                    selects(events) | i32::from(ALWAYS)
                })?;
            }
        }
        let mut ready = Sets::default();
        for (place, fds) in sets.iter().enumerate() {
            ready[place] = ready_now(fds, EVENTS[place])?;
        }
        if !kept.is_empty() {
            let now = std::mem::take(&mut ready[0]);
            ready[0] = (sets[0].iter().copied())
                .filter(|fd| kept.contains(fd) || now.contains(fd))
                .collect();
        }
        if ready.iter().any(|fds| !fds.is_empty()) {
            return Ok(ready);
        }
    }
}

/// Those of some descriptors that are ready now.
fn ready_now(fds: &[c_int], events: libc::c_short) -> Result<Vec<c_int>, Raise> {
    let mut polls: Vec<libc::pollfd> = fds
        .iter()
        .map(|fd| libc::pollfd {
            fd: *fd,
            events,
            revents: 0,
        })
        .collect();
    crate::os::poll_now(&mut polls)?;
    // poll(2) ignores negative numbers.
    if polls
        .iter()
        .any(|poll| poll.fd < 0 || poll.revents & libc::POLLNVAL != 0)
    {
        return Err(Raise::errno(libc::EBADF));
    }
    Ok(polls
        .iter()
        .filter(|poll| poll.revents & (events | ALWAYS) != 0)
        .map(|poll| poll.fd)
        .collect())
}

unsafe fn to_arrays(sets: Sets) -> Result<VALUE, Raise> {
    // SAFETY: the arrays are on this frame; what may raise is stopped here.
    let result = unsafe {
        ruby::protect(|| {
            let arrays = rb_sys::rb_ary_new_capa(3);
            for set in &sets {
                let array = rb_sys::rb_ary_new_capa(set.len() as _);
                rb_sys::rb_ary_push(arrays, array);
                for fd in set {
                    rb_sys::rb_ary_push(array, number(*fd));
                }
            }
            arrays
        })
    };
    result.map_err(Raise::Jump)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "poll", 2..=2, poll);
    machine_method!(class, "select", 3..=3, select);
    Ok(())
}
