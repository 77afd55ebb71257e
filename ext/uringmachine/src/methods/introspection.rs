//! What a machine tells about itself: metrics, profile mode, submit.

use std::collections::BTreeMap;

use magnus::{method, Error, Module, Object, RClass};
use uringmachine_runtime::clock;

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::machine::owner::Um;
use crate::machine::Profile;
use crate::os::thread::cpu_time;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::this::This;
use crate::ruby::{self, collections, number, string, symbol, Outcome, Raise, Value, NIL};

/// What the machine has done and has at hand.
///
/// `ops_pending` counts operations the kernel has and timers that are armed; `ops_transient` those that
/// nobody waits for; `total_fixed_ops` those on registered buffers. `segments_free` is always 0, since bytes
/// are copied out of the provided buffers at once. `total_ops_by_kind` is a Hash of the operations submitted by their
/// names; `total_enters` counts calls of io_uring_enter, `total_waits` those that slept. In profile mode
/// `time_total_cpu`, `time_total_wait` and `time_total` are added, in seconds: of the thread's CPU time, asleep in the
/// kernel, and by the clock.
///
/// @method UringMachine#metrics
/// @return [Hash{Symbol => Integer, Float, Hash}]
/// @example
///   machine.metrics[:total_ops] #=> 0
fn metrics(this: This<Um>) -> Outcome {
    let machine = this.machine()?;
    let is_asleep = machine.is_asleep();
    let (numbers, kinds, profile) = {
        let mut parts = machine.parts();
        let counts = parts.driver.counts(is_asleep);
        let timers = parts.driver.timers.len();
        let numbers = [
            ("size", u64::from(this.size.get())),
            ("total_ops", counts.operations),
            ("total_switches", parts.turns.switches),
            ("total_waits", counts.sleeps),
            ("total_enters", counts.enters),
            ("ops_pending", (counts.in_flight + timers) as u64),
            ("ops_unsubmitted", counts.unsubmitted as u64),
            ("ops_runqueue", parts.driver.tasks.queued() as u64),
            ("ops_free", counts.free as u64),
            ("ops_transient", counts.orphans as u64),
            ("buffers_allocated", counts.buffers as u64),
            ("buffers_free", counts.buffers as u64),
            ("segments_free", 0),
            ("buffer_space_allocated", counts.buffer_space as u64),
            ("buffer_space_commited", counts.buffer_space as u64),
            ("total_fixed_ops", parts.fixed),
        ];
        let mut kinds = BTreeMap::new();
        for (name, count) in parts.driver.submitted() {
            *kinds.entry(name).or_insert(0) += count;
        }
        (numbers, kinds, parts.profile)
    };
    let hash = collections::hash()?;
    for (name, number) in numbers {
        collections::set(hash, symbol(name), ruby::unsigned(number)?)?;
    }
    let by_kind = collections::hash()?;
    collections::set(hash, symbol("total_ops_by_kind"), by_kind)?;
    for (name, count) in kinds {
        collections::set(by_kind, symbol(name), ruby::unsigned(count)?)?;
    }
    if let Some(profile) = profile {
        let cpu = cpu_time().saturating_sub(profile.cpu_start);
        let (total, waited) = profile.times();
        let times = [
            ("time_total_cpu", cpu),
            ("time_total_wait", waited),
            ("time_total", total),
        ];
        for (name, nanoseconds) in times {
            let seconds = ruby::float(nanoseconds as f64 / 1e9)?;
            collections::set(hash, symbol(name), seconds)?;
        }
    }
    Ok(hash)
}

/// @method UringMachine#profile_mode?
/// @return [Boolean] whether times are counted
/// @example
///   machine.profile_mode? #=> false
fn is_profile_mode(this: This<Um>) -> Outcome {
    Ok(ruby::boolean(this.machine()?.parts().profile.is_some()))
}

/// Turns the counting of times on or off. Turning it on starts at zero.
///
/// @method UringMachine#profile_mode=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   machine.profile_mode = true
fn set_profile_mode(this: This<Um>, value: Value) -> Outcome {
    let mut parts = this.machine()?.parts();
    if !ruby::truthy(value) {
        parts.profile = None;
    } else if parts.profile.is_none() {
        parts.profile = Some(Profile {
            cpu_start: cpu_time(),
            since: clock::now(),
            waited: 0,
            asleep_since: None,
        });
    }
    Ok(value)
}

/// Has the machine look at the ring at every switch, instead of every so often.
///
/// @method UringMachine#test_mode=(value)
/// @param value [Boolean]
/// @return [Boolean] value
/// @example
///   machine.test_mode = true
fn set_test_mode(this: This<Um>, value: Value) -> Outcome {
    this.machine()?.set_eager(ruby::truthy(value));
    Ok(value)
}

/// Submits what is queued, without waiting. Waiting submits too; this is for `close_async`,
/// `write_async` and their kin when the program computes for long.
///
/// @method UringMachine#submit
/// @return [Integer] the operations that were submitted
/// @example
///   machine.submit #=> 0
fn submit(caller: Caller, _: Arguments) -> Answer {
    let mut parts = caller.machine.parts();
    let count = parts.driver.counts(false).unsubmitted;
    let submitted = parts.driver.poll();
    submitted.map_err(|error| Raise::of(&error, libc::EINVAL))?;
    Ok(number(count as i32))
}

/// Prints a line to standard error, at once.
///
/// @method UringMachine.debug(text)
/// @param text [String]
/// @return [nil]
/// @raise [TypeError] if text is no String
/// @example
///   UM.debug("here")
fn debug(_class: Value, text: Value) -> Outcome {
    let text = string::copy(arguments::string(text, "text")?);
    eprintln!("{}", String::from_utf8_lossy(&text));
    Ok(NIL)
}

/// The version of the running kernel: a hundred times its first number, plus its second.
///
/// @method UringMachine.kernel_version
/// @return [Integer]
/// @example
///   UM.kernel_version #=> 618, which is Linux 6.18
fn kernel_version(_class: Value) -> u32 {
    let name = nix::sys::utsname::uname();
    let release = name.map_or_else(
        |_| String::new(),
        |name| name.release().to_string_lossy().into_owned(),
    );
    let mut numbers = release
        .split(|character: char| !character.is_ascii_digit())
        .map(|digits| digits.parse().unwrap_or(0));
    numbers.next().unwrap_or(0) * 100 + numbers.next().unwrap_or(0)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("metrics", method!(metrics, 0))?;
    class.define_method("profile_mode?", method!(is_profile_mode, 0))?;
    class.define_method("profile_mode=", method!(set_profile_mode, 1))?;
    class.define_method("test_mode=", method!(set_test_mode, 1))?;
    machine_method!(class, "submit", 0..=0, submit);
    class.define_singleton_method("debug", method!(debug, 1))?;
    class.define_singleton_method("kernel_version", method!(kernel_version, 0))?;
    Ok(())
}
