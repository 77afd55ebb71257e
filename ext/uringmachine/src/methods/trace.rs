//! What UM.trace is made of: lib/uringmachine/trace.rb has the method, and makes JSON of what is noted.

use std::collections::HashMap;
use std::sync::Arc;

use magnus::{method, prelude::*, Error, RClass};

use crate::machine::trace::{self, Name};
use crate::machine::{registry, Machine};
use crate::ruby::call::Place;
use crate::ruby::{
    array, as_fixnum, boolean, call, collections, fiber, fixnum, keep_until_here, options, string,
    unsigned, Outcome, Raise, Value, NIL,
};

/// UM.begin_trace(limit): has the machines of this Ractor traced, in as many records at most.
fn begin_trace(_class: Value, limit: Value) -> Outcome {
    let limit = as_fixnum(limit).and_then(|limit| usize::try_from(limit).ok());
    let kept = array()?;
    let mut places = HashMap::new();
    for machine in registry::within_reach() {
        for fiber in machine.fibers_that(|_, _| true) {
            collections::push(kept, fiber)?;
            if let Some(place) = outermost_place(fiber, kept)? {
                places.insert(fiber, place);
            }
        }
    }
    let begun = trace::begin(limit.unwrap_or(usize::MAX), &places);
    keep_until_here(kept);
    begun.map(|()| NIL)
}

/// Where the outermost of a fiber's frames is. What it refers to is kept by an Array.
fn outermost_place(fiber: Value, kept: Value) -> Result<Option<Place>, Raise> {
    if !fiber::is_alive(fiber) {
        return Ok(None);
    }
    let frames = call(fiber, "backtrace_locations", &[])?;
    if frames == NIL || collections::length(frames) == 0 {
        return Ok(None);
    }
    let outermost = collections::entry(frames, collections::length(frames) - 1);
    let pair = array()?;
    for name in ["path", "lineno"] {
        collections::push(pair, call(outermost, name, &[])?)?;
    }
    collections::push(kept, pair)?;
    Ok(Place::from_pair(pair))
}

/// UM.end_trace: what was noted, a Hash a machine. Its records are Strings, of 32 bytes each.
fn end_trace(_class: Value) -> Outcome {
    let list = array()?;
    for machine in trace::end() {
        collections::push(list, take(&machine)?)?;
    }
    Ok(list)
}

fn take(machine: &Arc<Machine>) -> Outcome {
    let (own, names) = match &machine.parts().trace {
        Some(trace) => (trace.own(), trace.names().to_vec()),
        None => return Ok(NIL),
    };
    // It marks what the names refer to until it is taken.
    let words = array()?;
    for name in names {
        let word = match name {
            Name::Word(word) => string::utf8(word)?,
            Name::Class(class) => string::class_name(class)?,
            Name::Text(text) => text,
        };
        collections::push(words, word)?;
    }
    let thread = match machine.thread() {
        thread if thread == fiber::main_thread() => string::utf8("main thread")?,
        thread => match call(thread, "name", &[])? {
            NIL => string::utf8("thread without a name")?,
            name => name,
        },
    };
    let chunks = array()?;
    let trace = machine.parts().trace.take();
    let mut dropped = 0;
    if let Some(trace) = trace {
        let records = trace.into_records();
        dropped = records.dropped();
        for bytes in records.into_bytes() {
            collections::push(chunks, string::binary(&bytes)?)?;
        }
    }
    options(&[
        ("track", fixnum(i64::from(own))),
        ("thread", thread),
        ("names", words),
        ("chunks", chunks),
        ("dropped", unsigned(dropped)?),
    ])
}

/// UM.traced?: whether a trace is being taken.
fn is_traced(_class: Value) -> Value {
    boolean(trace::is_taken())
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    let hidden = class.singleton_class()?;
    hidden.define_private_method("begin_trace", method!(begin_trace, 1))?;
    hidden.define_private_method("end_trace", method!(end_trace, 0))?;
    hidden.define_private_method("traced?", method!(is_traced, 0))
}
