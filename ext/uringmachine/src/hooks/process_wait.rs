//! process_wait.

use magnus::{method, Error, Module, RClass};
use uringmachine_runtime::TaskId;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::child::await_change;
use crate::machine::operate::Failure;
use crate::machine::Machine;
use crate::os::process;
use crate::ruby::this::This;
use crate::ruby::{process_status, to_int, Outcome, Raise, Value, NIL};

/// Waits for a child to change.
///
/// The ring waits for the change without taking it (WNOWAIT); Ruby then takes it, so that the status is
/// Ruby's own. Somebody else may have been quicker: then it waits again.
///
/// @method UringMachine::FiberScheduler#process_wait(pid, flags)
/// @param pid [Integer] any that waitpid(2) takes: a child, -1, 0, a group
/// @param flags [Integer] as of waitpid(2)
/// @return [Process::Status]
/// @kernel 6.7, with a native thread on older ones
/// @example
///   scheduler.process_wait(-1, 0).exitstatus #=> 0
fn process_wait(this: This<Scheduler>, pid: Value, flags: Value) -> Outcome {
    wait_for_child(this.machine()?, pid, flags)
}

/// The hook, on a machine.
pub fn wait_for_child(machine: &Machine, pid: Value, flags: Value) -> Outcome {
    let (pid, flags) = (to_int(pid)?, to_int(flags)?);
    let me = machine.current_task();
    machine.take_turns(me)?;
    loop {
        let status = process_status(pid, flags | libc::WNOHANG)?;
        if status != NIL || flags & libc::WNOHANG != 0 {
            return Ok(status);
        }
        wait_for_change(machine, me, pid, flags)?;
    }
}

/// Returns when a child has changed, or when waiting for it makes no sense: the caller looks.
fn wait_for_change(machine: &Machine, me: TaskId, pid: i32, flags: i32) -> Result<(), Raise> {
    let (id_type, id) = match pid {
        -1 => (libc::P_ALL, 0),
        0 => (libc::P_PGID, process::group()),
        group if group < -1 => (libc::P_PGID, -group),
        pid => (libc::P_PID, pid),
    };
    let mut options = libc::WEXITED;
    if flags & libc::WUNTRACED != 0 {
        options |= libc::WSTOPPED;
    }
    options |= flags & libc::WCONTINUED;
    // ECHILD is for Ruby's own wait to report.
    match await_change(machine, me, id_type, id as u32, options) {
        Ok(_) | Err(Failure::Timeout | Failure::Scheduled(_)) => Ok(()),
        Err(Failure::Raise(raise)) => Err(raise),
    }
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("process_wait", method!(process_wait, 2))?;
    Ok(())
}
