//! UringMachine, alias UM: the class whose instances own a machine.

use std::sync::Arc;

use magnus::prelude::*;
use magnus::{function, method, Error, RClass, Ruby};
use uringmachine_runtime::ring::{DEFAULT_ENTRIES, MAX_ENTRIES};
use uringmachine_runtime::{Driver, Features, SetupError};

use crate::machine::owner::{find, used_by, Um};
use crate::machine::registry::{self, machines, FORKER};
use crate::machine::Machine;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::call::allocate;
use crate::ruby::this::This;
use crate::ruby::{
    as_fixnum, call, collect_garbage, collections, duration, errors, fiber, is_hash, truthy,
    Outcome, Raise, Shared, Value, FALSE, NIL, TRUE,
};

/// The class, for those who make machines.
static CLASS: Shared = Shared::new();

/// The class.
pub fn class() -> Value {
    CLASS.get()
}

/// UM.new without arguments.
pub fn new_default() -> Outcome {
    let object = allocate(class())?;
    set_up(find(object)?, None, None, false)?;
    Ok(object)
}

/// The fewest entries of a ring whose size nobody has asked for.
const LEAST_ENTRIES: u32 = 16;

fn set_up(
    um: This<Um>,
    asked: Option<u32>,
    sqpoll: Option<u32>,
    sidecar: bool,
) -> Result<(), Raise> {
    let mut size = asked.unwrap_or(DEFAULT_ENTRIES);
    let mut driver = new_driver(size, sqpoll);
    if driver.as_ref().is_err_and(is_shortage) {
        // It frees the descriptors and the memory of machines that nobody refers to.
        collect_garbage();
        driver = new_driver(size, sqpoll);
    }
    // Memory that may be locked is scarce (RLIMIT_MEMLOCK, which rings count for): a small ring does as well.
    while asked.is_none() && size > LEAST_ENTRIES && driver.as_ref().is_err_and(is_of_memory) {
        size /= 4;
        driver = new_driver(size, sqpoll);
    }
    let machine = Machine::new(driver.map_err(errors::from_setup)?, um.value());
    machines().push(Arc::clone(&machine));
    um.give(machine);
    um.size.set(size);
    um.sqpoll.set(sqpoll.is_some());
    um.sidecar.set(sidecar);
    Ok(())
}

/// Whether there may be enough once the collector has run.
fn is_shortage(error: &SetupError) -> bool {
    is_of_memory(error) || matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE))
}

fn is_of_memory(error: &SetupError) -> bool {
    matches!(error, SetupError::Memory { .. })
}

/// Makes a driver with the features the environment leaves.
fn new_driver<T>(entries: u32, sqpoll: Option<u32>) -> Result<Driver<T>, SetupError> {
    Driver::new(entries, Features::from_environment(), sqpoll)
}

/// Makes a machine. It belongs to the thread that uses it first.
///
/// @method UringMachine.new(size: 256, sqpoll: false, sidecar: false)
/// @param size [Integer] entries of the submission queue, 1 to 32768; a full queue is submitted, so a
///   small one costs no more than system calls. Where memory to lock is scarce (RLIMIT_MEMLOCK), one that is not
///   asked for is smaller
/// @param sqpoll [Boolean, Numeric] whether a thread of the kernel submits; a number is the seconds after
///   which it goes to sleep, true is one second
/// @param sidecar [Boolean] taken for programs written for uringmachine 1.0, and without effect: waiting
///   directly costs less (docs/benchmarks.md)
/// @return [UringMachine]
/// @raise [UringMachine::UnsupportedError] if the kernel or the sandbox refuses io_uring
/// @raise [Errno::EMFILE] and the like, if a resource is short
/// @raise [ArgumentError] for an option that is unknown or out of range
/// @kernel 6.1
/// @example
///   machine = UM.new
///   machine.sleep(0.01)
fn initialize(this: This<Um>, arguments: &[magnus::Value]) -> Result<(), Raise> {
    let (mut entries, mut sqpoll, mut sidecar) = (None, None, false);
    let arguments = match arguments {
        [options] if is_hash(Value::from(*options)) => {
            let names = ["size", "sqpoll", "sidecar"];
            let [size, poll, car] = arguments::keywords(Value::from(*options), names)?;
            if let Some(size) = size {
                entries = Some(read_size(size)?);
            }
            sqpoll = poll.map_or(Ok(None), read_sqpoll)?;
            sidecar = car.is_some_and(truthy);
            &[]
        }
        arguments => arguments,
    };
    Arguments::of(arguments, 0..=0)?;
    if this.find_machine().is_some() {
        return Err(Raise::misuse("already initialized"));
    }
    set_up(this, entries, sqpoll, sidecar)
}

fn read_size(size: Value) -> Result<u32, Raise> {
    match arguments::long(size, "size")? {
        entries if (1..=i64::from(MAX_ENTRIES)).contains(&entries) => Ok(entries as u32),
        entries => Err(Raise::argument(&format!(
            "size {entries} is not within 1..{MAX_ENTRIES}"
        ))),
    }
}

/// Milliseconds until the kernel's thread goes to sleep.
fn read_sqpoll(value: Value) -> Result<Option<u32>, Raise> {
    match value {
        FALSE | NIL => Ok(None),
        TRUE => Ok(Some(1000)),
        seconds => {
            let nanoseconds = duration::named(seconds, "sqpoll")?.unwrap_or(0);
            Ok(Some(
                u32::try_from(nanoseconds / 1_000_000)
                    .unwrap_or(u32::MAX)
                    .max(1),
            ))
        }
    }
}

/// @method UringMachine#size
/// @return [Integer] the entries of the submission queue
/// @example
///   UM.new(size: 64).size #=> 64
fn size(this: This<Um>) -> u32 {
    this.size.get()
}

/// @method UringMachine#sqpoll_mode?
/// @return [Boolean] whether a thread of the kernel submits
/// @example
///   UM.new.sqpoll_mode? #=> false
fn is_sqpoll(this: This<Um>) -> bool {
    this.sqpoll.get()
}

/// @method UringMachine#sidecar_mode?
/// @return [Boolean] whether a sidecar was asked for; there is none
/// @example
///   UM.new.sidecar_mode? #=> false
fn is_sidecar(this: This<Um>) -> bool {
    this.sidecar.get()
}

/// Notes that a sidecar is wanted; there is none.
///
/// @method UringMachine#sidecar_start
/// @return [UringMachine] self
/// @example
///   UM.new.sidecar_start.sidecar_mode? #=> true
fn sidecar_start(this: This<Um>) -> This<Um> {
    this.sidecar.set(true);
    this
}

/// Notes that no sidecar is wanted.
///
/// @method UringMachine#sidecar_stop
/// @return [UringMachine] self
/// @example
///   UM.new(sidecar: true).sidecar_stop.sidecar_mode? #=> false
fn sidecar_stop(this: This<Um>) -> This<Um> {
    this.sidecar.set(false);
    this
}

/// The machine that the current thread took into use last.
///
/// @method UringMachine.current
/// @return [UringMachine, nil] nil if the thread has used none
/// @example
///   UM.current #=> nil
fn current(_class: Value) -> Outcome {
    let used = used_by(fiber::current_thread(), false)?;
    if used == NIL {
        return Ok(NIL);
    }
    let mut newest = (None, NIL);
    for um in collections::entries(call(used, "keys", &[])?) {
        let is_usable = This::<Um>::find(um)
            .is_some_and(|um| um.find_machine().is_some_and(|machine| machine.is_usable()));
        if is_usable {
            let number = as_fixnum(call(used, "[]", &[um])?);
            if number >= newest.0 {
                newest = (number, um);
            }
        }
    }
    Ok(newest.1)
}

/// @method UringMachine#owned?
/// @return [Boolean] whether the current thread may use the machine: it does already, or nobody does yet. Not
///   once it is closed, by the end of its scheduler
/// @example
///   UM.new.owned? #=> true
fn is_owned(this: This<Um>) -> Result<bool, Raise> {
    let machine = this.machine()?;
    Ok(!machine.is_anothers() && machine.is_usable())
}

/// Asks whether the kernel and the sandbox allow io_uring. Never raises.
///
/// @method UringMachine.supported?
/// @return [Boolean]
/// @example
///   abort UM.unsupported_reason unless UM.supported?
fn is_supported() -> bool {
    new_driver::<()>(1, None).is_ok()
}

/// Says why io_uring cannot be had.
///
/// @method UringMachine.unsupported_reason
/// @return [String, nil] the cause and the remedy; nil if io_uring can be had
/// @example
///   UM.unsupported_reason #=> nil
fn unsupported_reason() -> Option<String> {
    let tried = new_driver::<()>(1, None);
    tried.err().map(|error| error.to_string())
}

/// Leaves the parent's machines to the parent. The child of a fork calls it.
fn forsake(_class: Value) {
    FORKER.set(fiber::current());
    // To unlock what an operation has locked is a call into Ruby: the list is not locked for it.
    let all: Vec<Arc<Machine>> = machines().clone();
    for machine in all {
        if machine.is_forked() {
            machine.forsake();
        }
    }
}

/// Defines the class and its alias.
pub fn define(ruby: &Ruby) -> Result<RClass, Error> {
    let class = ruby.define_class("UringMachine", ruby.class_object())?;
    ruby.class_object().const_set("UM", class)?;
    class.define_alloc_func::<Um>();
    CLASS.keep(class.as_value().into());
    registry::define(ruby);
    class.define_method("initialize", method!(initialize, -1))?;
    class.define_method("size", method!(size, 0))?;
    class.define_method("owned?", method!(is_owned, 0))?;
    class.define_method("sqpoll_mode?", method!(is_sqpoll, 0))?;
    class.define_method("sidecar_mode?", method!(is_sidecar, 0))?;
    class.define_method("sidecar_start", method!(sidecar_start, 0))?;
    class.define_method("sidecar_stop", method!(sidecar_stop, 0))?;
    class.define_singleton_method("current", method!(current, 0))?;
    class.define_singleton_method("forsake", method!(forsake, 0))?;
    let _: magnus::Value = class.funcall("private_class_method", (ruby.to_symbol("forsake"),))?;
    class.define_singleton_method("supported?", function!(is_supported, 0))?;
    class.define_singleton_method("unsupported_reason", function!(unsupported_reason, 0))?;
    Ok(class)
}
