//! address_resolve: a name looked up off the thread.

use magnus::{method, Error, Module, RClass};

use crate::classes::fiber_scheduler::Scheduler;
use crate::off_thread::resolver;
use crate::ruby::this::This;
use crate::ruby::{array, collections, string, Outcome, Raise, Value, NIL};

/// Looks a host up by the system's resolver, off the thread.
///
/// @method UringMachine::FiberScheduler#address_resolve(hostname)
/// @param hostname [String]
/// @return [Array<String>, nil] the addresses, numeric, in the order of getaddrinfo(3); nil if there are
///   none
/// @raise [ArgumentError] if there is a zero byte in hostname
/// @example
///   scheduler.address_resolve("localhost") #=> ["::1", "127.0.0.1"]
fn address_resolve(this: This<Scheduler>, hostname: Value) -> Outcome {
    let machine = this.machine()?;
    let hostname = string::copy(string::from(hostname)?);
    let name = std::ffi::CString::new(hostname)
        .map_err(|_| Raise::argument("hostname contains null byte"))?;
    let addresses = resolver::resolve(machine, machine.current_task(), name)?;
    if addresses.is_empty() {
        return Ok(NIL);
    }
    let list = array()?;
    for address in &addresses {
        collections::push(list, string::utf8(address)?)?;
    }
    Ok(list)
}

/// Defines the hook.
pub fn define(class: RClass) -> Result<(), Error> {
    class.define_method("address_resolve", method!(address_resolve, 1))?;
    Ok(())
}
