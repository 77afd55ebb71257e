//! Waiting for children.

use std::ffi::c_int;

use uringmachine_runtime::{opcode, TaskId};

use super::caller::{count, number, Caller};
use super::switch::{self, Failure};
use super::{thread_call, Core};
use crate::os::direct;
use crate::ruby::arguments::Arguments;
use crate::ruby::{self, Outcome, Raise, NIL};

/// Waits until a child has changed, without taking the change. The result is 0, or -errno.
pub unsafe fn await_change(
    core: *mut Core,
    me: TaskId,
    id_type: libc::idtype_t,
    id: u32,
    options: i32,
) -> Result<i32, Failure> {
    let options = options | libc::WNOWAIT;
    // SAFETY: WAITID without a siginfo points to nothing.
    unsafe {
        if !(*core).driver.features().waitid {
            return thread_call::wait_id(core, me, id_type, id, options);
        }
        let entry = opcode::WaitId::new(id_type, id, options).build();
        switch::operate(core, me, entry, None)
    }
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
    pub fn look(&self, options: c_int) -> Result<Option<libc::siginfo_t>, Raise> {
        let options = self.options | libc::WNOHANG | options;
        // SAFETY: an all-zero siginfo is valid; the call fills it, or leaves its pid 0.
        unsafe {
            let mut info: libc::siginfo_t = std::mem::zeroed();
            direct(libc::waitid(self.id_type, self.id, &mut info, options))?;
            Ok((info.si_pid() != 0).then_some(info))
        }
    }

    pub fn may_wait(&self) -> bool {
        self.options & libc::WNOHANG == 0
    }

    /// Returns when there may be a change. It is not taken: a wait that is ended loses none.
    pub unsafe fn wait(&self, caller: &Caller) -> Result<(), Failure> {
        // SAFETY: the caller's fiber waits.
        let result =
            unsafe { await_change(caller.core, caller.me, self.id_type, self.id, self.options) };
        count(result?).map(drop)
    }
}

/// Takes the change of a child, by Ruby itself; nil if there is none.
pub unsafe fn take(pid: libc::pid_t, options: c_int) -> Outcome {
    let mut flags = libc::WNOHANG | options & libc::WCONTINUED;
    if options & libc::WSTOPPED != 0 {
        flags |= libc::WUNTRACED;
    }
    // SAFETY: what may raise is protected.
    unsafe {
        ruby::protect(|| {
            let status = ruby::rb_process_status_wait(pid, flags);
            if status == NIL || ruby::funcall(status, ruby::id("pid"), &[]) != number(pid) {
                return NIL;
            }
            status
        })
        .map_err(Raise::Jump)
    }
}

/// Takes the status of a process that has ended, by its descriptor; true if it is no child, or somebody has taken
/// it. No other thread of Ruby's runs between the look and the taking.
pub unsafe fn take_status(fd: i32) -> Outcome {
    let wanted = Wanted {
        id_type: libc::P_PIDFD,
        id: fd as libc::id_t,
        options: libc::WEXITED,
    };
    // SAFETY: a siginfo of a child's end has a pid.
    unsafe {
        match wanted.look(libc::WNOWAIT) {
            Ok(Some(info)) => match take(info.si_pid(), wanted.options)? {
                NIL => Ok(ruby::TRUE),
                status => Ok(status),
            },
            Ok(None) | Err(Raise::Errno(libc::ECHILD)) => Ok(ruby::TRUE),
            Err(raise) => Err(raise),
        }
    }
}
