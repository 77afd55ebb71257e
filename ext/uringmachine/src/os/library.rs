//! What the libraries of this process have (dlopen(3), dlsym(3)).

use std::ffi::{c_int, c_void, CStr, CString};
use std::mem::{size_of, transmute_copy};
use std::ptr::NonNull;

/// A library that is loaded, and stays so: or all of them, as the program sees them.
#[derive(Clone, Copy, Debug)]
pub struct Library(*mut c_void);

impl Library {
    /// The one of a file, if it is loaded: it is not loaded for this (RTLD_NOLOAD).
    pub fn loaded(path: &CStr) -> Option<Self> {
        // SAFETY: the path ends with NUL; no library is loaded, so no code of one runs.
        let library = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOLOAD | libc::RTLD_LAZY) };
        (!library.is_null()).then_some(Self(library))
    }

    /// Where something is, by its name (dlsym(3)).
    pub fn symbol(self, name: &CStr) -> Option<NonNull<c_void>> {
        // SAFETY: the name ends with NUL; the library is never closed.
        NonNull::new(unsafe { libc::dlsym(self.0, name.as_ptr()) })
    }

    /// A function, by its name.
    ///
    /// # Safety
    /// `F` is a pointer to an `unsafe extern "C" fn` with the signature that the function of that name has.
    pub unsafe fn function<F: Copy>(self, name: &CStr) -> Option<F> {
        const { assert!(size_of::<F>() == size_of::<NonNull<c_void>>()) };
        let symbol = self.symbol(name)?;
        // SAFETY: the caller's promise; the sizes are compared.
        Some(unsafe { transmute_copy(&symbol) })
    }
}

/// The file of a library that is loaded, by the end of its name (dl_iterate_phdr(3)).
pub fn loaded_file(end: &[u8]) -> Option<CString> {
    struct Search<'a> {
        end: &'a [u8],
        found: Option<CString>,
    }
    unsafe extern "C" fn look(
        object: *mut libc::dl_phdr_info,
        _size: usize,
        search: *mut c_void,
    ) -> c_int {
        // SAFETY: the loader passes an object, whose name, if it has one, ends with NUL; and what it was called with.
        let (name, search) = unsafe {
            let name = (*object).dlpi_name;
            let name = (!name.is_null()).then(|| CStr::from_ptr(name));
            (name, &mut *search.cast::<Search>())
        };
        search.found = name
            .filter(|name| name.to_bytes().ends_with(search.end))
            .map(CStr::to_owned);
        c_int::from(search.found.is_some())
    }
    let mut search = Search { end, found: None };
    // SAFETY: the search is on this frame, and nobody else's during the call.
    unsafe { libc::dl_iterate_phdr(Some(look), (&raw mut search).cast()) };
    search.found
}
