//! UringMachine, alias UM: the class whose instances own a machine.

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};

use uringmachine_runtime::ring::{DEFAULT_ENTRIES, MAX_ENTRIES};
use uringmachine_runtime::{Features, Machine, SetupError};

use crate::machine::owner::{core, get, used_by, Um, TYPE};
use crate::machine::registry::{machines, Entry, FORKER, ROOT};
use crate::machine::Core;
use crate::ruby::{self, arguments, duration, errors, Raise, NIL, TRUE, VALUE};

static CLASS: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" fn allocate(class: VALUE) -> VALUE {
    let um = Box::new(Um {
        core: None,
        size: 0,
        sqpoll: false,
        sidecar: false,
    });
    // SAFETY: the box is given to the new object.
    unsafe { TYPE.wrap(class, Box::into_raw(um).cast()) }
}

/// The class.
pub fn class() -> VALUE {
    CLASS.load(Ordering::Relaxed)
}

/// UM.new without arguments.
pub unsafe fn new_default() -> Result<VALUE, Raise> {
    // SAFETY: the class is defined when the extension is loaded; a fresh object has no core.
    unsafe {
        let object = allocate(CLASS.load(Ordering::Relaxed));
        set_up(object, DEFAULT_ENTRIES, None, false)?;
        Ok(object)
    }
}

unsafe fn set_up(
    object: VALUE,
    size: u32,
    sqpoll: Option<u32>,
    sidecar: bool,
) -> Result<(), Raise> {
    // SAFETY: a collection frees the descriptors of machines that nobody refers to.
    let core = unsafe {
        match new_core(size, sqpoll) {
            Err(error) if matches!(error.errno(), Some(libc::EMFILE | libc::ENFILE)) => {
                rb_sys::rb_gc();
                new_core(size, sqpoll)
            }
            result => result,
        }
    };
    let mut core = core.map_err(errors::from_setup)?;
    machines().push(Entry {
        object,
        core: &raw mut *core,
    });
    // SAFETY: the object is one of ours, without a core until now.
    let um = unsafe { get(object) };
    um.core = Some(core);
    um.size = size;
    um.sqpoll = sqpoll.is_some();
    um.sidecar = sidecar;
    Ok(())
}

/// Makes a core with the features the environment leaves.
fn new_core(entries: u32, sqpoll: Option<u32>) -> Result<Box<Core>, SetupError> {
    Machine::new(entries, Features::from_environment(), sqpoll)
        .map(|machine| Box::new(Core::new(machine)))
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
unsafe extern "C" fn initialize(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        ruby::method(|| {
            let (mut entries, mut sqpoll, mut sidecar) = (DEFAULT_ENTRIES, None, false);
            match argc {
                0 => {}
                1 if ruby::is_hash(*argv) => {
                    let names = ["size", "sqpoll", "sidecar"];
                    let [size, poll, car] = arguments::keywords(*argv, names)?;
                    if let Some(size) = size {
                        entries = read_size(size)?;
                    }
                    sqpoll = poll.map_or(Ok(None), read_sqpoll)?;
                    sidecar = car.is_some_and(ruby::truthy);
                }
                _ => {
                    return Err(Raise::argument(&format!(
                        "wrong number of arguments (given {argc}, expected 0)"
                    )))
                }
            };
            if get(this).core.is_some() {
                return Err(Raise::misuse("already initialized"));
            }
            set_up(this, entries, sqpoll, sidecar)?;
            Ok(this)
        })
    }
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
unsafe extern "C" fn size(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    ruby::fixnum(i64::from(unsafe { get(this).size }))
}

/// @method UringMachine#sqpoll_mode?
/// @return [Boolean] whether a thread of the kernel submits
/// @example
///   UM.new.sqpoll_mode? #=> false
unsafe extern "C" fn is_sqpoll(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    ruby::boolean(unsafe { get(this).sqpoll })
}

/// @method UringMachine#sidecar_mode?
/// @return [Boolean] whether a sidecar was asked for; there is none
/// @example
///   UM.new.sidecar_mode? #=> false
unsafe extern "C" fn is_sidecar(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    ruby::boolean(unsafe { get(this).sidecar })
}

/// Notes that a sidecar is wanted; there is none.
///
/// @method UringMachine#sidecar_start
/// @return [UringMachine] self
/// @example
///   UM.new.sidecar_start.sidecar_mode? #=> true
unsafe extern "C" fn sidecar_start(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { get(this).sidecar = true };
    this
}

/// Notes that no sidecar is wanted.
///
/// @method UringMachine#sidecar_stop
/// @return [UringMachine] self
/// @example
///   UM.new(sidecar: true).sidecar_stop.sidecar_mode? #=> false
unsafe extern "C" fn sidecar_stop(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe { get(this).sidecar = false };
    this
}

/// The machine that the current thread took into use last.
///
/// @method UringMachine.current
/// @return [UringMachine, nil] nil if the thread has used none
/// @example
///   UM.current #=> nil
unsafe extern "C" fn current(_class: VALUE) -> VALUE {
    // SAFETY: the list is on this frame; nothing here needs dropping.
    unsafe {
        used_by(ruby::rb_thread_current(), false, |map| {
            let list = ruby::funcall(map, ruby::id("keys"), &[]);
            let is_usable = |machine: &VALUE| {
                let core = &(*TYPE.get(*machine).cast::<Um>()).core;
                core.as_ref().is_some_and(|core| core.is_usable())
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
    }
}

/// @method UringMachine#owned?
/// @return [Boolean] whether the current thread may use the machine: it does already, or nobody does yet. Not
///   once it is closed, by the end of its scheduler
/// @example
///   UM.new.owned? #=> true
unsafe extern "C" fn is_owned(this: VALUE) -> VALUE {
    // SAFETY: the type is checked.
    unsafe {
        ruby::method(|| {
            let core = core(this)?;
            let thread = (*core).thread();
            let free = thread == NIL || thread == ruby::rb_thread_current();
            Ok(ruby::boolean(free && (*core).is_usable()))
        })
    }
}

/// Asks whether the kernel and the sandbox allow io_uring. Never raises.
///
/// @method UringMachine.supported?
/// @return [Boolean]
/// @example
///   abort UM.unsupported_reason unless UM.supported?
unsafe extern "C" fn is_supported(_class: VALUE) -> VALUE {
    ruby::boolean(Machine::<()>::new(1, Features::from_environment(), None).is_ok())
}

/// Says why io_uring cannot be had.
///
/// @method UringMachine.unsupported_reason
/// @return [String, nil] the cause and the remedy; nil if io_uring can be had
/// @example
///   UM.unsupported_reason #=> nil
unsafe extern "C" fn unsupported_reason(_class: VALUE) -> VALUE {
    match Machine::<()>::new(1, Features::from_environment(), None) {
        Ok(_) => NIL,
        Err(error) => {
            let text = error.to_string();
            // SAFETY: the text is copied.
            unsafe { rb_sys::rb_utf8_str_new(text.as_ptr().cast(), text.len() as _) }
        }
    }
}

/// Leaves the parent's machines to the parent. The child of a fork calls it.
unsafe extern "C" fn forsake(_class: VALUE) -> VALUE {
    // SAFETY: a plain accessor.
    FORKER.store(unsafe { ruby::rb_fiber_current() }, Ordering::Relaxed);
    let mut place = 0;
    loop {
        // To unlock what an operation has locked is a call into Ruby: the list is not locked for it.
        let core = match machines().get(place) {
            Some(entry) => entry.core,
            None => return NIL,
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
pub unsafe fn define() -> VALUE {
    // SAFETY: each function takes what its arity says.
    unsafe {
        let class = rb_sys::rb_define_class(c"UringMachine".as_ptr(), rb_sys::rb_cObject);
        rb_sys::rb_define_const(rb_sys::rb_cObject, c"UM".as_ptr(), class);
        rb_sys::rb_define_alloc_func(class, Some(allocate));
        CLASS.store(class, Ordering::Relaxed);
        let root = ROOT.wrap(rb_sys::rb_cObject, std::ptr::dangling_mut::<u8>().cast());
        rb_sys::rb_gc_register_mark_object(root);
        ruby::define_method(class, c"initialize", initialize as *const (), -1);
        ruby::define_method(class, c"size", size as *const (), 0);
        ruby::define_method(class, c"owned?", is_owned as *const (), 0);
        ruby::define_method(class, c"sqpoll_mode?", is_sqpoll as *const (), 0);
        ruby::define_method(class, c"sidecar_mode?", is_sidecar as *const (), 0);
        ruby::define_method(class, c"sidecar_start", sidecar_start as *const (), 0);
        ruby::define_method(class, c"sidecar_stop", sidecar_stop as *const (), 0);
        ruby::define_singleton_method(class, c"current", current as *const (), 0);
        ruby::define_singleton_method(class, c"forsake", forsake as *const (), 0);
        ruby::funcall(
            class,
            ruby::id("private_class_method"),
            &[rb_sys::rb_id2sym(ruby::id("forsake"))],
        );
        ruby::define_singleton_method(class, c"supported?", is_supported as *const (), 0);
        ruby::define_singleton_method(
            class,
            c"unsupported_reason",
            unsupported_reason as *const (),
            0,
        );
        class
    }
}
