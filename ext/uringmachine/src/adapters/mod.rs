//! What lets other libraries' loops run on a machine.
#![forbid(unsafe_code)]

mod async_hooks;
mod selector;

use magnus::{Error, RClass, Ruby};

pub fn define(ruby: &Ruby, module: RClass) -> Result<(), Error> {
    selector::define(ruby, module)
}
