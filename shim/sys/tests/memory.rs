// SPDX-License-Identifier: Apache-2.0
//! Tests `memory::trim` on the main thread and on another one. It does without libtest, which never
//! runs a test on the main thread.

#![allow(clippy::expect_used, reason = "a test, which Clippy cannot see without libtest")]

use magnetar_sys::memory::trim;

fn main() {
    std::thread::spawn(|| {
        deep(200);
        trim();
        assert_eq!(deep(200), 201, "another thread keeps its stack");
    })
    .join()
    .expect("the thread lives");
    assert_eq!(deep(200), 201);
    let used = stack();
    trim();
    let kept = stack();
    assert!(used > 200 && kept < 64, "the stack has {kept} KiB of {used}");
    assert_eq!(deep(200), 201, "it can be used again");
}

/// Uses so many KiB of the stack.
#[inline(never)]
fn deep(kib: usize) -> u8 {
    let mut used = [1_u8; 1024];
    std::hint::black_box(&mut used);
    if kib == 0 { used[0] } else { deep(kib - 1).wrapping_add(std::hint::black_box(&used)[1023]) }
}

/// The resident memory of the main thread's stack, in KiB.
fn stack() -> u64 {
    let maps = std::fs::read_to_string("/proc/self/smaps").expect("its own maps");
    let stack = maps.lines().skip_while(|line| !line.ends_with("[stack]")).find_map(|line| line.strip_prefix("Rss:"));
    stack.and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok()).expect("a stack")
}
