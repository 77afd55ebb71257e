//! Arrays and Hashes.

use super::{
    classes, is_a, is_array, is_hash, may_raise, symbol, Outcome, Raise, Value, NIL, UNDEF,
};

/// An empty Array.
pub fn array() -> Outcome {
    // SAFETY: a new object.
    may_raise(|| unsafe { rb_sys::rb_ary_new() })
}

/// An Array of these.
pub fn array_of(values: &[Value]) -> Outcome {
    let (count, list) = (values.len() as _, values.as_ptr().cast());
    // SAFETY: the slice is valid for the call.
    may_raise(|| unsafe { rb_sys::rb_ary_new_from_values(count, list) })
}

/// Adds to an Array.
pub fn push(array: Value, value: Value) -> Result<(), Raise> {
    // SAFETY: an Array.
    may_raise(|| unsafe { rb_sys::rb_ary_push(array.raw(), value.raw()) }).map(drop)
}

/// Adds to the Array that an instance variable of an object holds, which is made if there is none.
pub fn push_to_variable(object: Value, name: super::Id, value: Value) -> Result<(), Raise> {
    // SAFETY: the values are Ruby's; the variable is one that only we write to.
    may_raise(|| unsafe {
        let mut array = rb_sys::rb_attr_get(object.raw(), name);
        if array == NIL.raw() {
            array = rb_sys::rb_ary_new();
            rb_sys::rb_ivar_set(object.raw(), name, array);
        }
        rb_sys::rb_ary_push(array, value.raw())
    })
    .map(drop)
}

/// How many an Array has; 0 for what is none.
pub fn length(array: Value) -> usize {
    if !is_array(array) {
        return 0;
    }
    // SAFETY: an Array.
    unsafe { rb_sys::RARRAY_LEN(array.raw()) as usize }
}

/// One of an Array; nil beyond its end, and of what is none.
pub fn entry(array: Value, place: usize) -> Value {
    if !is_array(array) {
        return NIL;
    }
    // SAFETY: an Array.
    Value::of(unsafe { rb_sys::rb_ary_entry(array.raw(), place as _) })
}

/// What an Array has, one after the other; it may change meanwhile.
pub fn entries(array: Value) -> impl Iterator<Item = Value> {
    let mut place = 0;
    std::iter::from_fn(move || {
        let next = (place < length(array)).then(|| entry(array, place));
        place += 1;
        super::keep_until_here(array);
        next
    })
}

/// An empty Hash.
pub fn hash() -> Outcome {
    // SAFETY: a new object.
    may_raise(|| unsafe { rb_sys::rb_hash_new() })
}

/// A Hash with Symbols for keys.
pub fn options(entries: &[(&str, Value)]) -> Outcome {
    let hash = hash()?;
    for (name, value) in entries {
        set(hash, symbol(name), *value)?;
    }
    Ok(hash)
}

/// Sets an entry of a Hash.
pub fn set(hash: Value, key: Value, value: Value) -> Result<(), Raise> {
    // SAFETY: a Hash.
    may_raise(|| unsafe { rb_sys::rb_hash_aset(hash.raw(), key.raw(), value.raw()) }).map(drop)
}

/// What a Hash has under a Symbol, if it has anything.
pub fn option(hash: Value, name: &str) -> Option<Value> {
    if !is_hash(hash) {
        return None;
    }
    // SAFETY: a Hash; a Symbol's `hash` and `eql?` are Ruby's own.
    let value =
        Value::of(unsafe { rb_sys::rb_hash_lookup2(hash.raw(), symbol(name).raw(), UNDEF.raw()) });
    (value != UNDEF).then_some(value)
}

/// How many a Hash has.
pub fn size(hash: Value) -> usize {
    if !is_a(hash, classes::hash()) {
        return 0;
    }
    // SAFETY: a Hash.
    unsafe { rb_sys::rb_hash_size_num(hash.raw()) as usize }
}

/// Calls `look` with every key and value of a Hash. It calls nothing that changes the Hash.
pub fn each(hash: Value, mut look: impl FnMut(Value, Value)) {
    unsafe extern "C" fn call(
        key: rb_sys::VALUE,
        value: rb_sys::VALUE,
        look: rb_sys::VALUE,
    ) -> std::ffi::c_int {
        // SAFETY: the address of the function below, which outlives the call.
        unsafe { (*(look as *mut &mut dyn FnMut(Value, Value)))(Value::of(key), Value::of(value)) };
        rb_sys::st_retval::ST_CONTINUE as std::ffi::c_int
    }
    if !is_hash(hash) {
        return;
    }
    let mut look: &mut dyn FnMut(Value, Value) = &mut look;
    // SAFETY: a Hash; `call` is given the address of a live function, which raises nothing.
    unsafe { rb_sys::rb_hash_foreach(hash.raw(), Some(call), &raw mut look as rb_sys::VALUE) };
}
