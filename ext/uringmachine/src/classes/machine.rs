//! UringMachine, alias UM: the class whose instances own a machine.

use std::sync::atomic::{AtomicU64, Ordering};

use magnus::prelude::*;
use magnus::rb_sys::AsRawValue;
use magnus::{function, method, Error, RClass, Ruby, Value};
use uringmachine_runtime::ring::{DEFAULT_ENTRIES, MAX_ENTRIES};
use uringmachine_runtime::{Driver, Features, SetupError};

use crate::machine::owner::{find, used_by, Um};
use crate::machine::registry::{machines, Entry, FORKER, ROOT};
use crate::machine::Core;
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::method::{as_value, raw, settle};
use crate::ruby::this::This;
use crate::ruby::{self, duration, errors, Raise, NIL, TRUE, VALUE};

/// The class, for those who make machines.
static CLASS: AtomicU64 = AtomicU64::new(0);

/// The class.
pub fn class() -> VALUE {
    CLASS.load(Ordering::Relaxed)
}

/// UM.new without arguments.
pub fn new_default() -> Result<VALUE, Raise> {
    // SAFETY: a plain allocation; what raises is stopped.
    let object = unsafe { ruby::protect(|| rb_sys::rb_obj_alloc(class())).map_err(Raise::Jump)? };
    set_up(find(object)?, DEFAULT_ENTRIES, None, false)?;
    Ok(object)
}

fn set_up(um: This<Um>, size: u32, sqpoll: Option<u32>, sidecar: bool) -> Result<(), Raise> {
    let core = match new_core(size, sqpoll) {
        Err(error) if matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE)) => {
            // SAFETY: a collection, which frees the descriptors of machines that nobody refers to.
            unsafe { rb_sys::rb_gc() };
            new_core(size, sqpoll)
        }
        result => result,
    };
    let mut core = core.map_err(errors::from_setup)?;
    machines().push(Entry {
        object: um.value(),
        core: &raw mut *core,
    });
    um.give(core);
    um.size.set(size);
    um.sqpoll.set(sqpoll.is_some());
    um.sidecar.set(sidecar);
    Ok(())
}

/// Makes a core with the features the environment leaves.
fn new_core(entries: u32, sqpoll: Option<u32>) -> Result<Box<Core>, SetupError> {
    Driver::new(entries, Features::from_environment(), sqpoll)
        .map(|driver| Box::new(Core::new(driver)))
}

/// Makes a machine. It belongs to the thread that uses it first.
///
/// @method UringMachine.new(size: 256, sqpoll: false, sidecar: false)
/// @param size [Integer] entries of the submission queue, 1 to 32768; a full queue is submitted, so a
///   small one costs no more than system calls
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
fn initialize(ruby: &Ruby, this: This<Um>, arguments: &[Value]) -> Result<Value, Error> {
    settle(ruby, || {
        let (mut entries, mut sqpoll, mut sidecar) = (DEFAULT_ENTRIES, None, false);
        let arguments = match raw(arguments) {
            [options] if ruby::is_hash(*options) => {
                let names = ["size", "sqpoll", "sidecar"];
                // SAFETY: a Hash.
                let [size, poll, car] = unsafe { arguments::keywords(*options, names) }?;
                if let Some(size) = size {
                    entries = read_size(size)?;
                }
                sqpoll = poll.map_or(Ok(None), read_sqpoll)?;
                sidecar = car.is_some_and(ruby::truthy);
                &[]
            }
            arguments => arguments,
        };
        Arguments::of(arguments, 0..=0)?;
        if this.find_core().is_some() {
            return Err(Raise::misuse("already initialized"));
        }
        set_up(this, entries, sqpoll, sidecar)?;
        Ok(this.value())
    })
}

fn read_size(size: VALUE) -> Result<u32, Raise> {
    match arguments::long(size, "size")? {
        entries if (1..=i64::from(MAX_ENTRIES)).contains(&entries) => Ok(entries as u32),
        entries => Err(Raise::argument(&format!(
            "size {entries} is not within 1..{MAX_ENTRIES}"
        ))),
    }
}

/// Milliseconds until the kernel's thread goes to sleep.
fn read_sqpoll(value: VALUE) -> Result<Option<u32>, Raise> {
    match value {
        ruby::FALSE | NIL => Ok(None),
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
/// @return [Integer] the entries of the submission queue that were asked for
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
fn current(ruby: &Ruby, _class: Value) -> Result<Value, Error> {
    // SAFETY: what raises is stopped; the list is on the frame of the closure, which has nothing to drop.
    let newest = || unsafe {
        used_by(ruby::rb_thread_current(), false, |map| {
            let list = ruby::funcall(map, ruby::id("keys"), &[]);
            let is_usable = |machine: &VALUE| {
                let core = This::<Um>::find(*machine).and_then(|um| um.find_core());
                core.is_some_and(|core| (*core).is_usable())
            };
            let machine = (0..rb_sys::RARRAY_LEN(list) as i64)
                .map(|place| rb_sys::rb_ary_entry(list, place as _))
                .filter(is_usable)
                .max_by_key(|machine| {
                    ruby::as_fixnum(ruby::funcall(map, ruby::id("[]"), &[*machine]))
                });
            std::hint::black_box(list);
            machine.unwrap_or(NIL)
        })
    };
    // SAFETY: as above.
    settle(ruby, || unsafe {
        ruby::protect(newest).map_err(Raise::Jump)
    })
}

/// @method UringMachine#owned?
/// @return [Boolean] whether the current thread may use the machine: it does already, or nobody does yet. Not
///   once it is closed, by the end of its scheduler
/// @example
///   UM.new.owned? #=> true
fn is_owned(ruby: &Ruby, this: This<Um>) -> Result<Value, Error> {
    settle(ruby, || {
        let core = crate::machine::owner::core(this.value())?;
        // SAFETY: the receiver's core.
        unsafe {
            let thread = (*core).thread();
            let free = thread == NIL || thread == ruby::rb_thread_current();
            Ok(ruby::boolean(free && (*core).is_usable()))
        }
    })
}

/// Asks whether the kernel and the sandbox allow io_uring. Never raises.
///
/// @method UringMachine.supported?
/// @return [Boolean]
/// @example
///   abort UM.unsupported_reason unless UM.supported?
fn is_supported() -> bool {
    Driver::<()>::new(1, Features::from_environment(), None).is_ok()
}

/// Says why io_uring cannot be had.
///
/// @method UringMachine.unsupported_reason
/// @return [String, nil] the cause and the remedy; nil if io_uring can be had
/// @example
///   UM.unsupported_reason #=> nil
fn unsupported_reason() -> Option<String> {
    let tried = Driver::<()>::new(1, Features::from_environment(), None);
    tried.err().map(|error| error.to_string())
}

/// Leaves the parent's machines to the parent. The child of a fork calls it.
fn forsake(_class: Value) {
    // SAFETY: a plain accessor.
    FORKER.store(unsafe { ruby::rb_fiber_current() }, Ordering::Relaxed);
    let mut place = 0;
    loop {
        // To unlock what an operation has locked is a call into Ruby: the list is not locked for it.
        let core = match machines().get(place) {
            Some(entry) => entry.core,
            None => return,
        };
        place += 1;
        // SAFETY: the cores in the list are alive, and no fiber of a child's parent runs in one.
        unsafe {
            if (*core).is_forked() {
                (*core).forsake();
            }
        }
    }
}

/// Defines the class and its alias.
pub fn define(ruby: &Ruby) -> Result<RClass, Error> {
    let class = ruby.define_class("UringMachine", ruby.class_object())?;
    ruby.class_object().const_set("UM", class)?;
    class.define_alloc_func::<Um>();
    CLASS.store(class.as_raw(), Ordering::Relaxed);
    // SAFETY: an object that lives for ever, with no data of its own.
    unsafe {
        let root = ROOT.wrap(rb_sys::rb_cObject, std::ptr::dangling_mut::<u8>().cast());
        ruby.gc_register_mark_object(as_value(root));
    }
    class.define_method("initialize", method!(initialize, -1))?;
    class.define_method("size", method!(size, 0))?;
    class.define_method("owned?", method!(is_owned, 0))?;
    class.define_method("sqpoll_mode?", method!(is_sqpoll, 0))?;
    class.define_method("sidecar_mode?", method!(is_sidecar, 0))?;
    class.define_method("sidecar_start", method!(sidecar_start, 0))?;
    class.define_method("sidecar_stop", method!(sidecar_stop, 0))?;
    class.define_singleton_method("current", method!(current, 0))?;
    class.define_singleton_method("forsake", method!(forsake, 0))?;
    let _: Value = class.funcall("private_class_method", (ruby.to_symbol("forsake"),))?;
    class.define_singleton_method("supported?", function!(is_supported, 0))?;
    class.define_singleton_method("unsupported_reason", function!(unsupported_reason, 0))?;
    Ok(class)
}
