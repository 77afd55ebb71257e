//! Telling of a fiber that failed, as a thread does (thread.c, rb_threadptr_report_on_exception). What cannot be told
//! harms nobody else.

use super::poll::wait_ready;
use super::{interrupts, Machine};
use crate::os::fd::Fd;
use crate::ruby::call::call_with_keywords;
use crate::ruby::{
    call, class_of, classes, duration, fiber, io, is_a, is_file, options, string, truthy, Outcome,
    Raise, Value, FALSE,
};

/// How long the report waits for room, in nanoseconds; and what a pipe with room takes at once (pipe(7), PIPE_BUF).
const PATIENCE: u64 = 1_000_000_000;
const PIECE: usize = 4096;

/// Whether an exception ends more than the fiber it was raised in, whatever is set: `exit`, a signal, a shortage of
/// memory, and what was raised in the thread from outside.
pub fn is_fatal(exception: Value) -> bool {
    is_a(exception, classes::system_exit())
        || is_a(exception, classes::signal_exception())
        || is_a(exception, classes::no_memory_error())
        || interrupts::is_for_thread(exception)
}

/// Writes to $stderr what a fiber failed by. What that fails by is lost, but for what ends more than a fiber. The machine
/// is that of the fiber, if it has one.
pub fn report(machine: Option<&Machine>, exception: Value) -> Result<(), Raise> {
    if !wants_report() {
        return Ok(());
    }
    let told = attempt(machine, || describe(exception))?;
    if !told {
        attempt(machine, || describe_class(exception))?;
    }
    Ok(())
}

/// Whether words could be made and written.
fn attempt(machine: Option<&Machine>, words: impl FnOnce() -> Outcome) -> Result<bool, Raise> {
    match words().and_then(|text| write(machine, text)) {
        Ok(()) => Ok(true),
        Err(Raise::Exception(error)) if !is_fatal(error) => Ok(false),
        Err(Raise::Errno(_)) => Ok(false),
        Err(raise) => Err(raise),
    }
}

/// Thread#report_on_exception of the current thread.
fn wants_report() -> bool {
    let wanted = call(fiber::current_thread(), "report_on_exception", &[]);
    wanted.map_or(true, truthy)
}

/// The fiber, and the exception in full.
fn describe(exception: Value) -> Outcome {
    let text = begin()?;
    let highlight = options(&[("highlight", FALSE)])?;
    let message = call_with_keywords(exception, "full_message", &[highlight])?;
    string::append_string(text, message)?;
    Ok(text)
}

/// The fiber, and no more of the exception than its class: it has no words for itself.
fn describe_class(exception: Value) -> Outcome {
    let text = begin()?;
    string::append_string(text, string::class_name(class_of(exception))?)?;
    string::append(text, b" (its message cannot be had)\n")?;
    Ok(text)
}

fn begin() -> Outcome {
    let text = string::duplicate(string::of_any(fiber::current())?)?;
    let middle = b" terminated with exception (report_on_exception is true):\n";
    string::append(text, middle)?;
    Ok(text)
}

/// Writes to $stderr, in pieces that do not wait, as long as there is room in time.
fn write(machine: Option<&Machine>, text: Value) -> Result<(), Raise> {
    let stderr = io::standard_error()?;
    let say = |piece| call(stderr, "write", &[piece]).map(drop);
    if !is_file(stderr) {
        return say(text);
    }
    let bytes = string::copy(text);
    for bytes in bytes.chunks(PIECE) {
        if !has_room(machine, stderr)? {
            break;
        }
        let piece = string::empty_like(text)?;
        string::append(piece, bytes)?;
        say(piece)?;
    }
    Ok(())
}

fn has_room(machine: Option<&Machine>, io: Value) -> Result<bool, Raise> {
    let fd = io::descriptor(io)?;
    if Fd(fd).events_now(libc::POLLOUT) != 0 {
        return Ok(true);
    }
    match machine.filter(|machine| !machine.is_forked()) {
        None => {
            let milliseconds = (PATIENCE / 1_000_000) as i32;
            Ok(Fd(fd).poll(libc::POLLOUT, milliseconds) != Ok(0))
        }
        Some(machine) => {
            let me = machine.current_task();
            let deadline = Some(duration::from_now(PATIENCE));
            let events = wait_ready(machine, me, fd, i64::from(libc::POLLOUT), deadline)?;
            Ok(events != 0)
        }
    }
}
