//! Memory for the kernel to work on, which a fork wipes.

use std::io;
use std::ptr::NonNull;

/// Anonymous memory in whole pages, of which a child of fork has an empty one of its own.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

// SAFETY: an address and a length, which never change; the bytes are reached through raw pointers only.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        // SAFETY: a new anonymous mapping; advice changes nothing but the fate of a child's copy.
        unsafe {
            let base = libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                -1,
                0,
            );
            if base == libc::MAP_FAILED {
                return Err(io::Error::last_os_error());
            }
            // Fork would copy the pages, since they are pinned. MADV_DONTFORK would leave a hole in the
            // child, which its allocators fill: views of the memory would then show what others have put
            // there, and dropping this would unmap it. With MADV_WIPEONFORK (madvise(2): "Present the child
            // process with zero-filled memory in this range after a fork(2)") the range is the child's own.
            libc::madvise(base, length, libc::MADV_WIPEONFORK);
            Ok(Self {
                base: NonNull::new_unchecked(base.cast()),
                length,
            })
        }
    }

    /// The first byte.
    #[inline]
    pub fn base(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    /// How many bytes there are.
    #[inline]
    pub fn length(&self) -> usize {
        self.length
    }

    /// Gives the pages back, all but those that the kernel works on. The bytes are zero from now on.
    pub fn discard(&self) {
        // SAFETY: no reference to the bytes exists; whoever reads them by a pointer finds zeroes.
        unsafe { libc::madvise(self.base().cast(), self.length, libc::MADV_DONTNEED) };
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping is this struct's own, in a child of fork too.
        unsafe { libc::munmap(self.base().cast(), self.length) };
    }
}
