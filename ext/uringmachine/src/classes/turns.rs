//! Turns in methods for which Ruby calls no hook when they succeed at once (`BasicSocket#send`, `IO#write_nonblock`,
//! `Thread.pass`): a fiber that calls them again and again would never let others run, nor raise what it is to raise.
//!
//! Such a method is prepended by one of the same arity, which takes a turn, and has Ruby's own do the rest.

use std::sync::atomic::{AtomicBool, Ordering};

use magnus::prelude::*;
use magnus::{method, Error, RClass, RModule};

use super::fiber_scheduler::with_running;
use crate::ruby::call::{call_super, keyword_given};
use crate::ruby::collections::{self, entry};
use crate::ruby::{
    array_of, call, classes, fiber, keep_until_here, values, Outcome, Raise, Value, NIL,
};

/// What a call counts for whose bytes nobody knows: see `Core::count_at_once`.
const BYTES: usize = 1 << 10;
/// What one counts for that may take as long as a millisecond: the clock is looked at each time.
const LONG: usize = 1 << 13;

/// Lets those go first that are ready, if the current fiber has a scheduler of ours and has held the thread for long.
#[inline]
fn take_turn(bytes: usize) -> Result<(), Raise> {
    let scheduler = fiber::current_scheduler();
    if scheduler == NIL {
        return Ok(());
    }
    with_running(scheduler, |machine| machine.take_turns_with(bytes)).unwrap_or(Ok(()))
}

/// A method of any number of arguments.
fn any(_this: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    take_turn(BYTES)?;
    call_super(values(arguments), has_keywords)
}

/// The same, of one that starts a child.
fn any_long(_this: Value, arguments: &[magnus::Value]) -> Outcome {
    let has_keywords = keyword_given();
    take_turn(LONG)?;
    call_super(values(arguments), has_keywords)
}

/// Defines a method of a fixed number of arguments: `with!(module, name, argument…)`.
macro_rules! with {
    ($module:expr, $name:expr, $arity:tt $(, $argument:ident)*) => {
        $module.define_method(
            $name,
            method!(
                |_this: Value $(, $argument: Value)*| -> Outcome {
                    take_turn(BYTES)?;
                    call_super(&[$($argument),*], false)
                },
                $arity
            ),
        )
    };
}

/// IO#write under a scheduler, for which Ruby calls `io_write` once for each argument: what is one message, or one line in a
/// terminal's or a log's, or one segment of TCP, would be several.
fn write_whole(io: Value, arguments: &[magnus::Value]) -> Outcome {
    let parts = values(arguments);
    if parts.len() < 2 || !has_scheduler() {
        return call_super(parts, false);
    }
    let whole = whole(io, parts)?;
    let written = call_super(&elements(whole), false);
    keep_until_here(whole);
    written
}

/// An Array of what is to be written instead of several objects: see lib/uringmachine/core_ext/io.rb.
pub fn whole(io: Value, parts: &[Value]) -> Outcome {
    call(gaps()?, "whole", &[io, array_of(parts)?])
}

/// The elements of an Array, which is kept by whoever asks.
pub fn elements(array: Value) -> Vec<Value> {
    let count = collections::length(array);
    (0..count).map(|place| entry(array, place)).collect()
}

/// Whether the current fiber has a scheduler of ours.
fn has_scheduler() -> bool {
    let scheduler = fiber::current_scheduler();
    scheduler != NIL && with_running(scheduler, |_| ()).is_some()
}

/// CoreGaps.define_whole_write(module): defines `write`.
fn define_whole_write(_module: Value, to: RModule) -> Result<(), Error> {
    to.define_method("write", method!(write_whole, -1))
}

fn gaps() -> Outcome {
    classes::at("UringMachine::CoreGaps")
}

/// CoreGaps.take_turn: takes a turn.
fn turn(_module: Value) -> Result<(), Raise> {
    take_turn(BYTES)
}

/// CoreGaps.define_turn(module, name, arity): defines a method that takes a turn and calls `super`.
fn define_turn(_module: Value, to: RModule, name: magnus::Symbol, arity: i32) -> Result<(), Error> {
    let name = &*name.name()?;
    match arity {
        -1 => to.define_method(name, method!(any, -1)),
        0 => with!(to, name, 0),
        1 => with!(to, name, 1, a),
        2 => with!(to, name, 2, a, b),
        3 => with!(to, name, 3, a, b, c),
        4 => with!(to, name, 4, a, b, c, d),
        5 => with!(to, name, 5, a, b, c, d, e),
        _ => {
            let ruby = magnus::Ruby::get_with(to);
            Err(Error::new(ruby.exception_arg_error(), "no such arity"))
        }
    }
}

/// CoreGaps.define_long_turn(module, name): as `define_turn`, for a method of any number of arguments that takes long.
fn define_long_turn(_module: Value, to: RModule, name: magnus::Symbol) -> Result<(), Error> {
    to.define_method(&*name.name()?, method!(any_long, -1))
}

/// Has the methods take turns from now on, and those of OpenSSL's sockets if there are any by now, and the standard streams write
/// each line at once: see lib/uringmachine/core_ext. May longjmp.
pub fn begin() -> Result<(), Raise> {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    let module = gaps()?;
    if !BEGUN.swap(true, Ordering::Relaxed) {
        call(module, "take_turns", &[])?;
    }
    call(module, "meet_streams", &[])?;
    call(module, "meet_openssl", &[]).map(drop)
}

/// Defines what lib/uringmachine/core_ext/turns.rb is made of.
pub fn define(class: RClass) -> Result<(), Error> {
    let module = class.define_module("CoreGaps")?;
    module.define_singleton_method("take_turn", method!(turn, 0))?;
    module.define_singleton_method("define_turn", method!(define_turn, 3))?;
    module.define_singleton_method("define_long_turn", method!(define_long_turn, 2))?;
    module.define_singleton_method("define_whole_write", method!(define_whole_write, 1))?;
    Ok(())
}
