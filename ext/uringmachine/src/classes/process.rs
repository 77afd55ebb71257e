//! The native part of UM::Process: the descriptor, and who uses it. Each method here is one step for all threads, and
//! for the handlers of signals, which may take no lock: none of them acts on a descriptor that was closed meanwhile.
//! The rest is lib/uringmachine/process.rb.

use std::cell::Cell;

use magnus::prelude::*;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};

use crate::machine::child;
use crate::os::fd::Fd;
use crate::os::process as processes;
use crate::ruby::this::This;
use crate::ruby::{as_fixnum, id, set_variable, variable, Id, Outcome, Raise, Value, NIL};

/// What a UM::Process holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::Process", size, free_immediately)]
pub struct Process {
    fd: Cell<i32>,
    /// How many wait by the descriptor.
    users: Cell<usize>,
    closed: Cell<bool>,
}

impl Default for Process {
    fn default() -> Self {
        Self {
            fd: Cell::new(-1),
            users: Cell::new(0),
            closed: Cell::new(true),
        }
    }
}

impl DataTypeFunctions for Process {}

impl Drop for Process {
    fn drop(&mut self) {
        self.close();
    }
}

impl Process {
    fn close(&self) {
        close_fd(self.fd.replace(-1));
    }

    fn open_fd(&self) -> Result<i32, Raise> {
        if self.closed.get() {
            return Err(Raise::misuse("closed process"));
        }
        Ok(self.fd.get())
    }
}

/// Closes a descriptor that is the object's own.
fn close_fd(fd: i32) {
    if fd >= 0 {
        let _ = Fd(fd).close();
    }
}

/// Gives the descriptor of a process to the object, once.
fn adopt(this: This<Process>, fd: Value) -> Result<This<Process>, Raise> {
    let fd = as_fixnum(fd).map_or(-1, |fd| fd as i32);
    if !this.closed.get() || this.fd.get() >= 0 {
        close_fd(fd);
        return Err(Raise::misuse("already initialized process"));
    }
    this.fd.set(fd);
    this.closed.set(false);
    Ok(this)
}

/// @method UringMachine::Process#fileno
/// @return [Integer] the descriptor, which is ready to be read when the process has ended
/// @raise [UringMachine::Error] if it is closed
/// @example
///   machine.poll(process.fileno, UM::POLLIN)
fn fileno(this: This<Process>) -> Result<i32, Raise> {
    this.open_fd()
}

/// The descriptor, which stays open until `release`.
fn acquire(this: This<Process>) -> Result<i32, Raise> {
    let fd = this.open_fd()?;
    this.users.set(this.users.get() + 1);
    Ok(fd)
}

/// Says that the descriptor is used no more.
fn release(this: This<Process>) {
    this.users.set(this.users.get().saturating_sub(1));
    if this.users.get() == 0 && this.closed.get() {
        this.close();
    }
}

/// @method UringMachine::Process#alive?
/// @return [Boolean] whether the process has not ended. One that has, and that nobody has reaped, is not alive
/// @raise [UringMachine::Error] if it is closed and its end is not known
/// @example
///   process.alive? #=> true
fn is_alive(this: This<Process>) -> Result<bool, Raise> {
    if known_status(this) != NIL {
        return Ok(false);
    }
    Ok(!processes::has_ended(this.open_fd()?)?)
}

/// Sends a signal, by its number, unless the process has ended.
fn signal(this: This<Process>, signal: Value) -> Result<This<Process>, Raise> {
    let Some(signal) = as_fixnum(signal).and_then(|signal| signal.try_into().ok()) else {
        return Err(Raise::errno(libc::EINVAL));
    };
    if known_status(this) != NIL {
        return Err(Raise::errno(libc::ESRCH));
    }
    let fd = this.open_fd()?;
    if processes::has_ended(fd)? {
        return Err(Raise::errno(libc::ESRCH));
    }
    processes::send_signal(fd, signal, 0)?;
    Ok(this)
}

fn status_variable() -> Id {
    id("@status")
}

/// What `reap` has found, or nil.
fn known_status(this: This<Process>) -> Value {
    variable(this.value(), status_variable())
}

/// The process has ended: takes its status, unless somebody has. For one who has acquired the descriptor.
fn reap(this: This<Process>) -> Outcome {
    let known = known_status(this);
    if known != NIL {
        return Ok(known);
    }
    let status = child::take_status(this.fd.get())?;
    set_variable(this.value(), status_variable(), status)?;
    Ok(status)
}

/// Closes the descriptor. The process is left alone. Whoever waits for it already goes on waiting.
///
/// @method UringMachine::Process#close
/// @return [nil]
/// @example
///   process.close
fn close(this: This<Process>) {
    this.closed.set(true);
    if this.users.get() == 0 {
        this.close();
    }
}

/// @method UringMachine::Process#closed?
/// @return [Boolean]
/// @example
///   process.closed? #=> false
fn is_closed(this: This<Process>) -> bool {
    this.closed.get()
}

/// Defines the class.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let class = module.define_class("Process", ruby.class_object())?;
    class.define_alloc_func::<Process>();
    class.define_method("fileno", method!(fileno, 0))?;
    class.define_method("alive?", method!(is_alive, 0))?;
    class.define_method("close", method!(close, 0))?;
    class.define_method("closed?", method!(is_closed, 0))?;
    class.define_private_method("adopt", method!(adopt, 1))?;
    class.define_private_method("acquire", method!(acquire, 0))?;
    class.define_private_method("release", method!(release, 0))?;
    class.define_private_method("signal", method!(signal, 1))?;
    class.define_private_method("reap", method!(reap, 0))?;
    Ok(())
}
