//! rename, unlink, mkdir and their kin: names in directories.

use std::ffi::{c_int, CStr};

use uringmachine_runtime::{opcode, types, Entry};

use crate::machine::caller::{method, number};
use crate::ruby::{define_all, VALUE};

/// Paths that are not absolute start at the current folder.
const HERE: types::Fd = types::Fd(libc::AT_FDCWD);

/// A method of one path.
unsafe fn on_one(
    argc: c_int,
    argv: *const VALUE,
    this: VALUE,
    make: impl FnOnce(&CStr) -> Entry,
) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the path is on this frame until the kernel is done with it.
    unsafe {
        method(argc, argv, this, 1..=1, |caller, arguments| {
            let path = arguments.path(0, "path")?;
            caller.operate(make(&path)).map(number)
        })
    }
}

/// A method of two paths.
unsafe fn on_two(
    argc: c_int,
    argv: *const VALUE,
    this: VALUE,
    names: [&str; 2],
    make: impl FnOnce(&CStr, &CStr) -> Entry,
) -> VALUE {
    // SAFETY: as above.
    unsafe {
        method(argc, argv, this, 2..=2, |caller, arguments| {
            let first = arguments.path(0, names[0])?;
            let second = arguments.path(1, names[1])?;
            caller.operate(make(&first, &second)).map(number)
        })
    }
}

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
unsafe extern "C" fn rename(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        on_two(argc, argv, this, ["old", "new"], |old, new| {
            opcode::RenameAt::new(HERE, old.as_ptr(), HERE, new.as_ptr()).build()
        })
    }
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
unsafe extern "C" fn unlink(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        on_one(argc, argv, this, |path| {
            opcode::UnlinkAt::new(HERE, path.as_ptr()).build()
        })
    }
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
unsafe extern "C" fn rmdir(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        on_one(argc, argv, this, |path| {
            opcode::UnlinkAt::new(HERE, path.as_ptr())
                .flags(libc::AT_REMOVEDIR)
                .build()
        })
    }
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
unsafe extern "C" fn mkdir(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments; the path is on this frame until the kernel is done with it.
    unsafe {
        method(argc, argv, this, 1..=2, |caller, arguments| {
            let path = arguments.path(0, "path")?;
            let mode = super::files::mode(&arguments, 1, 0o777)?;
            let entry = opcode::MkDirAt::new(HERE, path.as_ptr()).mode(mode).build();
            caller.operate(entry).map(number)
        })
    }
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
unsafe extern "C" fn symlink(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        on_two(argc, argv, this, ["target", "path"], |target, path| {
            opcode::SymlinkAt::new(HERE, target.as_ptr(), path.as_ptr()).build()
        })
    }
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
unsafe extern "C" fn link(argc: c_int, argv: *const VALUE, this: VALUE) -> VALUE {
    // SAFETY: Ruby passes `argc` arguments.
    unsafe {
        on_two(argc, argv, this, ["old", "new"], |old, new| {
            opcode::LinkAt::new(HERE, old.as_ptr(), HERE, new.as_ptr()).build()
        })
    }
}

/// Defines the methods.
pub unsafe fn define(class: VALUE) {
    // SAFETY: the functions are methods.
    unsafe {
        define_all(
            class,
            &[
                (c"rename", rename),
                (c"unlink", unlink),
                (c"rmdir", rmdir),
                (c"mkdir", mkdir),
                (c"symlink", symlink),
                (c"link", link),
            ],
        );
    }
}
