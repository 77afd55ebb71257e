//! A driver that is leaked, in a process to itself: what is mapped is looked at.

use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use uringmachine_runtime::multishot::Arrivals;
use uringmachine_runtime::operations::RecvMultishot;
use uringmachine_runtime::{Driver, Features};

/// How much memory is mapped for the kernel to work on, in KiB: that which a fork wipes ("wf", proc_pid_smaps(5)).
fn mapped() -> u64 {
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap();
    let mut size = 0;
    let mut sum = 0;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("Size:") => size = words.next().unwrap().parse().unwrap(),
            Some("VmFlags:") if words.any(|flag| flag == "wf") => sum += size,
            _ => {}
        }
    }
    sum
}

#[test]
fn what_the_kernel_may_still_write_to_is_never_unmapped() {
    let before = mapped();
    let mut driver: Driver<()> = Driver::new(8, Features::from_environment(), None).unwrap();
    driver.enable().unwrap();
    let (receiver, mut sender) = UnixStream::pair().unwrap();
    let receive = RecvMultishot {
        fd: receiver.as_raw_fd(),
        group: driver.buffer_group().unwrap(),
        flags: 0,
    };
    driver
        .start_multishot(receive, Arrivals::bytes(1 << 20))
        .unwrap();
    let (_, registered) = driver.register_buffers(4, 4096).unwrap();
    driver.poll().unwrap();
    let with_buffers = mapped();
    assert!(with_buffers > before + 16);
    drop(registered);
    driver.leak();
    assert_eq!(mapped(), with_buffers);
    drop(driver);
    sender.write_all(b"late").unwrap();
    assert_eq!(mapped(), with_buffers);
}
