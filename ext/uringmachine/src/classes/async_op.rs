//! UM::AsyncOp: an operation that was started and is awaited later. Timeouts are the only kind.

use std::cell::Cell;

use magnus::gc::Marker;
use magnus::prelude::*;
use magnus::typed_data::Obj;
use magnus::{method, DataTypeFunctions, Error, RClass, Ruby, TypedData};
use uringmachine_runtime::clock;

use crate::machine::caller::{answer, Answer, Caller};
use crate::machine::line::Line;
use crate::machine::operate::Failure;
use crate::machine::owner;
use crate::ruby::this::This;
use crate::ruby::{boolean, duration, number, symbol, Outcome, Raise, Value, NIL};

/// What an AsyncOp holds.
#[derive(TypedData)]
#[magnus(class = "UringMachine::AsyncOp", mark, size, free_immediately)]
pub struct AsyncOp {
    /// The UM it belongs to; `NIL` for one that no machine has made.
    machine: Value,
    deadline: u64,
    state: Cell<State>,
    line: Line,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Done(i32),
}

impl Default for AsyncOp {
    fn default() -> Self {
        Self {
            machine: NIL,
            deadline: 0,
            state: Cell::new(State::Running),
            line: Line::default(),
        }
    }
}

impl DataTypeFunctions for AsyncOp {
    fn mark(&self, marker: &Marker) {
        marker.mark(self.machine.to_magnus());
        self.line.mark();
    }
}

impl AsyncOp {
    /// How it stands, for one that a machine has started.
    fn state(&self) -> Result<State, Raise> {
        if self.machine == NIL {
            return Err(Raise::misuse(
                "uninitialized AsyncOp: UM#prep_timeout makes them",
            ));
        }
        let is_over = self.deadline <= clock::now();
        if self.state.get() == State::Running && is_over {
            self.state.set(State::Done(-libc::ETIME));
        }
        Ok(self.state.get())
    }

    fn cancel(&self) {
        if self.state.get() == State::Running {
            self.state.set(State::Done(-libc::ECANCELED));
            self.line.wake_all();
        }
    }
}

/// Makes a running timeout.
pub fn start(ruby: &Ruby, machine: Value, nanoseconds: u64) -> Value {
    let operation: Obj<AsyncOp> = ruby.obj_wrap(AsyncOp {
        machine,
        deadline: duration::from_now(nanoseconds),
        ..AsyncOp::default()
    });
    operation.as_value().into()
}

/// @method UringMachine::AsyncOp#kind
/// @return [Symbol] :timeout
/// @raise [UringMachine::Error] for one that no machine has made
/// @example
///   machine.prep_timeout(1).kind #=> :timeout
fn kind(this: This<AsyncOp>) -> Outcome {
    this.state().map(|_| symbol("timeout"))
}

/// @method UringMachine::AsyncOp#done?
/// @return [Boolean] whether its time is up, or it was cancelled
/// @example
///   machine.prep_timeout(1).done? #=> false
fn is_done(this: This<AsyncOp>) -> Result<bool, Raise> {
    Ok(this.state()? != State::Running)
}

/// @method UringMachine::AsyncOp#result
/// @return [Integer, nil] -ETIME when its time was up, -ECANCELED if it was cancelled; nil while it runs
/// @example
///   operation.result #=> -62
fn result(this: This<AsyncOp>) -> Outcome {
    Ok(match this.state()? {
        State::Running => NIL,
        State::Done(result) => number(result),
    })
}

/// @method UringMachine::AsyncOp#cancelled?
/// @return [Boolean, nil] whether it was cancelled; nil while it runs
/// @example
///   operation.cancelled? #=> false
fn is_cancelled(this: This<AsyncOp>) -> Outcome {
    Ok(match this.state()? {
        State::Running => NIL,
        State::Done(result) => boolean(result == -libc::ECANCELED),
    })
}

/// Ends it before its time; whoever awaits it raises Errno::ECANCELED. One that is done is left alone.
///
/// @method UringMachine::AsyncOp#cancel
/// @return [UringMachine::AsyncOp] self
/// @example
///   operation.cancel.cancelled? #=> true
fn cancel(this: This<AsyncOp>) -> Result<This<AsyncOp>, Raise> {
    this.state()?;
    this.cancel();
    Ok(this)
}

/// Waits until its time is up.
///
/// @method UringMachine::AsyncOp#await
/// @alias UringMachine::AsyncOp#join
/// @return [Integer] -ETIME
/// @raise [Errno::ECANCELED] if it is cancelled meanwhile. An exception that ends the wait cancels it too
/// @example
///   machine.prep_timeout(0.01).await #=> -62
fn wait(this: This<AsyncOp>) -> Outcome {
    this.state()?;
    let um = owner::find(this.machine)?;
    answer(wait_for(&Caller::new(&um)?, this))
}

fn wait_for(caller: &Caller, this: This<AsyncOp>) -> Answer {
    loop {
        if let State::Done(result) = this.state()? {
            if result == -libc::ECANCELED {
                return Err(Raise::errno(libc::ECANCELED).into());
            }
            return Ok(number(result));
        }
        match this
            .line
            .wait(caller, "UM::AsyncOp", false, Some(this.deadline))
        {
            Ok(_) => this.keep(),
            Err(Failure::Scheduled(value)) => return Err(Failure::Scheduled(value)),
            Err(failure) => {
                this.cancel();
                return Err(failure);
            }
        }
    }
}

/// Defines the class.
pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    let class = module.define_class("AsyncOp", ruby.class_object())?;
    class.define_alloc_func::<AsyncOp>();
    class.define_method("kind", method!(kind, 0))?;
    class.define_method("done?", method!(is_done, 0))?;
    class.define_method("result", method!(result, 0))?;
    class.define_method("cancelled?", method!(is_cancelled, 0))?;
    class.define_method("cancel", method!(cancel, 0))?;
    class.define_method("await", method!(wait, 0))?;
    class.define_method("join", method!(wait, 0))?;
    Ok(())
}
