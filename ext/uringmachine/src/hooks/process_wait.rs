//! process_wait.

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Ruby, Value};
use uringmachine_runtime::TaskId;

use crate::classes::fiber_scheduler::Scheduler;
use crate::machine::child::await_change;
use crate::machine::switch::{self, Failure};
use crate::machine::Core;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL};

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
fn process_wait(
    ruby: &Ruby,
    this: This<Scheduler>,
    pid: Value,
    flags: Value,
) -> Result<Value, Error> {
    let (pid, flags) = (pid.as_raw(), flags.as_raw());
    settle(ruby, || {
        // SAFETY: see `switch`.
        unsafe {
            let core = this.core()?;
            let pid = rb_sys::rb_num2int(pid) as i32;
            let flags = rb_sys::rb_num2int(flags) as i32;
            let me = (*core).current_task();
            switch::take_turns(core, me)?;
            loop {
                let status = ruby::rb_process_status_wait(pid, flags | libc::WNOHANG);
                if status != NIL || flags & libc::WNOHANG != 0 {
                    return Ok(status);
                }
                wait_for_change(core, me, pid, flags)?;
            }
        }
    })
}

/// Returns when a child has changed, or when waiting for it makes no sense: the caller looks.
unsafe fn wait_for_change(core: *mut Core, me: TaskId, pid: i32, flags: i32) -> Result<(), Raise> {
    let (id_type, id) = match pid {
        -1 => (libc::P_ALL, 0),
        // SAFETY: getpgrp cannot fail.
        0 => (libc::P_PGID, unsafe { libc::getpgrp() }),
        group if group < -1 => (libc::P_PGID, -group),
        pid => (libc::P_PID, pid),
    };
    let mut options = libc::WEXITED;
    if flags & libc::WUNTRACED != 0 {
        options |= libc::WSTOPPED;
    }
    options |= flags & libc::WCONTINUED;
    // ECHILD is for Ruby's own wait to report.
    // SAFETY: see `switch`.
    match unsafe { await_change(core, me, id_type, id as u32, options) } {
        Ok(_) | Err(Failure::Timeout | Failure::Scheduled(_)) => Ok(()),
        Err(Failure::Raise(raise)) => Err(raise),
    }
}

pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("process_wait", method!(process_wait, 2))?;
    Ok(())
}
