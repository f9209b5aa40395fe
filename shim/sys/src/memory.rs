// SPDX-License-Identifier: Apache-2.0
//! A sandbox process idles for weeks: what it freed should belong to the pods.

/// Keeps glibc to one small arena. Call before the first thread, if there will be any.
pub fn stay_small() {
    // SAFETY: `mallopt` takes numbers and changes only the allocator's tunables.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Returns free memory of the allocator to the kernel. Costs some microseconds.
pub fn trim() {
    // SAFETY: `malloc_trim` only releases memory that the allocator itself holds free.
    unsafe {
        libc::malloc_trim(0);
    }
}
