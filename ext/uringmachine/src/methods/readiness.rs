//! poll and select: waiting for descriptors without using them.

use std::ffi::c_int;

use magnus::{Error, RClass};
use uringmachine_runtime::operations::Poll;

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::operate::Failure;
use crate::machine::poll::{poll_on_thread, selects, wait_for_any, wakes_for, NEVER_WAKES};
use crate::os::fd;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, collections, number, Outcome, Raise, NIL};

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
    let fd = arguments.fd(0, "fd")?;
    let mask = arguments.unsigned(1, "mask")?;
    if mask & READS != 0 && caller.kept(fd)?.is_some() {
        return Ok(number((mask & READS) as i32));
    }
    let events = wakes_for(mask);
    let mut answer = match caller.ask(Poll { fd, events }) {
        Err(Failure::Raise(Raise::Errno(errno))) if -errno == NEVER_WAKES => 0,
        answer => answer?,
    };
    loop {
        // What was added to be woken is nothing that was asked for.
        let asked = answer & (mask as i32 | i32::from(ALWAYS | libc::POLLNVAL));
        if asked != 0 {
            return Ok(number(asked));
        }
        let answers = poll_on_thread(caller.machine, caller.me, &[(fd, events)], None)?;
        answer = answers.map_or(0, |answers| answers[0]);
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
    let sets = read_sets(&arguments)?;
    let ready = wait_for_ready(&caller, &sets)?;
    Ok(to_arrays(&ready)?)
}

/// The descriptors of each set.
type Sets = [Vec<c_int>; 3];

fn read_sets(arguments: &Arguments) -> Result<Sets, Raise> {
    let mut sets = Sets::default();
    for (place, name) in ["rfds", "wfds", "efds"].into_iter().enumerate() {
        let Some(list) = arguments.optional(place) else {
            continue;
        };
        if !ruby::is_array(list) {
            return Err(arguments::wrong_type(list, name, "an Array"));
        }
        for fd in collections::entries(list) {
            sets[place].push(arguments::int(fd, name)?);
        }
    }
    Ok(sets)
}

/// Waits by polls of the ring, then asks poll(2) which are ready: all that are, not only the first, and
/// none that has been taken by another fiber meanwhile.
fn wait_for_ready(caller: &Caller, sets: &Sets) -> Result<Sets, Failure> {
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
            if caller.again().kept(*fd)?.is_some() {
                kept.push(*fd);
            }
        }
        if kept.is_empty() {
            let caller = caller.again();
            wait_for_any(caller.machine, caller.me, &wanted, None, |events| {
                selects(events) | i32::from(ALWAYS)
            })?;
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
    let mut polls: Vec<_> = fds.iter().map(|fd| fd::entry(*fd, events)).collect();
    fd::poll_now(&mut polls)?;
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

fn to_arrays(sets: &Sets) -> Outcome {
    let mut arrays = [NIL; 3];
    for (array, set) in arrays.iter_mut().zip(sets) {
        let numbers: Vec<_> = set.iter().copied().map(number).collect();
        *array = ruby::array_of(&numbers)?;
    }
    ruby::array_of(&arrays)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "poll", 2..=2, poll);
    machine_method!(class, "select", 3..=3, select);
    Ok(())
}
