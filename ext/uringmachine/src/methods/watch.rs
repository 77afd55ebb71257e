//! inotify: watching files. lib/uringmachine/watched_tree.rb watches trees with it.

use std::mem::size_of;

use magnus::{Error, RClass};
use uringmachine_runtime::{opcode, types};

use crate::machine::caller::{machine_method, number, Answer, Caller};
use crate::os::direct;
use crate::ruby::arguments::Arguments;
use crate::ruby::method::function;
use crate::ruby::{self, Outcome, Raise, NIL, VALUE};

/// Makes an inotify descriptor, which files are watched by. It is close-on-exec.
///
/// @method UringMachine.inotify_init
/// @return [Integer] the descriptor
/// @raise [SystemCallError] as inotify_init(2)
/// @example
///   fd = UM.inotify_init
fn inotify_init(_: Arguments) -> Outcome {
    // SAFETY: the call points to nothing.
    unsafe { Ok(number(direct(libc::inotify_init1(libc::IN_CLOEXEC))?)) }
}

/// Has a file or a directory watched, but not what is in the directories of that directory.
///
/// @method UringMachine.inotify_add_watch(fd, path, mask)
/// @param fd [Integer] an inotify descriptor
/// @param path [String, #to_path]
/// @param mask [Integer] which events, as UM::IN_CREATE | UM::IN_DELETE
/// @return [Integer] the watch's number; of a path that is watched already, that one's
/// @raise [SystemCallError] as inotify_add_watch(2)
/// @raise [TypeError] if path is no path, or fd or mask no Integer
/// @raise [ArgumentError] if path has a zero byte, or fd or mask is out of range
/// @example
///   wd = UM.inotify_add_watch(fd, "/etc", UM::IN_CLOSE_WRITE)
fn inotify_add_watch(arguments: Arguments) -> Outcome {
    // SAFETY: the path outlives the call.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let path = arguments.path(1, "path")?;
        let mask = arguments.unsigned(2, "mask")?;
        let result = libc::inotify_add_watch(fd, path.as_ptr(), mask);
        Ok(number(direct(result)?))
    }
}

/// Ends a watch. An event with UM::IN_IGNORED says when nothing comes of it any more.
///
/// @method UringMachine.inotify_rm_watch(fd, wd)
/// @param fd [Integer] an inotify descriptor
/// @param wd [Integer] the watch's number
/// @return [Integer] 0
/// @raise [SystemCallError] as inotify_rm_watch(2): Errno::EINVAL if there is no such watch
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @example
///   UM.inotify_rm_watch(fd, wd)
fn inotify_rm_watch(arguments: Arguments) -> Outcome {
    // SAFETY: the call points to nothing.
    unsafe {
        let fd = arguments.fd(0, "fd")?;
        let wd = arguments.int(1, "wd")?;
        Ok(number(direct(libc::inotify_rm_watch(fd, wd))?))
    }
}

/// Room for many events: one has at most 272 bytes.
const ROOM: usize = 4096;

/// Waits for events, and takes them.
///
/// @method UringMachine#inotify_get_events(fd)
/// @param fd [Integer] an inotify descriptor
/// @return [Array<Hash>] events, with `:wd`, the watch's number (-1 with UM::IN_Q_OVERFLOW); `:mask`, what
///   has happened; and `:name`, to which file of the directory that is watched, nil if to that itself
/// @raise [SystemCallError] as read(2)
/// @raise [TypeError] if fd is no Integer
/// @raise [ArgumentError] if it is out of range
/// @kernel 5.6
/// @example
///   machine.inotify_get_events(fd) #=> [{wd: 1, mask: 256, name: "new.txt"}]
fn inotify_get_events(caller: Caller, arguments: Arguments) -> Answer {
    // SAFETY: the bytes are on this frame until the kernel is done with them.
    unsafe {
        let fd = types::Fd(arguments.fd(0, "fd")?);
        let mut bytes = [0_u8; ROOM];
        let entry = opcode::Read::new(fd, bytes.as_mut_ptr(), ROOM as u32).build();
        let count = caller.operate(entry)? as usize;
        Ok(to_events(&bytes[..count])?)
    }
}

/// The events that bytes of an inotify descriptor tell of. Bytes of something else end it early.
unsafe fn to_events(mut bytes: &[u8]) -> Outcome {
    const HEADER: usize = size_of::<libc::inotify_event>();
    // SAFETY: the header is read unaligned, from bytes that are there; what may raise is stopped here.
    unsafe {
        ruby::protect(|| {
            let [wd, mask, name] =
                ["wd", "mask", "name"].map(|key| rb_sys::rb_id2sym(ruby::id(key)));
            let events = rb_sys::rb_ary_new();
            while bytes.len() >= HEADER {
                let header = bytes
                    .as_ptr()
                    .cast::<libc::inotify_event>()
                    .read_unaligned();
                let Some(padded) = bytes.get(HEADER..HEADER + header.len as usize) else {
                    break;
                };
                bytes = &bytes[HEADER + padded.len()..];
                let event = rb_sys::rb_hash_new();
                rb_sys::rb_ary_push(events, event);
                rb_sys::rb_hash_aset(event, wd, number(header.wd));
                rb_sys::rb_hash_aset(event, mask, ruby::fixnum(i64::from(header.mask)));
                rb_sys::rb_hash_aset(event, name, to_name(padded));
            }
            events
        })
        .map_err(Raise::Jump)
    }
}

/// The name before the zero bytes, in the encoding of file names.
unsafe fn to_name(padded: &[u8]) -> VALUE {
    let length = (padded.iter().position(|byte| *byte == 0)).unwrap_or(padded.len());
    if length == 0 {
        return NIL;
    }
    // SAFETY: the bytes are copied.
    unsafe {
        let encoding = rb_sys::rb_filesystem_encoding();
        rb_sys::rb_enc_str_new(padded.as_ptr().cast(), length as _, encoding)
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "inotify_get_events", 1..=1, inotify_get_events);
    function!(class, "inotify_init", 0..=0, inotify_init);
    function!(class, "inotify_add_watch", 3..=3, inotify_add_watch);
    function!(class, "inotify_rm_watch", 2..=2, inotify_rm_watch);
    Ok(())
}
