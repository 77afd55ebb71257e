//! Name look-ups by the system's resolver, on native threads, which know no Ruby.

use std::ffi::CString;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};

use nix::sys::signal::SigSet;
use uringmachine_runtime::TaskId;

use crate::machine::Core;
use crate::off_thread::threads::{self, End, Leaving, Place, Pool, Turn};
use crate::os::per_process::PerProcess;
use crate::ruby::Raise;

/// A child of fork has none of its parent's threads.
static POOL: PerProcess<Arc<Pool<Work>>> = PerProcess::new();

/// What a thread is to do, and no Ruby in it.
struct Work(Box<dyn FnOnce() + Send>);

impl threads::Work for Work {
    fn start_thread(pool: &Arc<Pool<Self>>) -> Result<(), Raise> {
        let pool = Arc::clone(pool);
        std::thread::Builder::new()
            .name("um-native".into())
            .stack_size(512 * 1024)
            .spawn(move || work(&pool))
            .map(drop)
            .map_err(|error| Raise::errno(error.raw_os_error().unwrap_or(libc::EAGAIN)))
    }
}

fn work(pool: &Pool<Work>) {
    // Signals are for Ruby's threads.
    // It fails for numbers that are none only.
    let _ = SigSet::all().thread_block();
    let (mut place, never) = (Place::Fresh, AtomicBool::new(false));
    while let Turn::Job(job) = pool.take(&mut place, &never) {
        pool.begin(&mut place);
        (job.work.0)();
        job.ticket.finish(End::Done);
    }
    pool.leave(place);
}

/// Runs `job` on a native thread and waits for its result. An exception abandons it: the thread keeps
/// what the job owns until it is done.
unsafe fn offload<T: Send + 'static>(
    core: *mut Core,
    me: TaskId,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Raise> {
    let result = Arc::new(Mutex::new(None));
    let slot = Arc::clone(&result);
    let work = Work(Box::new(move || {
        let value = job();
        *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
    }));
    // SAFETY: the caller's promise.
    unsafe { threads::run(POOL.get(), core, me, work, Leaving::AtOnce)? };
    let value = result.lock().unwrap_or_else(PoisonError::into_inner).take();
    value.ok_or(Raise::errno(libc::EINTR))
}

/// The addresses of a host, numeric, in the order of getaddrinfo(3), each once.
pub unsafe fn resolve(core: *mut Core, me: TaskId, name: CString) -> Result<Vec<String>, Raise> {
    // SAFETY: as `offload`.
    unsafe { offload(core, me, move || look_up(&name)) }
}

fn look_up(name: &CString) -> Vec<String> {
    let mut addresses = Vec::new();
    // SAFETY: `hints` is zeroed but for two fields; the list is walked while it lives, and freed once.
    unsafe {
        let mut hints: libc::addrinfo = std::mem::zeroed();
        hints.ai_family = libc::AF_UNSPEC;
        hints.ai_socktype = libc::SOCK_STREAM;
        let mut list = std::ptr::null_mut();
        if libc::getaddrinfo(name.as_ptr(), std::ptr::null(), &hints, &mut list) != 0 {
            return addresses;
        }
        let mut entry = list;
        while !entry.is_null() {
            if let Some(address) = numeric(&*entry) {
                if !addresses.contains(&address) {
                    addresses.push(address);
                }
            }
            entry = (*entry).ai_next;
        }
        libc::freeaddrinfo(list);
    }
    addresses
}

/// An address as text, with its zone if it has one (getnameinfo(3)).
fn numeric(entry: &libc::addrinfo) -> Option<String> {
    let mut text = [0u8; 128];
    // SAFETY: the entry's address and length belong together; the text has the size given.
    let failed = unsafe {
        libc::getnameinfo(
            entry.ai_addr,
            entry.ai_addrlen,
            text.as_mut_ptr().cast(),
            text.len() as _,
            std::ptr::null_mut(),
            0,
            libc::NI_NUMERICHOST,
        )
    };
    if failed != 0 {
        return None;
    }
    let length = text.iter().position(|byte| *byte == 0)?;
    String::from_utf8(text[..length].to_vec()).ok()
}
