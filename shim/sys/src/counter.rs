// SPDX-License-Identifier: Apache-2.0
//! The processor's time stamp counter.

/// Reads the counter, on processors that have one. It counts ticks at a constant rate, which the
/// processor does not reveal.
pub fn now() -> Option<u64> {
    #[cfg(target_arch = "x86_64")]
    {
        // SAFETY: the instruction reads a register. Linux lets every program execute it, unless the
        // program itself asked for a signal instead (PR_SET_TSC).
        Some(unsafe { std::arch::x86_64::_rdtsc() })
    }
    #[cfg(not(target_arch = "x86_64"))]
    None
}
