//! What UM::Report and UM::Doctor are made of: who waits for what, and what the kernel offers.

use std::os::fd::RawFd;

use magnus::{method, Error, Module, Object, RClass};

use crate::machine::owner::{used_by, Um};
use crate::machine::snapshot::Seen;
use crate::os::description::describe;
use crate::ruby::this::This;
use crate::ruby::{
    self, array, boolean, call, class_name, collections, fiber, fixnum, keep_until_here,
    name_with_address, options, string, symbol, Outcome, Value, NIL,
};

/// What the machine was given of what newer kernels offer: see UM::Doctor.
///
/// @method UringMachine#features
/// @return [Hash{Symbol => Boolean}] whether each may be used: the kernel has it, and the variable UM_MASK does not
///   hide it
/// @example
///   machine.features[:waitid] #=> true
fn features(this: This<Um>) -> Outcome {
    let features = this.machine()?.parts().driver.features();
    let hash = collections::hash()?;
    for (name, usable) in features.each() {
        collections::set(hash, symbol(name), boolean(usable))?;
    }
    Ok(hash)
}

/// UM#snapshot(frames): the machine as it stands, with so many lines of each fiber's backtrace. Everything in it is of
/// plain classes, and keeps nothing alive.
fn snapshot(this: This<Um>, frames: Value) -> Outcome {
    let machine = this.machine()?;
    let seen = machine.look();
    // They are in a table that may change as soon as Ruby runs.
    let kept = array()?;
    for fiber in &seen.fibers {
        collections::push(kept, fiber.fiber)?;
        collections::push(kept, fiber.blocker)?;
    }
    let fibers = array()?;
    for one in &seen.fibers {
        if fiber::is_alive(one.fiber) {
            collections::push(fibers, to_hash(one, frames)?)?;
        }
    }
    keep_until_here(kept);
    let others = array()?;
    for known in &seen.others {
        collections::push(others, operation(known.name, known.fd)?)?;
    }
    let thread = match machine.thread() {
        NIL => NIL,
        thread => call(thread, "inspect", &[])?,
    };
    let hash = options(&[
        ("thread", thread),
        ("asleep", boolean(seen.is_asleep)),
        ("fibers", fibers),
        ("others", others),
    ])?;
    let numbers = collections::hash()?;
    for (name, number) in seen.numbers {
        collections::set(numbers, symbol(name), fixnum(number as i64))?;
    }
    collections::set(hash, symbol("numbers"), numbers)?;
    Ok(hash)
}

fn to_hash(one: &Seen, frames: Value) -> Outcome {
    let operations = array()?;
    for (name, fd) in &one.operations {
        collections::push(operations, operation(name, *fd)?)?;
    }
    let blocker = match one.blocker {
        NIL => NIL,
        blocker => string::utf8(class_name(blocker))?,
    };
    options(&[
        // `inspect` tells the address of its block, which all fibers of a scheduler share.
        ("fiber", string::utf8(name_with_address(one.fiber))?),
        ("state", string::utf8(one.state)?),
        ("scheduled", boolean(one.scheduled)),
        ("operations", operations),
        ("blocker", blocker),
        ("waited", seconds(one.waited)?),
        ("left", seconds(one.left)?),
        (
            "backtrace",
            call(one.fiber, "backtrace", &[fixnum(0), frames])?,
        ),
    ])
}

/// Nanoseconds as Ruby counts them.
fn seconds(nanoseconds: Option<u64>) -> Outcome {
    match nanoseconds {
        None => Ok(NIL),
        Some(nanoseconds) => ruby::float(nanoseconds as f64 / 1e9),
    }
}

/// An operation, and the descriptor it is on, with what that is.
fn operation(name: &str, fd: RawFd) -> Outcome {
    let name = match name {
        "" => NIL,
        name => string::utf8(name)?,
    };
    let (number, what) = match fd {
        0.. => (fixnum(fd.into()), describe(fd)),
        _ => (NIL, None),
    };
    let what = match what {
        None => NIL,
        Some(what) => string::utf8(what)?,
    };
    options(&[("name", name), ("fd", number), ("descriptor", what)])
}

/// UM#pulse: numbers that change as the machine's fibers take turns, whether nobody else wants the thread (it sleeps in
/// the kernel, or no other fiber waits), and the thread. For whoever looks for fibers that keep it.
fn pulse(this: This<Um>) -> Outcome {
    let machine = this.machine()?;
    let is_asleep = machine.is_asleep();
    let (progress, is_idle) = {
        let mut parts = machine.parts();
        let serial = parts.driver.tasks.serial();
        parts.ages.note(serial);
        let progress = serial + parts.turns.switches + parts.driver.counts(true).sleeps;
        let is_idle = is_asleep || parts.driver.tasks.waiting() == 0;
        (progress, is_idle)
    };
    let numbers = [ruby::unsigned(progress)?, boolean(is_idle)];
    ruby::array_of(&[numbers[0], numbers[1], machine.thread()])
}

/// UM.used_by(thread): the machines that a thread uses.
fn machines_of(_class: Value, thread: Value) -> Outcome {
    let list = array()?;
    let used = used_by(thread, false)?;
    if used == NIL {
        return Ok(list);
    }
    for um in collections::entries(call(used, "keys", &[])?) {
        let is_usable = This::<Um>::find(um)
            .is_some_and(|um| um.find_machine().is_some_and(|machine| machine.is_usable()));
        if is_usable {
            collections::push(list, um)?;
        }
    }
    Ok(list)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("features", method!(features, 0))?;
    class.define_private_method("snapshot", method!(snapshot, 1))?;
    class.define_private_method("pulse", method!(pulse, 0))?;
    class.define_singleton_method("used_by", method!(machines_of, 1))?;
    let name = magnus::Ruby::get_with(class).to_symbol("used_by");
    let _: magnus::Value =
        magnus::value::ReprValue::funcall(class, "private_class_method", (name,))?;
    Ok(())
}
