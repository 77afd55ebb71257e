//! Strings: their bytes, their locks, and room in them.

use std::sync::atomic::{AtomicU64, Ordering};

use rb_sys::VALUE;

use super::room::Room;
use super::{classes, is_string, may_raise, Outcome, Raise, Value, NIL};

/// A binary String of bytes.
pub fn binary(bytes: &[u8]) -> Outcome {
    // SAFETY: the bytes are copied.
    may_raise(|| unsafe { rb_sys::rb_str_new(bytes.as_ptr().cast(), bytes.len() as _) })
}

/// An empty binary String that has room.
///
/// # Errors
/// NoMemoryError.
pub fn with_capacity(capacity: usize) -> Outcome {
    // SAFETY: no bytes.
    may_raise(|| unsafe { rb_sys::rb_str_buf_new(capacity as _) })
}

/// Gives back the room of a String of which it uses little: as much as Ruby gives back of what it reads into (io.c,
/// io_shrink_read_string).
pub fn shrink(string: Value) -> Result<(), Raise> {
    const GAP: usize = 4096;
    // SAFETY: a String.
    let over = unsafe { rb_sys::rb_str_capacity(string.raw()) as usize } - length(string);
    if over <= GAP {
        return Ok(());
    }
    // SAFETY: a String that can be changed.
    may_raise(|| unsafe { rb_sys::rb_str_resize(string.raw(), length(string) as _) }).map(drop)
}

/// A String of text in UTF-8, or of what says it is.
pub fn utf8(bytes: impl AsRef<[u8]>) -> Outcome {
    let bytes = bytes.as_ref();
    // SAFETY: the bytes are copied.
    may_raise(|| unsafe { rb_sys::rb_utf8_str_new(bytes.as_ptr().cast(), bytes.len() as _) })
}

/// A String of a file's name.
pub fn file_name(bytes: &[u8]) -> Outcome {
    // SAFETY: the bytes are copied.
    may_raise(|| unsafe {
        let encoding = rb_sys::rb_filesystem_encoding();
        rb_sys::rb_enc_str_new(bytes.as_ptr().cast(), bytes.len() as _, encoding)
    })
}

/// What a value is as a String (`to_str`).
///
/// # Errors
/// TypeError if it is none.
pub fn from(value: Value) -> Outcome {
    // SAFETY: a value of Ruby's.
    may_raise(|| unsafe { rb_sys::rb_str_to_str(value.raw()) })
}

/// What a value is as a String, if it has a `to_str`.
///
/// # Errors
/// TypeError if that gives no String.
pub fn if_any(value: Value) -> Result<Option<Value>, Raise> {
    // SAFETY: a value of Ruby's.
    let string = may_raise(|| unsafe { rb_sys::rb_check_string_type(value.raw()) })?;
    Ok((string != NIL).then_some(string))
}

/// How many bytes a String has; 0 for what is none.
#[inline]
pub fn length(string: Value) -> usize {
    if !is_string(string) {
        return 0;
    }
    // SAFETY: a String.
    unsafe { rb_sys::RSTRING_LEN(string.raw()) as usize }
}

/// Shows the bytes of a String, none for what is none. Nothing in `look` calls Ruby, which might change them.
#[inline]
pub fn with_bytes<T>(string: Value, look: impl FnOnce(&[u8]) -> T) -> T {
    let (pointer, length) = place(string);
    if length == 0 {
        return look(&[]);
    }
    // SAFETY: pointer and length belong together, and stay while Ruby is not called.
    look(unsafe { std::slice::from_raw_parts(pointer, length) })
}

/// A copy of a String's bytes.
pub fn copy(string: Value) -> Vec<u8> {
    with_bytes(string, <[u8]>::to_vec)
}

/// Where the bytes of a String are, and how many.
#[inline]
pub(crate) fn place(string: Value) -> (*mut u8, usize) {
    if !is_string(string) {
        return (std::ptr::null_mut(), 0);
    }
    // SAFETY: a String.
    unsafe {
        let pointer = rb_sys::RSTRING_PTR(string.raw()).cast::<u8>();
        (pointer.cast_mut(), length(string))
    }
}

/// Makes room for `most` bytes in a String, and has it consist of its first, `start` of them, and as many as `receive` puts after
/// those; it calls nothing of Ruby's. If that fails the String stays as it was.
///
/// # Errors
/// FrozenError; RuntimeError for one that is locked; UM::Error for one that has fewer bytes than `start`; NoMemoryError.
#[inline]
pub fn receive<E>(
    string: Value,
    start: usize,
    most: usize,
    receive: impl FnOnce(&mut Room) -> Result<usize, E>,
) -> Result<Result<usize, E>, Raise> {
    may_raise(|| {
        // SAFETY: a String.
        unsafe { make_room(string.raw(), most) };
        NIL.raw()
    })?;
    let (pointer, length) = place(string);
    if length < start {
        return Err(Raise::misuse("the string was made shorter meanwhile"));
    }
    // SAFETY: there is room for as many, and Ruby is not called.
    let received = receive(&mut unsafe { Room::new(pointer.add(start), most - start) });
    if let Ok(count) = received {
        // SAFETY: a String that can be changed, with so many bytes.
        unsafe { rb_sys::rb_str_set_len(string.raw(), (start + count) as _) };
    }
    Ok(received)
}

/// Appends bytes to a String.
///
/// # Errors
/// FrozenError; RuntimeError for one that is locked.
pub fn append(string: Value, bytes: &[u8]) -> Result<(), Raise> {
    debug_assert!(is_string(string));
    let (pointer, length) = (bytes.as_ptr().cast(), bytes.len() as _);
    // SAFETY: a String; the bytes are copied.
    may_raise(|| unsafe { rb_sys::rb_str_cat(string.raw(), pointer, length) }).map(drop)
}

/// Appends a String to another, as `<<` does.
///
/// # Errors
/// As [`append`].
pub fn append_string(string: Value, other: Value) -> Result<(), Raise> {
    // SAFETY: Strings.
    may_raise(|| unsafe { rb_sys::rb_str_append(string.raw(), other.raw()) }).map(drop)
}

/// Takes the first bytes of a String away.
///
/// # Errors
/// As [`append`].
pub fn drop_first(string: Value, count: usize) -> Result<(), Raise> {
    // SAFETY: a String.
    may_raise(|| unsafe { rb_sys::rb_str_drop_bytes(string.raw(), count as _) }).map(drop)
}

/// Part of a String.
pub fn part(string: Value, start: usize, length: usize) -> Outcome {
    // SAFETY: a String; places beyond its end give nil.
    may_raise(|| unsafe { rb_sys::rb_str_subseq(string.raw(), start as _, length as _) })
}

/// A String that shares the bytes of another, and can be changed.
pub fn duplicate(string: Value) -> Outcome {
    // SAFETY: a String.
    may_raise(|| unsafe { rb_sys::rb_str_dup(string.raw()) })
}

/// An empty String of the class and encoding of another.
pub fn empty_like(string: Value) -> Outcome {
    // SAFETY: a String.
    may_raise(|| unsafe { rb_sys::rb_str_substr(string.raw(), 0, 0) })
}

/// Kernel#to_s of an object, whatever it has for one itself: `#<Fiber:0x…>`.
pub fn of_any(object: Value) -> Outcome {
    // SAFETY: an object.
    may_raise(|| unsafe { rb_sys::rb_any_to_s(object.raw()) })
}

/// The name of a class.
pub fn class_name(class: Value) -> Outcome {
    // SAFETY: a class.
    may_raise(|| unsafe { rb_sys::rb_class_name(class.raw()) })
}

/// A Symbol's name.
pub fn of_symbol(symbol: Value) -> Outcome {
    // SAFETY: a Symbol.
    may_raise(|| unsafe { rb_sys::rb_sym2str(symbol.raw()) })
}

/// An Integer's digits.
pub fn of_integer(integer: Value) -> Outcome {
    // SAFETY: an Integer.
    may_raise(|| unsafe { rb_sys::rb_big2str(integer.raw(), 10) })
}

/// The Integer that a text of digits is, of any size.
pub fn to_integer(digits: &[u8]) -> Outcome {
    let text = utf8(digits)?;
    // SAFETY: a String.
    may_raise(|| unsafe { rb_sys::rb_str_to_inum(text.raw(), 10, 0) })
}

/// Freezes an object.
pub fn freeze(object: Value) -> Value {
    // SAFETY: an object; a String's or an Array's freezing does not raise.
    Value::of(unsafe { rb_sys::rb_obj_freeze(object.raw()) })
}

/// Locks a String, so that nobody changes, resizes or freezes it.
///
/// # Errors
/// RuntimeError if it is locked; FrozenError.
#[inline]
pub fn lock(string: Value) -> Result<(), Raise> {
    // SAFETY: a String.
    may_raise(|| unsafe { rb_sys::rb_str_locktmp(string.raw()) }).map(drop)
}

/// Makes room for `wanted` bytes in a String, and locks it.
///
/// # Errors
/// As [`lock`].
#[inline]
pub fn lock_with_room(string: Value, wanted: usize) -> Result<(), Raise> {
    // SAFETY: a String.
    may_raise(|| unsafe {
        make_room(string.raw(), wanted);
        rb_sys::rb_str_locktmp(string.raw())
    })
    .map(drop)
}

/// Unlocks a String.
///
/// # Errors
/// RuntimeError if it is not locked.
#[inline]
pub fn unlock(string: Value) -> Result<(), Raise> {
    // SAFETY: a String.
    may_raise(|| unsafe { rb_sys::rb_str_unlocktmp(string.raw()) }).map(drop)
}

/// Unlocks a String, and has it end with `count` bytes at `offset`, which are put there; those before it stay.
///
/// # Errors
/// FrozenError; NoMemoryError; RuntimeError if it is not locked.
///
/// # Safety
/// `bytes` is valid for reads of `count` bytes.
#[inline]
pub(crate) unsafe fn unlock_with(
    string: Value,
    offset: usize,
    bytes: *const u8,
    count: usize,
) -> Result<(), Raise> {
    // SAFETY: the caller's promise.
    unsafe { unlock_to(string, offset, bytes, count, |_| true) }
}

/// As [`unlock_with`], of bytes that lie there already, unless the String's memory has become another meanwhile: then they
/// are copied from `bytes`, where they lay.
///
/// # Errors
/// As [`unlock_with`].
///
/// # Safety
/// As [`unlock_with`], of what was the String's memory when it was locked.
#[inline]
pub(crate) unsafe fn unlock_filled(
    string: Value,
    offset: usize,
    bytes: *const u8,
    count: usize,
) -> Result<(), Raise> {
    // SAFETY: the caller's promise. A copy that was made of the String meanwhile shares the old memory, and keeps it:
    // nothing that could collect that runs before its bytes are here.
    unsafe { unlock_to(string, offset, bytes, count, |has_moved| has_moved) }
}

/// Unlocks a String and makes it end with `bytes`, which are copied if that is `wanted`, given whether its memory has become
/// another.
#[inline(always)]
unsafe fn unlock_to(
    string: Value,
    offset: usize,
    bytes: *const u8,
    count: usize,
    wanted: impl Fn(bool) -> bool,
) -> Result<(), Raise> {
    let length = offset + count;
    // SAFETY: a String, with room for as many bytes once it is made.
    may_raise(|| unsafe {
        rb_sys::rb_str_unlocktmp(string.raw());
        if wanted(make_room(string.raw(), length)) {
            let room = rb_sys::RSTRING_PTR(string.raw()).cast::<u8>().cast_mut();
            std::ptr::copy_nonoverlapping(bytes, room.add(offset), count);
        }
        rb_sys::rb_str_set_len(string.raw(), length as _);
        NIL.raw()
    })
    .map(drop)
}

/// Makes a String one that can be changed, with room for `wanted` bytes; says whether it had too little, so
/// that its memory is another now, with no more than its own bytes in it. One that has more keeps it:
/// rb_str_modify_expand alone would give back what is over. May raise.
unsafe fn make_room(string: VALUE, wanted: usize) -> bool {
    // SAFETY: the caller has a String.
    unsafe {
        if rb_sys::rb_str_capacity(string) as usize >= wanted {
            rb_sys::rb_str_modify(string);
            return false;
        }
        let size = rb_sys::RSTRING_LEN(string) as usize;
        rb_sys::rb_str_modify_expand(string, (wanted - size) as _);
        true
    }
}

/// Whether a String is locked.
pub fn is_locked(string: Value) -> bool {
    flags_of(string) & LOCK.load(Ordering::Relaxed) != 0
}

fn flags_of(object: Value) -> VALUE {
    if !is_string(object) {
        return 0;
    }
    // SAFETY: a String begins with an RBasic.
    unsafe { (*(object.raw() as *const rb_sys::RBasic)).flags }
}

/// The flag of a String that is locked, which no header names.
static LOCK: AtomicU64 = AtomicU64::new(0);

/// Finds out how Ruby locks a String: what locking one changes. Called once, when the extension is loaded.
pub fn find_lock() -> Result<(), Raise> {
    let string = binary(&[])?;
    let before = flags_of(string);
    lock(string)?;
    LOCK.store(before ^ flags_of(string), Ordering::Relaxed);
    unlock(string)
}

/// Whether an error says that a String cannot be locked since somebody else has locked it.
pub fn says_locked(raise: &Raise) -> bool {
    raise.is_a(classes::runtime_error()) && !raise.is_a(classes::frozen_error())
}
