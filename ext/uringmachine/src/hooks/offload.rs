//! What has no operation in io_uring: address_resolve and blocking_operation_wait.

use crate::blocking;
use crate::resolver;
use crate::scheduler::get;
use crate::sys::{self, Raise, NIL, VALUE};

/// address_resolve(hostname): the addresses, numeric, in getaddrinfo's order; nil if there are none.
unsafe extern "C" fn address_resolve(this: VALUE, hostname: VALUE) -> VALUE {
    // SAFETY: see `switch`; a String is checked before its bytes are read.
    unsafe {
        sys::method(|| {
            let core = get(this).core()?;
            let hostname = sys::protect(|| rb_sys::rb_str_to_str(hostname)).map_err(Raise::Jump)?;
            let name = std::ffi::CString::new(sys::string_bytes(&hostname))
                .map_err(|_| Raise::argument("hostname contains null byte"))?;
            let me = (*core).current_task();
            let addresses = resolver::resolve(core, me, name)?;
            if addresses.is_empty() {
                return Ok(NIL);
            }
            let list = rb_sys::rb_ary_new();
            for address in &addresses {
                let text = rb_sys::rb_utf8_str_new(address.as_ptr().cast(), address.len() as _);
                rb_sys::rb_ary_push(list, text);
            }
            Ok(list)
        })
    }
}

/// blocking_operation_wait(operation): runs it on a worker thread while other fibers run here.
unsafe extern "C" fn blocking_operation_wait(this: VALUE, operation: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        sys::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            blocking::wait(core, me, operation)
        })
    }
}

pub unsafe fn define(class: VALUE) {
    // SAFETY: each function takes what its arity says.
    unsafe {
        sys::define_method(class, c"address_resolve", address_resolve as *const (), 1);
        sys::define_method(
            class,
            c"blocking_operation_wait",
            blocking_operation_wait as *const (),
            1,
        );
    }
}
