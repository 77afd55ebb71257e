//! What lists a directory, without `blocking_operation_wait` where that is brief: Ruby calls it for every entry, which costs
//! more than the entry.

use magnus::prelude::*;
use magnus::{method, Error, RClass};

use super::direct_read::with_scheduler;
use crate::off_thread::at_once::{self, Sort};
use crate::ruby::call::{block, call_with_block};
use crate::ruby::{classes, is_string, string, Outcome, Value, NIL};

/// CoreGaps.list(path) { … }: calls the block, in which Ruby asks no hook, if it lists a small directory in a fiber of a scheduler
/// of ours; and returns what it does, else nil.
fn list(_module: Value, path: Value) -> Outcome {
    let length = if is_string(path) {
        string::length(path)
    } else {
        0
    };
    let is_ours = length > 0
        && with_scheduler(|machine| machine.take_turns_with(length))
            .transpose()?
            .is_some();
    if !is_ours {
        return Ok(NIL);
    }
    let Some(expected) = string::with_bytes(path, at_once::listing) else {
        return Ok(NIL);
    };
    let block = block()?;
    at_once::timed(Sort::List, expected, || {
        call_with_block(classes::fiber(), "blocking", block)
    })
}

/// Defines what lib/uringmachine/core_ext/dir.rb has it by.
pub fn define(class: RClass) -> Result<(), Error> {
    let gaps = class.define_module("CoreGaps")?;
    gaps.define_singleton_method("list", method!(list, 1))
}
