//! address_resolve: a name looked up off the thread.

use magnus::rb_sys::AsRawValue;
use magnus::{method, Error, Module, RClass, Ruby, Value};

use crate::classes::fiber_scheduler::Scheduler;
use crate::off_thread::resolver;
use crate::ruby::method::settle;
use crate::ruby::this::This;
use crate::ruby::{self, Raise, NIL};

/// Looks a host up by the system's resolver, off the thread.
///
/// @method UringMachine::FiberScheduler#address_resolve(hostname)
/// @param hostname [String]
/// @return [Array<String>, nil] the addresses, numeric, in the order of getaddrinfo(3); nil if there are
///   none
/// @raise [ArgumentError] if there is a zero byte in hostname
/// @example
///   scheduler.address_resolve("localhost") #=> ["::1", "127.0.0.1"]
fn address_resolve(ruby: &Ruby, this: This<Scheduler>, hostname: Value) -> Result<Value, Error> {
    let hostname = hostname.as_raw();
    settle(ruby, || {
        // SAFETY: see `switch`; a String is checked before its bytes are read.
        unsafe {
            let core = this.core()?;
            let hostname =
                ruby::protect(|| rb_sys::rb_str_to_str(hostname)).map_err(Raise::Jump)?;
            let name = std::ffi::CString::new(ruby::string_bytes(&hostname))
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
        }
    })
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("address_resolve", method!(address_resolve, 1))?;
    Ok(())
}
