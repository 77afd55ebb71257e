//! Which blocking operations are made on the scheduler's own thread, besides opens ([`super::quick_open`]).
//!
//! Ruby offers every operation that it makes without its lock. To hand one to a worker and to wait for that costs some
//! twenty microseconds; most take one: a look at a file's status, an entry of a directory, a kilobyte inflated. These are
//! made here, as far as they have been brief: what was long once goes to the workers the next times. A look at a file is
//! only, while every file system that is mounted is of this machine: one behind a network might not answer.
//!
//! Ruby does not say what an operation does. The method that it is for does, by its name.

use std::cell::Cell;

use nix::NixPath;
use uringmachine_runtime::clock;
use uringmachine_runtime::trust::Trust;

use crate::os::{file, file_system};
use crate::ruby::{call, gc_runs};

/// What an operation of a known method does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// It looks at one file's status.
    Look,
    /// It reads an entry of a directory.
    Entry,
    /// It lists a directory: no operation of Ruby's, but a method's many.
    List,
    /// It computes.
    Compute,
}

/// How large a directory may be, in bytes, to be read to its end at once: some two thousand names, a millisecond.
const SMALL_DIRECTORY: u64 = 64 << 10;
/// What a listing may take, in nanoseconds, and for a byte of the directory: less than a disk does, more than steps of the collector
/// that come between.
const LISTING: u64 = 1_000_000;
const BYTE_OF_DIRECTORY: u64 = 30;

/// Methods that were looked up last, each with the address of its frame's method.
type Known = [(usize, Option<Sort>); 4];

thread_local! {
    static TRUST: Cell<[Trust; 4]> = const { Cell::new([Trust::new(); 4]) };
    /// With the count of the collector's runs: an address may be another method's after one.
    static KNOWN: Cell<(usize, Known)> = const { Cell::new((0, [(0, None); 4])) };
}

/// Classes of whose methods some look at files only.
const CLASSES: [&str; 4] = ["File", "FileTest", "File::Stat", "Dir"];

/// Their names. `initialize` is File::Stat's or Dir's: what opens a file goes another way.
const LOOKS: &[&str] = &[
    "atime",
    "birthtime",
    "blockdev?",
    "chardev?",
    "children",
    "ctime",
    "directory?",
    "each",
    "each_child",
    "empty?",
    "entries",
    "executable?",
    "executable_real?",
    "exist?",
    "file?",
    "foreach",
    "ftype",
    "glob",
    "[]",
    "grpowned?",
    "identical?",
    "lstat",
    "mtime",
    "open",
    "owned?",
    "pipe?",
    "read",
    "readable?",
    "readable_real?",
    "readlink",
    "realdirpath",
    "realpath",
    "setgid?",
    "setuid?",
    "size",
    "size?",
    "socket?",
    "stat",
    "sticky?",
    "symlink?",
    "world_readable?",
    "world_writable?",
    "writable?",
    "writable_real?",
    "zero?",
];

/// What an operation of a method does, by the method's full name.
fn sort_of(method: &str) -> Option<Sort> {
    if method.starts_with("Zlib") {
        return Some(Sort::Compute);
    }
    let (class, name) = method.rsplit_once(['.', '#'])?;
    let opens = class == "File" && matches!(name, "open" | "read" | "each" | "foreach");
    let begins = matches!(class, "File::Stat" | "Dir") && name == "initialize";
    let looks = CLASSES.contains(&class) && LOOKS.contains(&name) && !opens;
    let sort = match class {
        "Dir" => Sort::Entry,
        _ => Sort::Look,
    };
    (looks || begins).then_some(sort)
}

/// The sort of the operation that the scheduler's hook is called with, if it is to be made at once.
#[inline]
pub fn sort() -> Option<Sort> {
    let sort = known()?;
    is_trusted(sort).then_some(sort)
}

/// What it takes to list a directory, in nanoseconds, if it is to be listed whole at once, by a method that Ruby would hand over
/// entry by entry.
pub fn listing(path: &[u8]) -> Option<u64> {
    const MASK: u32 = libc::STATX_TYPE | libc::STATX_SIZE;
    if !is_trusted(Sort::List) {
        return None;
    }
    let status = path
        .with_nix_path(|path| file::look(path, MASK))
        .ok()?
        .ok()?;
    let is_small = file::type_of(&status) == libc::S_IFDIR && status.stx_size <= SMALL_DIRECTORY;
    is_small.then_some(LISTING + status.stx_size * BYTE_OF_DIRECTORY)
}

/// Whether what has been brief so far is done at once.
fn is_trusted(sort: Sort) -> bool {
    let mut trust = TRUST.get();
    let is_given = trust[sort as usize].is_given();
    TRUST.set(trust);
    is_given && (sort == Sort::Compute || file_system::are_all_local())
}

#[inline]
fn known() -> Option<Sort> {
    let frame = call::caller_of_hook()?;
    let runs = gc_runs();
    let (last, mut known) = KNOWN.get();
    if last == runs {
        if let Some((_, sort)) = known.iter().find(|(method, _)| *method == frame.identity()) {
            return *sort;
        }
    } else {
        known = Known::default();
    }
    let sort = sort_of(&String::from_utf8_lossy(&frame.full_name()));
    known.rotate_right(1);
    known[0] = (frame.identity(), sort);
    KNOWN.set((runs, known));
    sort
}

/// Makes an operation, and learns from how long it takes, beyond what is expected in nanoseconds. The collector's time says nothing.
pub fn timed<T>(sort: Sort, expected: u64, operation: impl FnOnce() -> T) -> T {
    let (runs, begun) = (gc_runs(), clock::now());
    let result = operation();
    let duration = clock::now().saturating_sub(begun);
    if runs == gc_runs() {
        let mut trust = TRUST.get();
        trust[sort as usize].note(duration.saturating_sub(expected));
        TRUST.set(trust);
    }
    result
}
