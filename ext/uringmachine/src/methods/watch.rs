//! inotify: watching files. lib/uringmachine/watched_tree.rb watches trees with it.

use magnus::{Error, RClass};
use uringmachine_runtime::operations::Read;

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::os::inotify::{self, Event, Events};
use crate::ruby::arguments::Arguments;
use crate::ruby::method::function;
use crate::ruby::{self, collections, fixnum, number, string, Outcome, NIL};

/// Makes an inotify descriptor, which files are watched by. It is close-on-exec.
///
/// @method UringMachine.inotify_init
/// @return [Integer] the descriptor
/// @raise [SystemCallError] as inotify_init(2)
/// @example
///   fd = UM.inotify_init
fn inotify_init(_: Arguments) -> Outcome {
    Ok(number(inotify::init()?))
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
    let fd = arguments.fd(0, "fd")?;
    let path = arguments.path(1, "path")?;
    let mask = arguments.unsigned(2, "mask")?;
    Ok(number(inotify::add(fd, &path, mask)?))
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
    let fd = arguments.fd(0, "fd")?;
    inotify::remove(fd, arguments.int(1, "wd")?)?;
    Ok(number(0))
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
    let fd = arguments.fd(0, "fd")?;
    let mut bytes = [0_u8; ROOM];
    let count = caller.result(Read {
        fd,
        memory: &mut bytes[..],
        offset: 0,
    })?;
    let events = ruby::array()?;
    for event in Events::new(&bytes[..count as usize]) {
        collections::push(events, to_hash(event)?)?;
    }
    Ok(events)
}

/// An event, with its name in the encoding of file names.
fn to_hash(event: Event) -> Outcome {
    let name = match event.name {
        [] => NIL,
        name => string::file_name(name)?,
    };
    ruby::options(&[
        ("wd", number(event.watch)),
        ("mask", fixnum(i64::from(event.mask))),
        ("name", name),
    ])
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "inotify_get_events", 1..=1, inotify_get_events);
    function!(class, "inotify_init", 0..=0, inotify_init);
    function!(class, "inotify_add_watch", 3..=3, inotify_add_watch);
    function!(class, "inotify_rm_watch", 2..=2, inotify_rm_watch);
    Ok(())
}
