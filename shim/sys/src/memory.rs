// SPDX-License-Identifier: Apache-2.0
//! Returns freed memory to the kernel. A sandbox process idles for weeks, and pods can use that
//! memory.

use std::io;

/// How many bytes below the used part of the main thread's stack are returned. The kernel keeps a
/// megabyte below the stack free of other mappings (`stack_guard_gap`, kernel-parameters.txt), so
/// this range reaches into none.
const STACK: usize = 512 << 10;

/// Bytes of stack left for the frame of the function that returns the rest, and for the call in it.
const IN_USE: usize = 1 << 10;

/// Limits glibc to one small arena. Call it before the first thread starts.
pub fn stay_small() {
    // SAFETY: `mallopt` takes numbers and changes only the allocator's tunables.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 64 * 1024);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 64 * 1024);
    }
}

/// Returns the allocator's free memory to the kernel. On the main thread it also returns the pages
/// of the stack that are no longer in use. It takes some microseconds.
pub fn trim() {
    // SAFETY: `malloc_trim` only releases memory that the allocator itself holds free.
    unsafe {
        libc::malloc_trim(0);
    }
    if rustix::thread::gettid() == rustix::process::getpid() {
        trim_stack();
    }
}

/// Call it on the main thread only: below the stack of another thread there may be any mapping.
#[inline(never)]
fn trim_stack() {
    let here = 0_u8;
    let page = rustix::param::page_size();
    let top = (&raw const here as usize).saturating_sub(IN_USE) / page * page;
    let bottom = top.saturating_sub(STACK);
    // SAFETY: the range lies below the used part of the main thread's stack and reaches into no
    // other mapping (see above). So nobody needs its contents; the next use finds zeroes. Where
    // part of it is not mapped, the kernel returns ENOMEM but still frees the rest.
    unsafe { libc::madvise(bottom as *mut libc::c_void, top - bottom, libc::MADV_DONTNEED) };
}

/// Maps a page of executable memory and returns it to the kernel. It says whether the process may
/// have code of its own making.
///
/// # Errors
/// The kernel's error of mmap(2), or what a system call filter answers.
pub fn map_code() -> io::Result<()> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory at an address that the kernel chooses, which nothing uses.
    unsafe {
        let page = libc::mmap(std::ptr::null_mut(), 1, protection, flags, -1, 0);
        if page == libc::MAP_FAILED || libc::munmap(page, 1) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}
