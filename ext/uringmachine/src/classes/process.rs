//! The native part of UM::Process: the descriptor, and who uses it. Each method here is one step for all threads, and
//! for the handlers of signals, which may take no lock: none of them acts on a descriptor that was closed meanwhile.
//! The rest is lib/uringmachine/process.rb.

use std::cell::Cell;

use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData, Value};

use crate::machine::caller::number;
use crate::machine::child;
use crate::os::process as processes;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL, VALUE};

/// What a UM::Process holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::Process", size, free_immediately)]
pub struct Process {
    /// Of the process; -1 when it is closed, for good.
    fd: Cell<i32>,
    /// How many fibers wait by the descriptor: it stays open until they are done.
    users: Cell<usize>,
    /// Nobody may use it any more but those who do already.
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

/// Closes a descriptor, if it is one. Linux closes it whatever it answers.
fn close_fd(fd: i32) {
    if fd >= 0 {
        // SAFETY: the descriptor is the object's own.
        unsafe { libc::close(fd) };
    }
}

/// Gives the descriptor of a process to the object, once.
fn adopt(ruby: &Ruby, this: This<Process>, fd: Value) -> Result<Value, Error> {
    settle(ruby, || {
        let fd = ruby::as_fixnum(fd.as_raw()).map_or(-1, |fd| fd as i32);
        if !this.closed.get() || this.fd.get() >= 0 {
            close_fd(fd);
            return Err(Raise::misuse("already initialized process"));
        }
        this.fd.set(fd);
        this.closed.set(false);
        Ok(this.value())
    })
}

/// @method UringMachine::Process#fileno
/// @return [Integer] the descriptor, which is ready to be read when the process has ended
/// @raise [UringMachine::Error] if it is closed
/// @example
///   machine.poll(process.fileno, UM::POLLIN)
fn fileno(ruby: &Ruby, this: This<Process>) -> Result<Value, Error> {
    settle(ruby, || this.open_fd().map(number))
}

/// The descriptor, which stays open until `release`.
fn acquire(ruby: &Ruby, this: This<Process>) -> Result<Value, Error> {
    settle(ruby, || {
        let fd = this.open_fd()?;
        this.users.set(this.users.get() + 1);
        Ok(number(fd))
    })
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
fn is_alive(ruby: &Ruby, this: This<Process>) -> Result<Value, Error> {
    settle(ruby, || {
        if known_status(this) != NIL {
            return Ok(ruby::FALSE);
        }
        Ok(ruby::boolean(!processes::has_ended(this.open_fd()?)?))
    })
}

/// Sends a signal, by its number, unless the process has ended.
fn signal(ruby: &Ruby, this: This<Process>, signal: Value) -> Result<Value, Error> {
    settle(ruby, || {
        let signal = ruby::as_fixnum(signal.as_raw()).and_then(|signal| signal.try_into().ok());
        let Some(signal) = signal else {
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
        Ok(this.value())
    })
}

fn status_variable() -> ruby::ID {
    ruby::id("@status")
}

/// What `reap` has found, or nil.
fn known_status(this: This<Process>) -> VALUE {
    // SAFETY: a plain accessor.
    unsafe { rb_sys::rb_attr_get(this.value(), status_variable()) }
}

/// The process has ended: takes its status, unless somebody has. For one who has acquired the descriptor.
fn reap(ruby: &Ruby, this: This<Process>) -> Result<Value, Error> {
    settle(ruby, || {
        let known = known_status(this);
        if known != NIL {
            return Ok(known);
        }
        // SAFETY: a look at a child, and an instance variable of the object's own.
        unsafe {
            let status = child::take_status(this.fd.get())?;
            Ok(rb_sys::rb_ivar_set(this.value(), status_variable(), status))
        }
    })
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
