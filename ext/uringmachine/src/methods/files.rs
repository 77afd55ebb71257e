//! open, statx, splice, fsync and their kin: files by descriptor.

use std::ffi::{CStr, CString};
use std::os::fd::IntoRawFd;

use magnus::{Error, RClass};
use uringmachine_runtime::operations::{
    Fadvise, Fallocate, Fsync, Ftruncate, Open, Splice, Statx, Tee, Write, CURRENT, HERE,
};

use crate::lending;
use crate::machine::caller::{count, machine_method, Answer, Caller};
use crate::machine::inflow::Flow;
use crate::machine::operate::Failure;
use crate::machine::thread_call;
use crate::off_thread::quick_open;
use crate::os::fd::Fd;
use crate::os::{self, file, Errno};
use crate::ruby::arguments::{self, Arguments};
use crate::ruby::{self, collections, number, symbol, Outcome, Raise, NIL};

/// Permissions that may be left out.
pub fn mode(arguments: &Arguments, place: usize, default: u32) -> Result<libc::mode_t, Raise> {
    const MOST: u32 = 0o7777;
    match arguments.optional(place) {
        None => Ok(default),
        Some(_) => match arguments.unsigned(place, "mode")? {
            mode if mode <= MOST => Ok(mode),
            mode => Err(arguments::out_of_range("mode", i64::from(mode))),
        },
    }
}

/// A number of bytes for an operation that moves at most so many at a time.
fn at_most(arguments: &Arguments, place: usize, name: &str) -> Result<u32, Raise> {
    let length = arguments.length(place, name)?;
    Ok(length.min(lending::MOST as u64) as u32)
}

/// Opens a file. The descriptor is close-on-exec. An open that waits, as of a FIFO without a peer, can be
/// ended; if it has succeeded by then, it returns the descriptor. A FIFO or a terminal is opened on a thread of its own,
/// so that any number of them may wait.
///
/// @method UringMachine#open(path, flags, mode = 0666, &block)
/// @param path [String, #to_path]
/// @param flags [Integer] as UM::O_RDONLY, or UM::O_CREAT | UM::O_WRONLY
/// @param mode [Integer] the permissions of a file that is made, without those that the process's umask
///   takes
/// @yieldparam fd [Integer] the descriptor, which is closed after the block, however that ends; the block
///   mustn't close it
/// @return [Integer, Object] the descriptor, or what the block returns
/// @raise [SystemCallError] as open(2)
/// @raise [TypeError] if path is no path, or flags or mode no Integer
/// @raise [ArgumentError] if path has a zero byte, or flags or mode is out of range
/// @kernel 5.6
/// @example
///   fd = machine.open("log", UM::O_CREAT | UM::O_WRONLY | UM::O_APPEND, 0600)
///   machine.open("data", UM::O_RDONLY) { |fd| machine.read(fd, buffer, 8192) }
fn open(caller: Caller, arguments: Arguments) -> Answer {
    let path = arguments.path(0, "path")?;
    let flags = arguments.int(1, "flags")? | libc::O_CLOEXEC;
    let mode = mode(&arguments, 2, 0o666)?;
    // The ring tries with O_NONBLOCK first, and takes the answer: a FIFO would be opened, or
    // refused by ENXIO, without its peer (io_uring/openclose.c).
    let at_once = flags & libc::O_NONBLOCK != 0 || quick_open::opens_at_once(&path, flags);
    let fd = if !at_once && waits_for_others(&path) {
        open_on_thread(&caller, path, flags, mode)?
    } else {
        caller.descriptor(Open {
            directory: HERE,
            path,
            flags,
            mode,
            on_thread: !at_once,
        })?
    };
    if !ruby::block_given() {
        return Ok(number(fd));
    }
    let result = ruby::yield_(number(fd));
    caller.close(fd);
    Ok(result?)
}

/// Whether a path is of a file whose open(2) may wait for ever: a FIFO without a peer, a device such as a serial line
/// without a carrier. The kernel's workers that the ring hands files to are few, four for a processor: such opens would
/// hold up all other work on files.
fn waits_for_others(path: &CStr) -> bool {
    /// Those of null, zero, random and their kin.
    const MEMORY_DEVICES: u32 = 1;
    file::look(path, libc::STATX_TYPE).is_ok_and(|status| match file::type_of(&status) {
        libc::S_IFIFO => true,
        libc::S_IFCHR => status.stx_rdev_major != MEMORY_DEVICES,
        _ => false,
    })
}

/// Opens a file on a thread of its own.
fn open_on_thread(
    caller: &Caller,
    path: CString,
    flags: i32,
    mode: libc::mode_t,
) -> Result<i32, Failure> {
    let open = move || match file::open(&path, flags, mode) {
        Ok(fd) => fd.into_raw_fd(),
        Err(errno) => errno.negative(),
    };
    count(thread_call::open(caller.machine, caller.me, open)?)
}

/// Tells what a file is.
///
/// The Hash has `:dev`, `:ino`, `:mode`, `:nlink`, `:uid`, `:gid`, `:rdev`, `:size` (bytes), `:blksize`
/// (bytes), `:blocks` (of 512 bytes) and `:attributes` as Integers, and `:atime`, `:btime`, `:ctime` and
/// `:mtime` as Floats, in seconds since 1970. What the mask leaves out, and the file system does not offer
/// anyway, is 0.
///
/// @method UringMachine#statx(dirfd, path, flags, mask)
/// @param dirfd [Integer] the descriptor of the directory that path starts at, or UM::AT_FDCWD
/// @param path [String, #to_path, nil] nil is the file of dirfd itself; flags must have UM::AT_EMPTY_PATH
///   then
/// @param flags [Integer] as UM::AT_EMPTY_PATH, UM::AT_SYMLINK_NOFOLLOW
/// @param mask [Integer] what is wanted, as UM::STATX_ALL, UM::STATX_SIZE
/// @return [Hash{Symbol => Integer, Float}]
/// @raise [SystemCallError] as statx(2)
/// @raise [TypeError] if path is no path, or another argument no Integer
/// @raise [ArgumentError] if an argument is out of range, or path is nil without UM::AT_EMPTY_PATH
/// @kernel 5.6
/// @example
///   machine.statx(UM::AT_FDCWD, "data", 0, UM::STATX_SIZE)[:size] #=> 4294967303
///   machine.statx(fd, nil, UM::AT_EMPTY_PATH, UM::STATX_ALL)[:mtime] #=> 1767225600.123
fn statx(caller: Caller, arguments: Arguments) -> Answer {
    let dirfd = arguments.fd(0, "dirfd")?;
    let path = match arguments.optional(1) {
        Some(_) => arguments.path(1, "path")?,
        None => Default::default(),
    };
    let flags = arguments.int(2, "flags")?;
    let mask = arguments.unsigned(3, "mask")?;
    if arguments.get(1) == NIL && flags & libc::AT_EMPTY_PATH == 0 {
        let text = "path can't be nil unless flags have UM::AT_EMPTY_PATH";
        return Err(Raise::argument(text).into());
    }
    let (_, answered) = caller.run(Statx::new(dirfd, path, flags, mask))?;
    Ok(to_hash(answered.status())?)
}

/// What statx tells, by name.
fn to_hash(status: &libc::statx) -> Outcome {
    let device = file::device;
    let numbers = [
        ("dev", device(status.stx_dev_major, status.stx_dev_minor)),
        ("ino", status.stx_ino),
        ("mode", u64::from(status.stx_mode)),
        ("nlink", u64::from(status.stx_nlink)),
        ("uid", u64::from(status.stx_uid)),
        ("gid", u64::from(status.stx_gid)),
        ("rdev", device(status.stx_rdev_major, status.stx_rdev_minor)),
        ("size", status.stx_size),
        ("blksize", u64::from(status.stx_blksize)),
        ("blocks", status.stx_blocks),
        ("attributes", status.stx_attributes),
    ];
    let times = [
        ("atime", &status.stx_atime),
        ("btime", &status.stx_btime),
        ("ctime", &status.stx_ctime),
        ("mtime", &status.stx_mtime),
    ];
    let hash = collections::hash()?;
    for (name, value) in numbers {
        collections::set(hash, symbol(name), ruby::unsigned(value)?)?;
    }
    for (name, time) in times {
        let seconds = time.tv_sec as f64 + f64::from(time.tv_nsec) / 1e9;
        collections::set(hash, symbol(name), ruby::float(seconds)?)?;
    }
    Ok(hash)
}

/// Moves bytes from one descriptor to another within the kernel. One of them must be a pipe.
///
/// @method UringMachine#splice(in_fd, out_fd, len, in_offset = nil, out_offset = nil, flags = 0)
/// @param in_fd [Integer] the descriptor to read from
/// @param out_fd [Integer] the descriptor to write to
/// @param len [Integer] the most bytes to move; a call moves 2 GiB at most
/// @param in_offset [Integer, nil] where in the file of in_fd, in bytes; nil and -1 are its current position
/// @param out_offset [Integer, nil] likewise for out_fd
/// @param flags [Integer] as splice(2)'s
/// @return [Integer] bytes moved; 0 at the end of the file, or of the pipe once nobody can write to it
/// @raise [SystemCallError] as splice(2)
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 5.7
/// @example
///   machine.splice(file, pipe_writer, 65_536, 4096)
fn splice(caller: Caller, arguments: Arguments) -> Answer {
    let (from, to) = (arguments.fd(0, "in_fd")?, arguments.fd(1, "out_fd")?);
    let length = at_most(&arguments, 2, "len")?;
    let place = |place, name| match arguments.file_offset(place, name)? {
        CURRENT => Ok::<_, Raise>(None),
        offset => Ok(Some(offset)),
    };
    let (from_offset, to_offset) = (place(3, "in_offset")?, place(4, "out_offset")?);
    let flags = splice_flags(&arguments, 5)?;
    if from_offset.is_none() {
        if let Some(flow) = caller.kept(from)? {
            let to = (to, to_offset.unwrap_or(CURRENT));
            return write_kept(&caller, &flow, to, length, false).map(number);
        }
    }
    let splice = Splice {
        from,
        from_offset,
        to,
        to_offset,
        length,
        flags,
    };
    caller
        .after_work(to, || caller.uninterrupted(splice))
        .map(number)
}

/// Writes what has come from a descriptor before, and was not handed over, to another one: once. `stays` leaves it
/// there.
fn write_kept(
    caller: &Caller,
    flow: &Flow,
    (to, offset): (i32, u64),
    most: u32,
    stays: bool,
) -> Result<i32, Failure> {
    let bytes = {
        let mut inflow = flow.get();
        let bytes = inflow.bytes.as_slice();
        let bytes = bytes[..bytes.len().min(most as usize)].to_vec();
        if bytes.is_empty() {
            let ended = inflow.ended.filter(|_| most > 0);
            if !stays && ended.is_some() {
                inflow.ended = None;
            }
            return count(ended.unwrap_or(0));
        }
        bytes
    };
    let write = Write {
        fd: to,
        memory: bytes,
        offset,
    };
    let written = caller.in_turn(to, || caller.result(write))?;
    if !stays {
        let mut inflow = flow.get();
        let left = inflow.bytes.len();
        inflow.consume(left.min(written as usize));
    }
    Ok(written)
}

/// Flags of splice(2) and tee(2), which share a word with the ring's own.
fn splice_flags(arguments: &Arguments, place: usize) -> Result<u32, Raise> {
    const MOST: u32 = 0xff;
    match arguments.optional(place) {
        None => Ok(0),
        Some(_) => match arguments.unsigned(place, "flags")? {
            flags if flags <= MOST => Ok(flags),
            flags => Err(arguments::out_of_range("flags", i64::from(flags))),
        },
    }
}

/// Copies bytes from one pipe to another, and leaves them in the first.
///
/// @method UringMachine#tee(in_fd, out_fd, len, flags = 0)
/// @param in_fd [Integer] the pipe to read from
/// @param out_fd [Integer] the pipe to write to
/// @param len [Integer] the most bytes to copy
/// @param flags [Integer] as tee(2)'s
/// @return [Integer] bytes copied; 0 once nobody can write to the first pipe
/// @raise [SystemCallError] as tee(2)
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 5.8
/// @example
///   machine.tee(reader, log_writer, 65_536)
fn tee(caller: Caller, arguments: Arguments) -> Answer {
    let (from, to) = (arguments.fd(0, "in_fd")?, arguments.fd(1, "out_fd")?);
    let length = at_most(&arguments, 2, "len")?;
    let flags = splice_flags(&arguments, 3)?;
    if let Some(flow) = caller.kept(from)? {
        return write_kept(&caller, &flow, (to, CURRENT), length, true).map(number);
    }
    let tee = Tee {
        from,
        to,
        length,
        flags,
    };
    caller
        .after_work(to, || caller.uninterrupted(tee))
        .map(number)
}

/// fsync and fdatasync.
fn sync(caller: Caller, arguments: Arguments, data_only: bool) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    caller
        .after_work(fd, || caller.result(Fsync { fd, data_only }))
        .map(number)
}

/// Returns when everything that was written to a file is on its disk, what was given to `write_async` before too.
///
/// @method UringMachine#fsync(fd)
/// @param fd [Integer] file descriptor
/// @return [Integer] 0
/// @raise [SystemCallError] as fsync(2)
/// @raise [TypeError] if fd is no Integer
/// @raise [ArgumentError] if it is out of range
/// @kernel 5.1
/// @example
///   machine.fsync(fd) #=> 0
fn fsync(caller: Caller, arguments: Arguments) -> Answer {
    sync(caller, arguments, false)
}

/// As `fsync`, without what is not needed to read the bytes back, such as the time of the last change.
///
/// @method UringMachine#fdatasync(fd)
/// @param fd [Integer] file descriptor
/// @return [Integer] 0
/// @raise [SystemCallError] as fdatasync(2)
/// @raise [TypeError] if fd is no Integer
/// @raise [ArgumentError] if it is out of range
/// @kernel 5.1
/// @example
///   machine.fdatasync(fd) #=> 0
fn fdatasync(caller: Caller, arguments: Arguments) -> Answer {
    sync(caller, arguments, true)
}

/// Makes a file so long: cuts it, or lengthens it by zeros. Before Linux 6.9 a thread does it.
///
/// @method UringMachine#ftruncate(fd, length)
/// @param fd [Integer] the descriptor of a file that is open for writing
/// @param length [Integer] in bytes
/// @return [Integer] 0
/// @raise [SystemCallError] as ftruncate(2)
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 6.9 by the ring
/// @example
///   machine.ftruncate(fd, 0) #=> 0
fn ftruncate(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let length = arguments.length(1, "length")?;
    let by_ring = caller.machine.parts().driver.features().ftruncate;
    if by_ring {
        let ftruncate = Ftruncate { fd, length };
        return caller
            .after_work(fd, || caller.result(ftruncate))
            .map(number);
    }
    caller.after_work(fd, || Ok(()))?;
    on_thread(&caller, fd, move |fd| Fd(fd).truncate(length as i64))
}

/// Does something to a file that takes long, on a thread.
fn on_thread(
    caller: &Caller,
    fd: i32,
    job: impl Fn(i32) -> os::Result<()> + Send + 'static,
) -> Answer {
    let job = move |fd| match job(fd) {
        Ok(()) => 0,
        Err(errno) => errno.negative(),
    };
    let result = thread_call::call_on(caller.machine, caller.me, fd, job)?;
    count(result).map(number)
}

/// Gives a file room on its disk, or takes it away.
///
/// @method UringMachine#fallocate(fd, mode, offset, len)
/// @param fd [Integer] the descriptor of a file that is open for writing
/// @param mode [Integer] 0 to give room; others as fallocate(2)'s
/// @param offset [Integer] where, in bytes
/// @param len [Integer] how much, in bytes
/// @return [Integer] 0
/// @raise [SystemCallError] as fallocate(2)
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 5.6
/// @example
///   machine.fallocate(fd, 0, 0, 1 << 30) #=> 0
fn fallocate(caller: Caller, arguments: Arguments) -> Answer {
    let fallocate = Fallocate {
        fd: arguments.fd(0, "fd")?,
        mode: arguments.int(1, "mode")?,
        offset: arguments.length(2, "offset")?,
        length: arguments.length(3, "len")?,
    };
    caller.result(fallocate).map(number)
}

/// Tells the kernel how a file will be read. For more than 4 GiB a thread does it.
///
/// @method UringMachine#fadvise(fd, offset, len, advice)
/// @param fd [Integer] file descriptor
/// @param offset [Integer] where, in bytes
/// @param len [Integer] how much, in bytes; 0 is all that follows
/// @param advice [Integer] as posix_fadvise(2)'s
/// @return [Integer] 0
/// @raise [SystemCallError] as posix_fadvise(2)
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @kernel 5.6
/// @example
///   machine.fadvise(fd, 0, 0, 2) #=> 0; 2 is POSIX_FADV_SEQUENTIAL
fn fadvise(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let offset = arguments.length(1, "offset")?;
    let len = arguments.length(2, "len")? as i64;
    let advice = arguments.int(3, "advice")?;
    // The operation's length has 32 bits.
    if let Ok(length) = u32::try_from(len) {
        let fadvise = Fadvise {
            fd,
            offset,
            length,
            advice,
        };
        return caller.result(fadvise).map(number);
    }
    on_thread(&caller, fd, move |fd| {
        Fd(fd).advise(offset as i64, len, advice)
    })
}

/// Locks a file, or unlocks it. Only this fiber waits for the lock: a thread does. A wait that is ended
/// leaves no lock behind.
///
/// @method UringMachine#flock(fd, operation)
/// @param fd [Integer] file descriptor
/// @param operation [Integer] as File::LOCK_EX, File::LOCK_SH | File::LOCK_NB, File::LOCK_UN
/// @return [Integer] 0
/// @raise [SystemCallError] as flock(2): Errno::EWOULDBLOCK if it would have to wait, with File::LOCK_NB
/// @raise [TypeError] if an argument is no Integer
/// @raise [ArgumentError] if one is out of range
/// @example
///   machine.flock(fd, File::LOCK_EX) #=> 0
fn flock(caller: Caller, arguments: Arguments) -> Answer {
    let fd = arguments.fd(0, "fd")?;
    let operation = arguments.int(1, "operation")?;
    match Fd(fd).lock(operation | libc::LOCK_NB) {
        Ok(()) => Ok(number(0)),
        Err(Errno(libc::EWOULDBLOCK)) if operation & libc::LOCK_NB == 0 => {
            let lock = || thread_call::flock(caller.machine, caller.me, fd, operation);
            count(caller.during(fd, lock)?).map(number)
        }
        Err(errno) => Err(errno.into()),
    }
}

/// Defines the methods.
pub fn define(class: RClass) -> Result<(), Error> {
    machine_method!(class, "open", 2..=3, open);
    machine_method!(class, "statx", 4..=4, statx);
    machine_method!(class, "splice", 3..=6, splice);
    machine_method!(class, "tee", 3..=4, tee);
    machine_method!(class, "fsync", 1..=1, fsync);
    machine_method!(class, "fdatasync", 1..=1, fdatasync);
    machine_method!(class, "ftruncate", 2..=2, ftruncate);
    machine_method!(class, "fallocate", 4..=4, fallocate);
    machine_method!(class, "fadvise", 4..=4, fadvise);
    machine_method!(class, "flock", 2..=2, flock);
    Ok(())
}
