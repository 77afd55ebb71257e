//! io_wait: the hottest hook of database drivers and OpenSSL.

use std::os::fd::RawFd;

use magnus::{method, Error, Module, RClass};
use uringmachine_runtime::TaskId;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::operate::Failure;
use crate::machine::poll::{poll_on_thread, ready_events, wait_ready};
use crate::machine::Machine;
use crate::os::fd::Fd;
use crate::ruby::arguments::Arguments;
use crate::ruby::this::This;
use crate::ruby::{as_fixnum, classes, duration, fixnum, gvl, io, Outcome, Raise, Value, FALSE};
use crate::tls;

/// IO::READABLE, IO::PRIORITY and IO::WRITABLE are poll(2)'s numbers.
const EVENTS: i64 = (libc::POLLIN | libc::POLLPRI | libc::POLLOUT) as i64;

/// Waits for what poll(2) answers to events that are none of the three: which of the three it means, or 0.
#[cold]
fn wait_as_poll(
    machine: &Machine,
    me: TaskId,
    fd: RawFd,
    events: i64,
    deadline: Option<u64>,
) -> Result<i64, Raise> {
    loop {
        match poll_on_thread(machine, me, &[(fd, events as u32)], deadline) {
            Ok(answers) => return Ok(answers.map_or(0, |answers| ready_events(answers[0]))),
            Err(Failure::Raise(raise)) => return Err(raise),
            Err(_) => {}
        }
    }
}

/// Waits until an IO is ready. An error ends every wait, and is readable and writable; so does a hang-up, which is
/// readable.
///
/// @method UringMachine::FiberScheduler#io_wait(io, events, timeout = nil)
/// @param io [IO]
/// @param events [Integer] IO::READABLE, IO::PRIORITY and IO::WRITABLE; others are waited for as poll(2) does, and
///   are not told of
/// @param timeout [Numeric, nil] seconds; nil is io.timeout
/// @return [Integer, false] the events that are ready; false after the timeout
/// @raise [ArgumentError] if events is not positive
/// @kernel 5.5
/// @example
///   scheduler.io_wait(io, IO::WRITABLE) #=> 4
fn io_wait(this: This<Scheduler>, arguments: &[magnus::Value]) -> Outcome {
    let arguments = Arguments::of(arguments, 2..=3)?;
    let (io, events) = (arguments.get(0), arguments.get(1));
    let Some(events) = as_fixnum(events) else {
        return Err(Raise::new(
            classes::type_error(),
            "events must be an Integer",
        ));
    };
    if events <= 0 {
        return Err(Raise::argument("Events must be positive integer!"));
    }
    // An offloaded IO.copy_stream waits on the worker's thread (io.c, nogvl_wait_for).
    let is_foreign = this.is_foreign();
    if !is_foreign {
        // Before the descriptor has a number here, which might be another file's after it.
        let machine = this.machine()?;
        machine.take_turns(machine.current_task())?;
    }
    // Others are poll(2)'s: Ruby's own wait asks for them too, and tells of none.
    let (asked, events) = (events, events & EVENTS);
    let (fd, timeout) = match arguments.optional(2) {
        Some(timeout) => (io::descriptor(io)?, timeout),
        None => io::descriptor_and_timeout(io)?,
    };
    let timeout = duration::nanoseconds(timeout)?;
    let readable = events & i64::from(libc::POLLIN);
    if readable != 0 && tls::is_held(fd) {
        return Ok(fixnum(readable));
    }
    if is_foreign {
        return plain_poll(fd, if events == 0 { asked } else { events }, timeout);
    }
    let machine = this.machine()?;
    if timeout == Some(0) {
        return plain_poll(fd, if events == 0 { asked } else { events }, timeout);
    }
    let me = machine.current_task();
    let deadline = timeout.map(duration::from_now);
    let ready = if events == 0 {
        wait_as_poll(machine, me, fd, asked, deadline)?
    } else {
        wait_ready(machine, me, fd, events, deadline)?
    };
    Ok(answer(ready))
}

/// The events that are ready, as the hook returns them.
fn answer(ready: i64) -> Value {
    match ready {
        0 => FALSE,
        ready => fixnum(ready),
    }
}

/// poll(2): at once with the GVL, else without.
fn plain_poll(fd: RawFd, events: i64, timeout: Option<u64>) -> Outcome {
    let milliseconds = match timeout {
        None => -1,
        Some(nanoseconds) => i32::try_from(nanoseconds.div_ceil(1_000_000)).unwrap_or(i32::MAX),
    };
    let poll = || Fd(fd).poll(events as i16, milliseconds);
    let polled = match milliseconds {
        0 => Some(poll()),
        _ => gvl::system_call(poll)?,
    };
    let ready = polled.and_then(Result::ok).unwrap_or(0);
    Ok(answer(ready_events(i32::from(ready))))
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("io_wait", method!(io_wait, -1))?;
    Ok(())
}
