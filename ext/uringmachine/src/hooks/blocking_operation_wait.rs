//! blocking_operation_wait: what has no operation in io_uring.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::off_thread::{at_once, ruby_threads};
use crate::ruby::blocking_operation;
use crate::ruby::call::called_from;
use crate::ruby::this::This;
use crate::ruby::{Outcome, Value};

/// Whether the operation is the close of an IO, which has forgotten its descriptor by now: if anything is raised first,
/// nobody closes it. From Ruby 4.0 on `io_close` is called for it.
fn is_close() -> bool {
    // A connect whose wait was ended closes its descriptor before the frame of that has gone (ext/socket/ipsocket.c,
    // inetsock_cleanup): if anything else were raised there, nobody would.
    const CLOSES: [&[u8]; 5] = [
        b"close",
        b"close_read",
        b"close_write",
        b"reopen",
        b"io_wait",
    ];
    called_from(b"blocking_operation_wait", &CLOSES)
}

/// Runs a blocking operation on a worker thread while other fibers run here.
///
/// @method UringMachine::FiberScheduler#blocking_operation_wait(operation)
/// @param operation [#call] what Ruby hands over
/// @return [Object] ignored by Ruby; nil leaves the operation to it
/// @example
///   # called by Ruby for zlib, File.stat and others
fn blocking_operation_wait(this: This<Scheduler>, operation: Value) -> Outcome {
    let machine = this.machine()?;
    let me = machine.current_task();
    if blocking_operation::is_there() {
        machine.take_turns(me)?;
        return ruby_threads::wait(machine, me, operation);
    }
    let sort = at_once::sort();
    if sort.is_none() && is_close() {
        return ruby_threads::finish(machine, me, operation);
    }
    machine.take_turns(me)?;
    ruby_threads::wait_for_callable(machine, me, operation, sort)
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method(
        "blocking_operation_wait",
        method!(blocking_operation_wait, 1),
    )?;
    Ok(())
}
