//! rename, unlink, mkdir and their kin: names in directories.

use magnus::{Error, RClass};
use uringmachine_runtime::operations::{Link, Mkdir, Rename, Symlink, Unlink, HERE};

use crate::machine::caller::{machine_method, Answer, Caller};
use crate::ruby::arguments::Arguments;
use crate::ruby::number;

/// Renames a file or a directory, within a file system. A file of the new name is replaced.
///
/// @method UringMachine#rename(old, new)
/// @param old [String, #to_path]
/// @param new [String, #to_path]
/// @return [Integer] 0
/// @raise [SystemCallError] as rename(2)
/// @raise [TypeError] if old or new is no path
/// @raise [ArgumentError] if one has a zero byte
/// @kernel 5.11
/// @example
///   machine.rename("config.new", "config")
fn rename(caller: Caller, arguments: Arguments) -> Answer {
    let (old, new) = (arguments.path(0, "old")?, arguments.path(1, "new")?);
    let rename = Rename {
        old_directory: HERE,
        old,
        new_directory: HERE,
        new,
        flags: 0,
    };
    caller.result(rename).map(number)
}

/// Removes a name of a file, and the file with its last name.
///
/// @method UringMachine#unlink(path)
/// @param path [String, #to_path]
/// @return [Integer] 0
/// @raise [SystemCallError] as unlink(2): Errno::EISDIR for a directory, which `rmdir` removes
/// @raise [TypeError] if path is no path
/// @raise [ArgumentError] if it has a zero byte
/// @kernel 5.11
/// @example
///   machine.unlink("/tmp/app.sock")
fn unlink(caller: Caller, arguments: Arguments) -> Answer {
    let unlink = Unlink {
        directory: HERE,
        path: arguments.path(0, "path")?,
        flags: 0,
    };
    caller.result(unlink).map(number)
}

/// Removes an empty directory.
///
/// @method UringMachine#rmdir(path)
/// @param path [String, #to_path]
/// @return [Integer] 0
/// @raise [SystemCallError] as rmdir(2)
/// @raise [TypeError] if path is no path
/// @raise [ArgumentError] if it has a zero byte
/// @kernel 5.11
/// @example
///   machine.rmdir("/tmp/empty")
fn rmdir(caller: Caller, arguments: Arguments) -> Answer {
    let unlink = Unlink {
        directory: HERE,
        path: arguments.path(0, "path")?,
        flags: libc::AT_REMOVEDIR,
    };
    caller.result(unlink).map(number)
}

/// Makes a directory.
///
/// @method UringMachine#mkdir(path, mode = 0777)
/// @param path [String, #to_path]
/// @param mode [Integer] its permissions, without those that the process's umask takes
/// @return [Integer] 0
/// @raise [SystemCallError] as mkdir(2)
/// @raise [TypeError] if path is no path, or mode no Integer
/// @raise [ArgumentError] if path has a zero byte, or mode is out of range
/// @kernel 5.15
/// @example
///   machine.mkdir("/tmp/private", 0700)
fn mkdir(caller: Caller, arguments: Arguments) -> Answer {
    let mkdir = Mkdir {
        directory: HERE,
        path: arguments.path(0, "path")?,
        mode: super::files::mode(&arguments, 1, 0o777)?,
    };
    caller.result(mkdir).map(number)
}

/// Makes a symbolic link.
///
/// @method UringMachine#symlink(target, path)
/// @param target [String, #to_path] what it refers to, which needn't be there
/// @param path [String, #to_path] its name
/// @return [Integer] 0
/// @raise [SystemCallError] as symlink(2)
/// @raise [TypeError] if target or path is no path
/// @raise [ArgumentError] if one has a zero byte
/// @kernel 5.15
/// @example
///   machine.symlink("releases/42", "current")
fn symlink(caller: Caller, arguments: Arguments) -> Answer {
    let symlink = Symlink {
        target: arguments.path(0, "target")?,
        directory: HERE,
        path: arguments.path(1, "path")?,
    };
    caller.result(symlink).map(number)
}

/// Gives a file one more name.
///
/// @method UringMachine#link(old, new)
/// @param old [String, #to_path]
/// @param new [String, #to_path]
/// @return [Integer] 0
/// @raise [SystemCallError] as link(2)
/// @raise [TypeError] if old or new is no path
/// @raise [ArgumentError] if one has a zero byte
/// @kernel 5.15
/// @example
///   machine.link("data", "data.bak")
fn link(caller: Caller, arguments: Arguments) -> Answer {
    let (old, new) = (arguments.path(0, "old")?, arguments.path(1, "new")?);
    let link = Link {
        old_directory: HERE,
        old,
        new_directory: HERE,
        new,
        flags: 0,
    };
    caller.result(link).map(number)
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "rename", 2..=2, rename);
    machine_method!(class, "unlink", 1..=1, unlink);
    machine_method!(class, "rmdir", 1..=1, rmdir);
    machine_method!(class, "mkdir", 1..=2, mkdir);
    machine_method!(class, "symlink", 2..=2, symlink);
    machine_method!(class, "link", 2..=2, link);
    Ok(())
}
