//! What Ruby keeps of an IO's bytes: those that it has read ahead, and those that it is to write.

use std::ffi::{c_char, c_int};
use std::os::fd::RawFd;

use super::io::{is_open, open_file};
use super::room::Room;
use super::{is_file, is_frozen, may_raise, Outcome, Raise, Value, FALSE, NIL};

/// The descriptor of an IO that writes a String's bytes as they are, and nothing of its own before them: open for writing
/// without a buffer, a lock or an encoding. `None` for what Ruby has to look at.
#[inline]
pub fn writes_bytes(io: Value) -> Option<RawFd> {
    const WRITES: u32 = rb_sys::FMODE_WRITABLE | rb_sys::FMODE_SYNC;
    const LOOKED_AT: u32 = WRITES | rb_sys::FMODE_TEXTMODE;
    if !is_file(io) || is_frozen(io) {
        return None;
    }
    // SAFETY: an IO; its buffer is of that struct.
    unsafe {
        let file = (*(io.raw() as *const rb_sys::RFile)).fptr;
        if file.is_null() || (*file).fd < 0 || (*file).mode as u32 & LOOKED_AT != WRITES {
            return None;
        }
        let buffered = length_of(&raw const (*file).wbuf);
        let encoding = (*file).encs.enc;
        let is_plain = buffered == 0
            && !is_locked(Value::of((*file).write_lock))
            && (*file).tied_io_for_writing == 0
            && (*file).encs.ecflags == 0
            && (encoding.is_null() || encoding == rb_sys::rb_ascii8bit_encoding());
        is_plain.then(|| (*file).fd)
    }
}

/// The descriptor of an IO that is open for reading.
#[inline]
pub fn reads(io: Value) -> Option<RawFd> {
    if !is_file(io) {
        return None;
    }
    // SAFETY: an IO.
    unsafe {
        let file = (*(io.raw() as *const rb_sys::RFile)).fptr;
        let reads = !file.is_null() && (*file).mode as u32 & rb_sys::FMODE_READABLE != 0;
        (reads && (*file).fd >= 0).then(|| (*file).fd)
    }
}

/// The descriptor of an IO whose bytes are read as they are, the next of them from it: open for reading, with nothing read
/// ahead or yet to be written, and no encoding to be read from. `None` for what Ruby has to look at.
#[inline]
pub fn reads_bytes(io: Value) -> Option<RawFd> {
    const LOOKED_AT: u32 = rb_sys::FMODE_READABLE | rb_sys::FMODE_TEXTMODE;
    if !is_file(io) {
        return None;
    }
    // SAFETY: an IO; its buffers are of that struct.
    unsafe {
        let file = (*(io.raw() as *const rb_sys::RFile)).fptr;
        let mode = if file.is_null() {
            0
        } else {
            (*file).mode as u32
        };
        if mode & LOOKED_AT != rb_sys::FMODE_READABLE || (*file).fd < 0 {
            return None;
        }
        let buffered = length_of(&raw const (*file).rbuf)
            | length_of(&raw const (*file).wbuf)
            | length_of(&raw const (*file).cbuf);
        let is_plain = buffered == 0
            && (*file).tied_io_for_writing == 0
            && (*file).encs.ecflags == 0
            && (*file).encs.enc2.is_null();
        is_plain.then(|| (*file).fd)
    }
}

/// The buffer that an open IO reads ahead into.
#[inline]
fn read_buffer(io: Value) -> *mut Buffered {
    // SAFETY: an IO that is open.
    unsafe {
        let file = (*(io.raw() as *const rb_sys::RFile)).fptr;
        (&raw mut (*file).rbuf).cast::<Buffered>()
    }
}

/// Fills the buffer of an IO, in which there is nothing ([`reads_bytes`]): `receive` puts the count of bytes that it answers
/// there, and calls nothing of Ruby's.
///
/// # Errors
/// NoMemoryError.
#[inline]
pub fn fill<E>(
    io: Value,
    receive: impl FnOnce(&mut Room) -> Result<usize, E>,
) -> Result<Result<usize, E>, Raise> {
    let buffer = read_buffer(io);
    // SAFETY: the buffer stays while the IO is open, and nobody closes it meanwhile.
    unsafe {
        if (*buffer).pointer.is_null() {
            allocate(buffer)?;
        }
        let received = receive(&mut Room::new(
            (*buffer).pointer.cast(),
            (*buffer).capacity as usize,
        ));
        if let Ok(count) = received {
            (*buffer).offset = 0;
            (*buffer).length = count as c_int;
        }
        Ok(received)
    }
}

/// The size of the buffer that Ruby reads ahead into (io.c, IO_RBUF_CAPA_MIN).
pub const CAPACITY: c_int = 8192;

/// Makes a buffer as large as Ruby makes it.
#[cold]
unsafe fn allocate(buffer: *mut Buffered) -> Result<(), Raise> {
    may_raise(|| {
        // SAFETY: as above.
        unsafe { allocate_for(buffer, CAPACITY) };
        NIL.raw()
    })
    .map(drop)
}

/// The same, of any size. May raise.
unsafe fn allocate_for(buffer: *mut Buffered, capacity: c_int) {
    // SAFETY: Ruby's own functions allocate and free it.
    unsafe {
        (*buffer).pointer = rb_sys::ruby_xmalloc(capacity as _).cast::<c_char>();
        ((*buffer).offset, (*buffer).length) = (0, 0);
        (*buffer).capacity = capacity;
    }
}

/// Whether Ruby has read bytes of an IO that the program has not.
pub fn has_read_ahead(io: Value) -> bool {
    // SAFETY: an IO that is open.
    is_open(io)
        && unsafe { rb_sys::rb_io_read_pending((*(io.raw() as *const rb_sys::RFile)).fptr) != 0 }
}

/// Has bytes be read by Ruby that have come from an IO, after those that it has read ahead already.
///
/// # Errors
/// IOError if it is closed; NoMemoryError.
pub fn put(io: Value, bytes: &[u8]) -> Result<(), Raise> {
    if reads_bytes(io).is_some() {
        let put = fill(io, |room| Ok::<_, ()>(room.put(bytes)))?;
        return match put {
            Ok(count) if count < bytes.len() => put_after(io, &bytes[count..]),
            _ => Ok(()),
        };
    }
    put_after(io, bytes)
}

/// Appends bytes to what Ruby has read ahead.
#[cold]
fn put_after(io: Value, bytes: &[u8]) -> Result<(), Raise> {
    let more = bytes.len() as c_int;
    may_raise(|| {
        // SAFETY: Ruby looks whether it is an open IO; there is as much room once it is made, in a buffer that is that IO's alone.
        unsafe {
            make_room(open_file(io), more);
            let buffer = read_buffer(io);
            if (*buffer).pointer.is_null() {
                allocate_for(buffer, more.max(CAPACITY));
            }
            let length = move_to_start(buffer);
            let end = (*buffer).pointer.cast::<u8>().add(length);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), end, bytes.len());
            (*buffer).length += more;
        }
        NIL.raw()
    })
    .map(drop)
}

/// Whether Ruby has an IO read into the buffer that it reads ahead into.
#[inline]
pub fn is_ahead(io: Value, place: *const u8) -> bool {
    // SAFETY: the buffer of an open IO.
    is_open(io) && unsafe { (*read_buffer(io)).pointer.cast_const().cast() } == place
}

/// How many bytes are in the buffer that Ruby reads ahead into, which are moved to its start: somebody else has put them there while
/// Ruby waited for it to be filled.
pub fn filled_meanwhile(io: Value) -> usize {
    if !has_read_ahead(io) {
        return 0;
    }
    // SAFETY: the buffer of an open IO.
    unsafe { move_to_start(read_buffer(io)) }
}

/// Moves the bytes in a buffer to its start; says how many they are.
unsafe fn move_to_start(buffer: *mut Buffered) -> usize {
    // SAFETY: the caller has a buffer of that struct; its bytes lie within it.
    unsafe {
        let (offset, length) = ((*buffer).offset as usize, (*buffer).length as usize);
        let base = (*buffer).pointer;
        std::ptr::copy(base.add(offset), base, length);
        (*buffer).offset = 0;
        length
    }
}

/// Has bytes be the next that are read from an IO, by Ruby.
///
/// # Errors
/// IOError if it is closed.
pub fn unread(io: Value, bytes: &[u8]) -> Result<(), Raise> {
    let string = super::string::binary(bytes)?;
    let more = bytes.len() as c_int;
    may_raise(|| {
        // SAFETY: Ruby looks whether it is an open IO.
        unsafe { make_room(open_file(io), more) };
        NIL.raw()
    })?;
    super::call(io, "ungetbyte", &[string]).map(drop)
}

/// rb_io_internal_buffer (ruby/io.h): the bytes that Ruby has read ahead, or is to write, are at `pointer + offset`.
#[repr(C, packed)]
struct Buffered {
    pointer: *mut c_char,
    offset: c_int,
    length: c_int,
    capacity: c_int,
}

/// Whether somebody writes who has waited for it: Ruby locks what has a buffer to be written.
#[inline]
fn is_locked(lock: Value) -> bool {
    // SAFETY: a Mutex, which Ruby has made; it is only looked at.
    lock != NIL && unsafe { rb_sys::rb_mutex_locked_p(lock.raw()) } != FALSE.raw()
}

/// How many bytes there are in a buffer.
#[inline]
unsafe fn length_of<T>(buffer: *const T) -> c_int {
    // SAFETY: the caller has a buffer of that struct.
    unsafe { (*buffer.cast::<Buffered>()).length }
}

/// Makes an IO's buffer large enough for bytes to be put in front: IO#ungetbyte refuses more than it has room for
/// once there is one (io.c, io_ungetbytes). May raise.
unsafe fn make_room(file: *mut rb_sys::rb_io_t, more: c_int) {
    // SAFETY: the field is of that struct, which Ruby's own functions allocate and free; the old buffer's bytes are
    // copied before it is freed, if nobody can have it.
    unsafe {
        let buffer = (&raw mut (*file).rbuf).cast::<Buffered>();
        let (pointer, length) = ((*buffer).pointer, (*buffer).length);
        if pointer.is_null() || (*buffer).capacity >= length + more {
            return;
        }
        let room = rb_sys::ruby_xmalloc((length + more) as _).cast::<c_char>();
        let offset = (*buffer).offset as usize;
        room.copy_from_nonoverlapping(pointer.add(offset), length as usize);
        (*buffer).pointer = room;
        (*buffer).offset = 0;
        (*buffer).capacity = length + more;
        // A thread without a scheduler may be reading into it: better a leak.
        if rb_sys::rb_thread_alone() != 0 {
            rb_sys::ruby_xfree(pointer.cast());
        }
    }
}

/// Whether lines are what they are in a program that has not set `$/`.
#[inline]
#[allow(
    deprecated,
    reason = "it is what `gets` looks at; only to set it is deprecated"
)]
pub fn separates_lines() -> bool {
    // SAFETY: plain looks at Ruby's variables.
    unsafe { rb_sys::rb_rs == rb_sys::rb_default_rs }
}

/// As IO#gets without arguments.
///
/// # Errors
/// As that.
#[inline]
pub fn gets(io: Value) -> Outcome {
    may_raise(|| {
        // SAFETY: an IO: Ruby looks at what it is. The last line is the caller's, which is the next frame that has one.
        unsafe {
            let line = rb_sys::rb_io_gets(io.raw());
            rb_sys::rb_lastline_set(line);
            line
        }
    })
}
