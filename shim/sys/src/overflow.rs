// SPDX-License-Identifier: Apache-2.0
//! Makes a process that exhausts its stack say why, and end.
//!
//! The kernel ends such a process without a word, unless the handler of SIGSEGV has a stack of its
//! own (sigaltstack(2)). A library that handles SIGSEGV itself may not ask for that. So this module
//! replaces the C library's `sigaction` in the whole process: the handlers that others set run on
//! another stack, and only if the fault was not the stack's.
//!
//! A program that has this module must be linked so that its `sigaction` is also that of the
//! libraries which it loads, see `wasm/rustc-engine`.

use crate::abort::Last;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicUsize, Ordering};

static LAST: OnceLock<Last> = OnceLock::new();

/// The handler that somebody else has set for SIGSEGV, as an address; 0 if there is none.
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// The size of the stack for handlers, in bytes.
const STACK: usize = 64 << 10;

/// How far from the stack pointer a fault may be that is the stack's, in bytes: a call touches what
/// is just below it, and a function with large variables what is further below.
const REACH: usize = 1 << 20;

/// From now on, if the calling thread exhausts its stack while somebody handles SIGSEGV, the
/// process writes `text` to its standard error and to `files`, and exits with `code`. Only the
/// first call in a process has an effect.
///
/// # Errors
/// The kernel's error of mmap(2) or sigaltstack(2).
pub fn explain(text: String, files: Vec<OwnedFd>, code: i32) -> io::Result<()> {
    let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: new memory, at an address that the kernel chooses.
    let stack = unsafe { libc::mmap(std::ptr::null_mut(), STACK, protection, flags, -1, 0) };
    if stack == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    let stack = libc::stack_t { ss_sp: stack, ss_flags: 0, ss_size: STACK };
    // SAFETY: the memory is never unmapped, and nothing else uses it.
    if unsafe { libc::sigaltstack(&stack, std::ptr::null_mut()) } < 0 {
        return Err(io::Error::last_os_error());
    }
    LAST.get_or_init(|| Last { text, files, code });
    Ok(())
}

unsafe extern "C" {
    /// The C library's own function, by its other name.
    fn __sigaction(signal: libc::c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> libc::c_int;
}

/// sigaction(2), in place of the C library's. It differs only for SIGSEGV, and only after
/// [`explain`]: the handler runs on the other stack, and after ours.
///
/// # Safety
/// As for the C library's function: each pointer is null or points to a `sigaction`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn sigaction(signal: libc::c_int, new: *const libc::sigaction, old: *mut libc::sigaction) -> libc::c_int {
    // SAFETY: null or valid (contract).
    let given = unsafe { new.as_ref() };
    match given {
        Some(given) if signal == libc::SIGSEGV && LAST.get().is_some() && given.sa_sigaction > libc::SIG_IGN => {
            // A handler without SA_SIGINFO takes the first of our arguments, which does no harm.
            NEXT.store(given.sa_sigaction, Ordering::Relaxed);
            let mut ours = *given;
            ours.sa_sigaction = on_fault as *const () as usize;
            ours.sa_flags |= libc::SA_ONSTACK | libc::SA_SIGINFO;
            // SAFETY: a valid action, whose handler does only what handlers may (below).
            unsafe { __sigaction(signal, &ours, old) }
        }
        // SAFETY: the arguments are the caller's.
        _ => unsafe { __sigaction(signal, new, old) },
    }
}

/// Makes only system calls, on values prepared before, as signal-safety(7) requires.
extern "C" fn on_fault(signal: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel gives a handler with SA_SIGINFO both.
    let (fault, pointer) = unsafe { ((*info).si_addr() as usize, stack_pointer(&*context.cast::<libc::ucontext_t>())) };
    if fault.abs_diff(pointer) < REACH
        && let Some(last) = LAST.get()
    {
        last.end();
    }
    let next = NEXT.load(Ordering::Relaxed);
    // SAFETY: an address that was given to sigaction as that of a handler, and is not 0: this
    // handler is only ever set after it.
    let next = unsafe { std::mem::transmute::<usize, extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void)>(next) };
    next(signal, info, context);
}

#[cfg(target_arch = "x86_64")]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.gregs[libc::REG_RSP as usize] as usize
}

#[cfg(target_arch = "aarch64")]
fn stack_pointer(context: &libc::ucontext_t) -> usize {
    context.uc_mcontext.sp as usize
}
