//! Calls of Ruby's methods, blocks and Procs.

use std::ffi::{c_char, c_int, c_long};
use std::panic::{catch_unwind, AssertUnwindSafe};
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{may_raise, may_raise_for, Id, Outcome, Raise, Value, NIL, UNDEF};

/// The ID of a name.
pub fn id(name: &str) -> Id {
    // SAFETY: the name is copied.
    unsafe { super::rb_intern2(name.as_ptr().cast::<c_char>(), name.len() as c_long) }
}

/// A name that is looked up once, or by several threads at the same time: whoever did that under a lock of ours could wait in
/// it until all Ractors let the collector run, and those that wait for the lock do not.
pub struct Name {
    name: &'static str,
    /// 0 until it is known, which no name has.
    id: AtomicUsize,
}

impl Name {
    /// To be a `static`.
    pub const fn new(name: &'static str) -> Self {
        Self {
            name,
            id: AtomicUsize::new(0),
        }
    }

    /// Its identity, which is not collected.
    #[inline]
    pub fn id(&self) -> Id {
        match self.id.load(Ordering::Relaxed) {
            0 => self.look_up(),
            known => known as Id,
        }
    }

    #[cold]
    fn look_up(&self) -> Id {
        let id = id(self.name);
        self.id.store(id as usize, Ordering::Relaxed);
        id
    }
}

/// Calls a public or private method.
///
/// # Errors
/// What the method raises, as all that follow.
pub fn call(receiver: Value, method: &str, arguments: &[Value]) -> Outcome {
    call_id(receiver, id(method), arguments)
}

/// As [`call`].
pub fn call_id(receiver: Value, method: Id, arguments: &[Value]) -> Outcome {
    let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
    // SAFETY: the slice is valid for the call.
    may_raise(|| unsafe { rb_sys::rb_funcallv(receiver.raw(), method, count, list) })
}

/// As [`call`], where the last argument is a Hash of keywords.
pub fn call_with_keywords(receiver: Value, method: &str, arguments: &[Value]) -> Outcome {
    let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
    let (method, keywords) = (id(method), rb_sys::RB_PASS_KEYWORDS as c_int);
    // SAFETY: the slice is valid for the call.
    may_raise(|| unsafe { rb_sys::rb_funcallv_kw(receiver.raw(), method, count, list, keywords) })
}

/// Calls a method if the object has it.
pub fn call_if_there(receiver: Value, method: &str) -> Result<Option<Value>, Raise> {
    let method = id(method);
    // SAFETY: no arguments.
    let answer = may_raise(|| unsafe {
        rb_sys::rb_check_funcall(receiver.raw(), method, 0, std::ptr::null())
    })?;
    Ok((answer != UNDEF).then_some(answer))
}

/// Whether an object answers to a public method.
pub fn responds_to(object: Value, method: &str) -> Result<bool, Raise> {
    let method = id(method);
    // SAFETY: plain values; `respond_to?` may be a program's own.
    may_raise_for(|| unsafe { rb_sys::rb_respond_to(object.raw(), method) != 0 })
}

/// A new object: allocated, not initialized.
pub fn allocate(class: Value) -> Outcome {
    // SAFETY: the class is one.
    may_raise(|| unsafe { rb_sys::rb_obj_alloc(class.raw()) })
}

/// A new object of a class, made without arguments.
pub fn new_instance(class: Value) -> Outcome {
    // SAFETY: the class is one.
    may_raise(|| unsafe { rb_sys::rb_class_new_instance(0, std::ptr::null(), class.raw()) })
}

/// Whether the method that runs was given a block.
pub fn block_given() -> bool {
    // SAFETY: a look at the frame of the method that runs.
    unsafe { rb_sys::rb_block_given_p() != 0 }
}

/// The block of the method that runs, as a Proc.
pub fn block() -> Outcome {
    // SAFETY: raises without a block.
    may_raise(|| unsafe { rb_sys::rb_block_proc() })
}

/// Runs the block of the method that runs.
pub fn yield_(value: Value) -> Outcome {
    // SAFETY: raises without a block.
    may_raise(|| unsafe { rb_sys::rb_yield(value.raw()) })
}

/// The same, with nothing given to it: one that was a method, or a lambda, takes no more than it asks for.
pub fn run_block() -> Outcome {
    // SAFETY: raises without a block; no value is read.
    may_raise(|| unsafe { rb_sys::rb_yield_values2(0, std::ptr::null()) })
}

/// Calls the method that the one that runs is prepended to.
pub fn call_super(arguments: &[Value], has_keywords: bool) -> Outcome {
    let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
    // SAFETY: the slice is valid for the call.
    may_raise(|| unsafe { rb_sys::rb_call_super_kw(count, list, has_keywords.into()) })
}

/// Whether the last argument of the method that runs is a Hash of keywords.
pub fn keyword_given() -> bool {
    // SAFETY: a look at the frame of the method that runs.
    unsafe { rb_sys::rb_keyword_given_p() != 0 }
}

/// The exception that `raise` would make of these arguments; NIL if there are none.
pub fn make_exception(arguments: &[Value]) -> Outcome {
    let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
    // SAFETY: the slice is valid for the call.
    may_raise(|| unsafe { super::rb_make_exception(count, list) })
}

/// Whether the first of the frames that run above those of `hook` (a subclass that calls super has one more) is of a
/// method of one of these names.
#[inline]
pub fn called_from(hook: &[u8], methods: &[&[u8]]) -> bool {
    // Two are enough for all but those subclasses, and each costs.
    (frames::<2>(0).find(|frame| !frame.is_of(hook)))
        .or_else(|| frames::<4>(2).find(|frame| !frame.is_of(hook)))
        .is_some_and(|frame| methods.iter().any(|method| frame.is_of(method)))
}

/// The frame that has called a scheduler's hook, from within which this is called.
#[inline]
pub fn caller_of_hook() -> Option<Frame> {
    frames::<2>(0).nth(1)
}

/// Whether any frame of the fiber that runs is one of these methods, each with its name and its full name.
pub fn runs_within(methods: &[(&[u8], &[u8])]) -> bool {
    frames::<1024>(0).any(|frame| {
        let is_one =
            |(short, full): &(&[u8], &[u8])| frame.is_of(short) && frame.full_name() == *full;
        methods.iter().any(is_one)
    })
}

/// A frame of the fiber that runs, valid while nothing returns.
pub struct Frame(rb_sys::VALUE);

impl Frame {
    /// Whether it is of a method of this name.
    #[inline]
    fn is_of(&self, method: &[u8]) -> bool {
        // SAFETY: the frame is there still.
        let name = Value::of(unsafe { super::rb_profile_frame_method_name(self.0) });
        name != NIL && super::string::with_bytes(name, |name| name == method)
    }

    /// The address of its method, or of its code.
    #[inline]
    pub fn identity(&self) -> usize {
        self.0 as usize
    }

    /// Where its code begins, if that is Ruby's.
    fn place(&self) -> Option<Place> {
        // SAFETY: as above; neither makes an object.
        let [file, line] = unsafe {
            [
                super::rb_profile_frame_path(self.0),
                super::rb_profile_frame_first_lineno(self.0),
            ]
        };
        Place::new(Value::of(file), Value::of(line))
    }

    /// The method's name after that of its class: a new String's.
    pub fn full_name(&self) -> Vec<u8> {
        // SAFETY: as above.
        let name = may_raise(|| unsafe { super::rb_profile_frame_qualified_method_name(self.0) });
        name.map(super::string::copy).unwrap_or_default()
    }
}

/// The frames of the fiber that runs from the innermost but so many on, COUNT at most.
#[inline]
fn frames<const COUNT: usize>(start: usize) -> impl Iterator<Item = Frame> {
    let mut frames = [NIL.raw(); COUNT];
    // SAFETY: there is room for COUNT; no lines are asked for.
    let count = unsafe {
        super::rb_profile_frames(
            start as c_int,
            COUNT as c_int,
            frames.as_mut_ptr(),
            std::ptr::null_mut(),
        )
    };
    frames.into_iter().take(count as usize).map(Frame)
}

/// A line of a program.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    /// The name of the file: a String, which whoever keeps it marks.
    pub file: Value,
    pub line: i32,
}

impl Place {
    fn new(file: Value, line: Value) -> Option<Self> {
        let line = super::as_fixnum(line)? as i32;
        super::is_string(file).then_some(Self { file, line })
    }

    /// Where a Proc's block begins, if that is Ruby's.
    #[cold]
    pub fn of_block(block: Value) -> Result<Option<Self>, Raise> {
        call(block, "source_location", &[]).map(Self::from_pair)
    }

    /// That of a file and a line in an Array.
    pub fn from_pair(pair: Value) -> Option<Self> {
        if !super::is_array(pair) {
            return None;
        }
        let [file, line] = [0, 1].map(|place| super::collections::entry(pair, place));
        Self::new(file, line)
    }

    /// Where the outermost block, method or script begins that the fiber runs. No object is made.
    #[inline(never)]
    pub fn outermost() -> Option<Self> {
        const AT_ONCE: usize = 512;
        let (mut start, mut found) = (0, None);
        loop {
            let frames: Vec<Frame> = frames::<AT_ONCE>(start).collect();
            found = frames.iter().filter_map(Frame::place).next_back().or(found);
            if frames.len() < AT_ONCE {
                return found;
            }
            start += AT_ONCE;
        }
    }
}

/// What catches an unwinding: see [`Raise::Unwind`].
pub static TAG: super::Shared = super::Shared::new();

/// The tag of an unwinding.
pub fn tag() -> Value {
    TAG.get()
}

/// Calls a Proc so that an unwinding ends here: the value is `NIL` then.
pub fn catch_unwinding(block: Value, arguments: &[Value]) -> Outcome {
    struct Call<'a> {
        block: Value,
        arguments: &'a [Value],
    }
    unsafe extern "C" fn run(
        _tag: rb_sys::VALUE,
        data: rb_sys::VALUE,
        _argc: c_int,
        _argv: *const rb_sys::VALUE,
        _block: rb_sys::VALUE,
    ) -> rb_sys::VALUE {
        // SAFETY: the address of the Call below, which outlives the call.
        unsafe {
            let Call { block, arguments } = &*(data as *const Call);
            let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
            rb_sys::rb_proc_call_with_block(block.raw(), count, list, NIL.raw())
        }
    }
    let data = Call { block, arguments };
    let address = &raw const data as rb_sys::VALUE;
    // SAFETY: `run` is given the address of a live Call.
    may_raise(|| unsafe { rb_sys::rb_catch_obj(tag().raw(), Some(run), address) })
}

/// Calls a method with a Proc as its block.
pub fn call_with_block(receiver: Value, method: &str, block: Value) -> Outcome {
    let method = id(method);
    // SAFETY: there are no arguments.
    may_raise(|| unsafe {
        rb_sys::rb_funcall_with_block(receiver.raw(), method, 0, std::ptr::null(), block.raw())
    })
}

/// What runs in the block of a call.
pub type Body<'a> = &'a mut dyn FnMut() -> Outcome;

/// Calls a method with a block that runs `body`.
pub fn call_running(receiver: Value, method: &str, arguments: &[Value], body: Body) -> Outcome {
    unsafe extern "C" fn run(
        _yielded: rb_sys::VALUE,
        data: rb_sys::VALUE,
        _argc: c_int,
        _argv: *const rb_sys::VALUE,
        _block: rb_sys::VALUE,
    ) -> rb_sys::VALUE {
        // SAFETY: the address of the body below, which outlives the call.
        answer(unsafe { &mut *(data as *mut Body) })
    }
    let mut body = body;
    let address = &raw mut body as rb_sys::VALUE;
    let (count, list) = (arguments.len() as c_int, arguments.as_ptr().cast());
    let method = id(method);
    // SAFETY: `run` is given the address of a live body.
    may_raise(|| unsafe {
        rb_sys::rb_block_call(receiver.raw(), method, count, list, Some(run), address)
    })
}

/// The whole of a function that Ruby calls: it returns or raises what `body` does. A panic is raised, too.
pub(super) fn answer(body: impl FnOnce() -> Outcome) -> rb_sys::VALUE {
    leave(
        catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| {
            let text = (panic.downcast_ref::<String>().map(String::as_str))
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("unknown panic");
            let text = format!("uringmachine panicked: {text}");
            Err(Raise::new(super::classes::runtime_error(), &text))
        }),
    )
}

/// Ends a function that Ruby has called, by returning or by raising, as the last thing that it does.
fn leave(outcome: Outcome) -> rb_sys::VALUE {
    let raise = match outcome {
        Ok(value) => return value.raw(),
        Err(raise) => raise,
    };
    // SAFETY: the frames that are jumped over, this one's and that of the function, have nothing left to drop.
    unsafe {
        match raise {
            Raise::Unwind => rb_sys::rb_throw_obj(tag().raw(), NIL.raw()),
            Raise::Jump(state) => rb_sys::rb_jump_tag(state),
            raise => match raise.exception() {
                Ok(exception) => rb_sys::rb_exc_raise(exception.raw()),
                Err(raise) => unreachable!("{raise:?} has no exception"),
            },
        }
    }
}
