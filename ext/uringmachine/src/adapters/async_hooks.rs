//! What is prepended to Async::Scheduler: hooks that do without its Ruby what a machine does by itself, under a selector of ours.

use magnus::prelude::*;
use magnus::{method, Error, RClass};

use crate::classes::selector::with_spared;
use crate::ruby::call::call_super;
use crate::ruby::{duration, values, Outcome, Value, FALSE, NIL};

/// As Async's: ends after a time, or when somebody switches to the fiber. Its timers are a heap in Ruby; the machine has its own.
fn kernel_sleep(scheduler: Value, arguments: &[magnus::Value]) -> Outcome {
    let arguments = values(arguments);
    let limit = match arguments {
        [limit] => duration::plain(*limit),
        _ => None,
    };
    let slept = limit.and_then(|limit| {
        with_spared(scheduler, |machine| {
            machine.sleep_or_resumed(duration::from_now(limit))
        })
    });
    match slept {
        None => call_super(arguments, false),
        Some(is_over) => Ok(if is_over? { FALSE } else { NIL }),
    }
}

/// Defines what lib/uringmachine/selector.rb prepends.
pub fn define(class: RClass) -> Result<(), Error> {
    let hooks = class.define_module("Hooks")?;
    hooks.define_method("kernel_sleep", method!(kernel_sleep, -1))
}
