//! The operations, a file each, called as the kernel calls its opcodes (io_uring_enter(2)).
//!
//! Each owns what its entry points to, or borrows it by its type, so that whoever keeps the operation in place keeps the
//! memory too: see [`Operation`](crate::operation::Operation). A result is a count or a descriptor, or -errno as the
//! system call of that name would have it.

mod accept;
mod cancel;
mod close;
mod connect;
mod fadvise;
mod fallocate;
mod fsync;
mod ftruncate;
mod link;
mod mkdir;
mod open;
mod poll;
mod read;
mod recv;
mod rename;
mod send;
mod shutdown;
mod splice;
mod statx;
mod symlink;
mod unlink;
mod waitid;
mod write;

pub use accept::{Accept, AcceptMultishot};
pub use cancel::{Cancel, CancelAll};
pub use close::Close;
pub use connect::Connect;
pub use fadvise::Fadvise;
pub use fallocate::Fallocate;
pub use fsync::Fsync;
pub use ftruncate::Ftruncate;
pub use link::Link;
pub use mkdir::Mkdir;
pub use open::Open;
pub use poll::{Poll, PollMultishot};
pub use read::{Read, ReadMultishot, Readv};
pub use recv::{poll_first, Recv, RecvMsg, RecvMultishot};
pub use rename::Rename;
pub use send::{Send, SendMsg};
pub use shutdown::Shutdown;
pub use splice::{Splice, Tee};
pub use statx::Statx;
pub use symlink::Symlink;
pub use unlink::Unlink;
pub use waitid::WaitId;
pub use write::{Write, Writev};

/// The current position of a file, as an offset (pread(2) has none: "-1" of io_uring_enter(2)).
pub const CURRENT: u64 = u64::MAX;

/// The directory that relative paths begin in: the process's own.
pub const HERE: std::os::fd::RawFd = libc::AT_FDCWD;

#[cfg(test)]
mod testing {
    use std::ffi::CString;
    use std::os::unix::ffi::OsStrExt;
    use std::path::{Path, PathBuf};
    use std::sync::Arc;

    use crate::mapping::Mapping;
    use crate::memory::{Memory, MemoryMut};
    use crate::operation::Operation;
    use crate::{Driver, Entry, Features, OpKey};

    pub fn driver() -> Driver<()> {
        let mut driver = Driver::new(8, Features::from_environment(), None).unwrap();
        driver.enable().unwrap();
        driver
    }

    /// Has an operation begun, for [`finish`].
    pub fn start(driver: &mut Driver<()>, operation: &mut impl Operation) -> OpKey {
        let task = driver.tasks.add(());
        let wait = driver.tasks.begin_wait(task);
        // SAFETY: who calls keeps the operation in place until it has finished.
        let op = unsafe { driver.start(operation, wait) }.unwrap();
        driver.poll().unwrap();
        op
    }

    /// The byte at a place of an operation's entry: for what its result does not tell.
    pub fn byte(operation: &mut impl Operation, place: usize) -> u8 {
        assert!(place < std::mem::size_of::<Entry>());
        let entry = operation.entry();
        // SAFETY: an Entry is a struct io_uring_sqe: numbers, of which the place is within.
        unsafe { *std::ptr::from_ref(&entry).cast::<u8>().add(place) }
    }

    /// The result of an operation, waited for.
    pub fn finish(driver: &mut Driver<()>, op: OpKey) -> i32 {
        while !driver.is_over(op) {
            driver.sleep(None).unwrap();
            driver.reap();
        }
        driver.take(op).unwrap().result
    }

    /// Has an operation done, from beginning to end.
    pub fn run(driver: &mut Driver<()>, operation: &mut impl Operation) -> i32 {
        let op = start(driver, operation);
        finish(driver, op)
    }

    /// Has an operation done by a driver of its own.
    pub fn run_alone(operation: &mut impl Operation) -> i32 {
        run(&mut driver(), operation)
    }

    /// Bytes of a registered buffer.
    #[derive(Clone)]
    pub struct Registered {
        _mapping: Arc<Mapping>,
        pointer: *mut u8,
        length: u32,
        index: u16,
    }

    // SAFETY: the mapping keeps the bytes in place; tests look at them between operations only.
    unsafe impl Memory for Registered {
        fn pointer(&self) -> *const u8 {
            self.pointer
        }

        fn length(&self) -> u32 {
            self.length
        }

        fn registered(&self) -> Option<u16> {
            Some(self.index)
        }
    }

    // SAFETY: as above.
    unsafe impl MemoryMut for Registered {
        fn pointer_mut(&mut self) -> *mut u8 {
            self.pointer
        }
    }

    /// Bytes of memory that is registered with a driver, and where they are.
    pub fn registered(
        driver: &Driver<()>,
        mapping: &Arc<Mapping>,
        offset: usize,
        length: u32,
    ) -> (Registered, *mut u8) {
        let pointer = mapping.base().wrapping_add(offset);
        let index = driver.registered_index(pointer, length as usize).unwrap();
        let memory = Registered {
            _mapping: Arc::clone(mapping),
            pointer,
            length,
            index,
        };
        (memory, pointer)
    }

    /// A directory of a test's own, gone with it.
    pub struct Directory(PathBuf);

    impl Directory {
        pub fn new(name: &str) -> Self {
            let name = format!("uringmachine-{}-{name}", std::process::id());
            let path = std::env::temp_dir().join(name);
            std::fs::create_dir(&path).unwrap();
            Self(path)
        }

        pub fn path(&self, name: &str) -> PathBuf {
            self.0.join(name)
        }

        /// A path in it, as the kernel takes paths.
        pub fn name(&self, name: &str) -> CString {
            c_string(&self.path(name))
        }

        /// Makes a file in it.
        pub fn write(&self, name: &str, bytes: &[u8]) -> CString {
            std::fs::write(self.path(name), bytes).unwrap();
            self.name(name)
        }
    }

    impl Drop for Directory {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    pub fn c_string(path: &Path) -> CString {
        CString::new(path.as_os_str().as_bytes()).unwrap()
    }
}
