//! waitid and its kin: child processes, and processes by descriptor.

use magnus::{Error, RClass};

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::child::{take, Wanted};
use crate::os::process;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::method::function;
use crate::ruby::{self, number, Outcome, Raise, NIL};

/// Waits for a change of a child process, and takes it. Processes that Ruby started are waited for no more
/// then: `$?` is not set.
///
/// @method UringMachine#waitid(idtype, id, options)
/// @param idtype [Integer] what id is: UM::P_PID, UM::P_PGID, UM::P_PIDFD or UM::P_ALL
/// @param id [Integer] a process, a group of processes (0 is this process's own) or a descriptor of a
///   process
/// @param options [Integer] which change: UM::WEXITED, UM::WSTOPPED, UM::WCONTINUED. With UM::WNOWAIT it is
///   not taken; with UM::WNOHANG there is no waiting
/// @return [Array(Integer, Integer, Integer)] the process, its exit status or the number of the signal, and
///   which of the two it is: UM::CLD_EXITED, UM::CLD_KILLED and so on. All 0 if there is no change, with
///   UM::WNOHANG
/// @raise [SystemCallError] as waitid(2): Errno::ECHILD if there is no such child
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 6.7 by the ring
/// @example
///   machine.waitid(UM::P_PID, pid, UM::WEXITED) #=> [4711, 0, 1]
fn waitid(caller: Caller, arguments: Arguments) -> Answer {
    let wanted = Wanted::new(&arguments)?;
    loop {
        let found = wanted.look(0)?;
        if found.is_none() && wanted.may_wait() {
            wanted.wait(&caller)?;
            continue;
        }
        let numbers = found.map_or([0; 3], |change| [change.pid, change.status, change.code]);
        return Ok(ruby::array_of(&numbers.map(number))?);
    }
}

/// Waits for a change of a child process, and takes it, as a Process::Status.
///
/// @method UringMachine#waitid_status(idtype, id, options)
/// @param idtype [Integer] as for `waitid`
/// @param id [Integer] as for `waitid`
/// @param options [Integer] as for `waitid`, but without UM::WNOWAIT
/// @return [Process::Status, nil] nil if there is no change, with UM::WNOHANG
/// @raise [SystemCallError] as waitid(2): Errno::ECHILD if there is no such child
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 6.7 by the ring
/// @example
///   machine.waitid_status(UM::P_PID, pid, UM::WEXITED).success? #=> true
fn waitid_status(caller: Caller, arguments: Arguments) -> Answer {
    let wanted = Wanted::new(&arguments)?;
    if wanted.options & libc::WNOWAIT != 0 {
        return Err(Raise::argument("options can't have UM::WNOWAIT").into());
    }
    loop {
        match wanted.look(libc::WNOWAIT)? {
            Some(change) => {
                // Somebody else may be quicker: then it waits again.
                let status = take(change.pid, wanted.options)?;
                if status != NIL {
                    return Ok(status);
                }
            }
            None if wanted.may_wait() => wanted.wait(&caller)?,
            None => return Ok(NIL),
        }
    }
}

/// Makes a descriptor of a process, which is ready to be read when the process ends. It is close-on-exec.
///
/// @method UringMachine.pidfd_open(pid)
/// @param pid [Integer] a process
/// @return [Integer] the descriptor
/// @raise [SystemCallError] as pidfd_open(2): Errno::ESRCH if there is no such process
/// @raise [TypeError] if pid is no Integer
/// @raise [ArgumentError] if it is out of range
/// @kernel 5.3
/// @example
///   fd = UM.pidfd_open(pid)
///   machine.waitid(UM::P_PIDFD, fd, UM::WEXITED)
fn pidfd_open(arguments: Arguments) -> Outcome {
    Ok(number(process::open(arguments.int(0, "pid")?)?))
}

/// Sends a signal to a process by its descriptor: never to another one that has got the same number since.
///
/// @method UringMachine.pidfd_send_signal(fd, sig, flags = 0)
/// @param fd [Integer] the descriptor
/// @param sig [Integer] the signal's number, as UM::SIGTERM; 0 only asks whether it could be sent
/// @param flags [Integer] as pidfd_send_signal(2)'s
/// @return [Integer] fd
/// @raise [SystemCallError] as pidfd_send_signal(2): Errno::ESRCH if the process has ended
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 5.1
/// @example
///   UM.pidfd_send_signal(fd, UM::SIGTERM)
fn pidfd_send_signal(arguments: Arguments) -> Outcome {
    let fd = arguments.fd(0, "fd")?;
    let signal = arguments.int(1, "sig")?;
    let flags = match arguments.optional(2) {
        None => 0,
        Some(_) => arguments.unsigned(2, "flags")?,
    };
    process::send_signal(fd, signal, flags)?;
    Ok(arguments.get(0))
}

/// Asks whether a process has ended, reaped or not. Takes nothing and does not wait.
///
/// @method UringMachine.pidfd_ended?(fd)
/// @param fd [Integer] the descriptor of a process
/// @return [Boolean]
/// @raise [SystemCallError] Errno::EBADF
/// @raise [TypeError] if fd is no Integer
/// @raise [ArgumentError] if it is out of range
/// @kernel 5.3
/// @example
///   UM.pidfd_ended?(fd) #=> false
fn has_pidfd_ended(arguments: Arguments) -> Outcome {
    Ok(ruby::boolean(process::has_ended(arguments.fd(0, "fd")?)?))
}

/// Makes this process the parent of its descendants whose own parents end, or ends that.
///
/// @method UringMachine.pr_set_child_subreaper(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @raise [SystemCallError] as prctl(2)
/// @raise [TypeError] if value is neither true nor false
/// @kernel 3.4
/// @example
///   UM.pr_set_child_subreaper(true)
fn pr_set_child_subreaper(arguments: Arguments) -> Outcome {
    let value = arguments.get(0);
    if value != ruby::TRUE && value != ruby::FALSE {
        return Err(arguments::wrong_type(value, "value", "true or false"));
    }
    process::set_child_subreaper(value == ruby::TRUE)?;
    Ok(value)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "waitid", 3..=3, waitid);
    machine_method!(class, "waitid_status", 3..=3, waitid_status);
    function!(class, "pidfd_open", 1..=1, pidfd_open);
    function!(class, "pidfd_send_signal", 2..=3, pidfd_send_signal);
    function!(class, "pidfd_ended?", 1..=1, has_pidfd_ended);
    function!(
        class,
        "pr_set_child_subreaper",
        1..=1,
        pr_set_child_subreaper
    );
    Ok(())
}
