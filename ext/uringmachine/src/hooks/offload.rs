//! What has no operation in io_uring: address_resolve and blocking_operation_wait.

use crate::blocking;
use crate::resolver;
use crate::scheduler::get;
use crate::switch;
use crate::sys::{self, Raise, NIL, VALUE};

/// Looks a host up by the system's resolver, off the thread.
///
/// @method UringMachine::FiberScheduler#address_resolve(hostname)
/// @param hostname [String]
/// @return [Array<String>, nil] the addresses, numeric, in the order of getaddrinfo(3); nil if there are
///   none
/// @raise [ArgumentError] if there is a zero byte in hostname
/// @example
///   scheduler.address_resolve("localhost") #=> ["::1", "127.0.0.1"]
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

/// Whether the operation is the close of an IO, which has forgotten its descriptor by now: if anything is raised first,
/// nobody closes it. From Ruby 4.0 on `io_close` is called for it.
unsafe fn is_close() -> bool {
    const CLOSES: [&[u8]; 4] = [b"close", b"close_read", b"close_write", b"reopen"];
    // SAFETY: within the hook.
    !super::io::has_cause() && unsafe { sys::called_from_any(b"blocking_operation_wait", &CLOSES) }
}

/// Runs a blocking operation on a worker thread while other fibers run here.
///
/// @method UringMachine::FiberScheduler#blocking_operation_wait(operation)
/// @param operation [#call] what Ruby hands over
/// @return [Object] ignored by Ruby; nil leaves the operation to it
/// @example
///   # called by Ruby for zlib, File.stat and others
unsafe extern "C" fn blocking_operation_wait(this: VALUE, operation: VALUE) -> VALUE {
    // SAFETY: see `switch`.
    unsafe {
        sys::method(|| {
            let core = get(this).core()?;
            let me = (*core).current_task();
            if is_close() {
                return blocking::finish(core, me, operation);
            }
            switch::take_turns(core, me)?;
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
