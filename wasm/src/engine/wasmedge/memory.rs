// SPDX-License-Identifier: Apache-2.0
//! A module's memory, as a function that is lent to it sees it.

use crate::memory::Memory;
use wasmedge_sdk::{CallingFrame, ValType, WasmValue};

/// A module's memory.
pub struct Linear<'a>(pub &'a mut CallingFrame);

impl Memory for Linear<'_> {
    fn read(&self, at: u32, length: u32) -> Option<Vec<u8>> {
        let memory = self.0.memory_ref(0)?;
        // The library's crate allocates before it checks, and a module may name any length.
        let size = u64::from(memory.size()) * super::PAGE;
        (u64::from(at) + u64::from(length) <= size).then(|| memory.get_data(at, length).ok())?
    }

    fn write(&mut self, at: u32, bytes: &[u8]) -> Option<()> {
        self.0.memory_mut(0)?.set_data(bytes, at).ok()
    }
}

/// The arguments of a call, all of which are i32.
pub fn numbers(arguments: &[WasmValue]) -> Vec<u32> {
    arguments.iter().filter(|value| value.ty() == ValType::I32).map(|value| value.to_i32() as u32).collect()
}
