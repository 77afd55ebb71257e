//! io_select.

use magnus::{method, Error, Module, RClass};
use uringmachine_runtime::clock;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::operate::Failure;
use crate::machine::poll::{selects, wait_for_any};
use crate::machine::wait::Ended;
use crate::ruby::arguments::Arguments;
use crate::ruby::call::call_running;
use crate::ruby::this::This;
use crate::ruby::{
    array, array_of, call, classes, collections, duration, fixnum, io, Outcome, Raise, Value, NIL,
};
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
fn io_select(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 1..=4)?;
    let machine = this.machine()?;
    let argument = |place| arguments.all().get(place).copied().unwrap_or(NIL);
    machine.take_turns(machine.current_task())?;
    let sets = [argument(0), argument(1), argument(2)];
    let deadline = duration::deadline(argument(3))?;
    if tls::is_any_held() {
        let held = held_among(sets[0])?;
        if collections::length(held) > 0 {
            return array_of(&[held, array()?, array()?]);
        }
    }
    let ready = select_now(&sets)?;
    let is_over = || deadline.is_some_and(|at| at <= clock::now());
    if ready != NIL || is_over() {
        return Ok(ready);
    }
    let me = machine.current_task();
    let descriptors = descriptors(&sets)?;
    loop {
        let woken = if let Some(list) = &descriptors {
            match wait_for_any(machine, me, list, deadline, selects) {
                Ok(woken) => woken,
                Err(Failure::Raise(raise)) => return Err(raise),
                Err(Failure::Scheduled(_) | Failure::Timeout) => true,
            }
        } else {
            machine.pause(me, deadline)? != Ended::Deadline
        };
        let ready = select_now(&sets)?;
        if ready != NIL || !woken || is_over() {
            return Ok(ready);
        }
    }
}

/// Those whose descriptors have records on the ring's side of a TLS connection: the kernel knows nothing of them.
fn held_among(set: Value) -> Outcome {
    let held = array()?;
    for one in collections::entries(set) {
        if tls::is_held(io::descriptor(io::from(one)?)?) {
            collections::push(held, one)?;
        }
    }
    Ok(held)
}

/// IO.select(*sets, 0), past every hook.
fn select_now(sets: &[Value; 3]) -> Outcome {
    let arguments = [sets[0], sets[1], sets[2], fixnum(0)];
    let mut select = || call(classes::io(), "select", &arguments);
    call_running(classes::fiber(), "blocking", &[], &mut select)
}

/// The descriptors with their events; `None` if there is nothing to wait for but the time.
fn descriptors(sets: &[Value; 3]) -> Result<Option<Vec<(i32, u32)>>, Raise> {
    let events = [libc::POLLIN, libc::POLLOUT, libc::POLLPRI];
    let mut list = Vec::new();
    for (set, events) in sets.iter().zip(events) {
        for one in collections::entries(*set) {
            // IO.select has accepted the sets, but `to_io` may still raise.
            let mut io = io::from(one)?;
            if events == libc::POLLOUT {
                io = io::writer(io);
            }
            let (fd, events) = (io::descriptor(io)?, events as u32);
            match list.iter_mut().find(|(known, _)| *known == fd) {
                Some((_, wanted)) => *wanted |= events,
                None => list.push((fd, events)),
            }
        }
    }
    Ok((!list.is_empty()).then_some(list))
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_select", method!(io_select, -1))?;
    Ok(())
}
