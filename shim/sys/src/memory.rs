// SPDX-License-Identifier: Apache-2.0
//! A sandbox process idles for weeks: what it freed should belong to the pods.

/// How much of the main thread's stack is looked at below what is in use. Where the stack ends, the kernel keeps a megabyte free of
/// other mappings (`stack_guard_gap` of its kernel-parameters.txt), so this reaches into none.
const STACK: usize = 512 << 10;

/// What the one system call that is made next may use of the stack, and a signal meanwhile.
const IN_USE: usize = 4 << 10;

/// Keeps glibc to one small arena. Call before the first thread, if there will be any.
pub fn stay_small() {
    // SAFETY: `mallopt` takes numbers and changes only the allocator's tunables.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Returns free memory of the allocator to the kernel, and what the main thread, if it is the caller, has ever used of its stack and
/// does not use now. Costs some microseconds.
pub fn trim() {
    // SAFETY: `malloc_trim` only releases memory that the allocator itself holds free.
    unsafe {
        libc::malloc_trim(0);
    }
    if rustix::thread::gettid() == rustix::process::getpid() {
        trim_stack();
    }
}

/// For the main thread alone: below the stack of another one there may be anything.
#[inline(never)]
fn trim_stack() {
    let here = 0_u8;
    let page = rustix::param::page_size();
    let top = (&raw const here as usize).saturating_sub(IN_USE) / page * page;
    let bottom = top.saturating_sub(STACK);
    // SAFETY: the range lies below all that the main thread has on its stack, and reaches into no other mapping (see above), so nobody
    // needs what is in it; the next to use it gets zeroes. That part of it is not mapped (ENOMEM) does not keep the rest.
    unsafe { libc::madvise(bottom as *mut libc::c_void, top - bottom, libc::MADV_DONTNEED) };
}
