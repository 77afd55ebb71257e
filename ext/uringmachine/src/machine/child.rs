//! Waiting for children.

use std::ffi::c_int;

use uringmachine_runtime::operations::WaitId;
use uringmachine_runtime::TaskId;

use super::caller::{count, Caller};
use super::operate::Failure;
use super::{thread_call, Machine};
use crate::os::process::{self, Change};
use crate::os::Errno;
use crate::ruby::arguments::Arguments;
use crate::ruby::{call, number, process_status, Outcome, Raise, NIL, TRUE};

/// Waits until a child has changed, without taking the change. The result is 0, or -errno.
pub fn await_change(
    machine: &Machine,
    me: TaskId,
    id_type: libc::idtype_t,
    id: u32,
    options: i32,
) -> Result<i32, Failure> {
    let options = options | libc::WNOWAIT;
    if !machine.parts().driver.features().waitid {
        return thread_call::wait_id(machine, me, id_type, id, options);
    }
    let mut wait = WaitId {
        id_type,
        id,
        options,
    };
    machine.operate(me, &mut wait, None)
}

/// Whose change, and which, as waitid(2) takes them.
#[derive(Clone, Copy)]
pub struct Wanted {
    pub id_type: libc::idtype_t,
    pub id: libc::id_t,
    pub options: c_int,
}

impl Wanted {
    pub fn new(arguments: &Arguments) -> Result<Self, Raise> {
        Ok(Self {
            id_type: arguments.unsigned(0, "idtype")?,
            id: arguments.unsigned(1, "id")?,
            options: arguments.int(2, "options")?,
        })
    }

    /// waitid(2) without waiting; `None` if there is no change.
    pub fn look(&self, options: c_int) -> Result<Option<Change>, Errno> {
        let options = self.options | libc::WNOHANG | options;
        process::wait(self.id_type, self.id, options)
    }

    pub fn may_wait(&self) -> bool {
        self.options & libc::WNOHANG == 0
    }

    /// Returns when there may be a change. It is not taken: a wait that is ended loses none.
    pub fn wait(&self, caller: &Caller) -> Result<(), Failure> {
        let result = await_change(
            caller.machine,
            caller.me,
            self.id_type,
            self.id,
            self.options,
        );
        count(result?).map(drop)
    }
}

/// Takes the change of a child, by Ruby itself; nil if there is none.
pub fn take(pid: libc::pid_t, options: c_int) -> Outcome {
    let mut flags = libc::WNOHANG | options & libc::WCONTINUED;
    if options & libc::WSTOPPED != 0 {
        flags |= libc::WUNTRACED;
    }
    let status = process_status(pid, flags)?;
    if status == NIL || call(status, "pid", &[])? != number(pid) {
        return Ok(NIL);
    }
    Ok(status)
}

/// Takes the status of a process that has ended, by its descriptor; true if it is no child, or somebody has taken
/// it. No other thread of Ruby's runs between the look and the taking.
pub fn take_status(fd: i32) -> Outcome {
    let wanted = Wanted {
        id_type: libc::P_PIDFD,
        id: fd as libc::id_t,
        options: libc::WEXITED,
    };
    match wanted.look(libc::WNOWAIT) {
        Ok(Some(change)) => match take(change.pid, wanted.options)? {
            NIL => Ok(TRUE),
            status => Ok(status),
        },
        Ok(None) | Err(Errno(libc::ECHILD)) => Ok(TRUE),
        Err(errno) => Err(errno.into()),
    }
}
