// SPDX-License-Identifier: Apache-2.0
//! Looks at modules before an engine compiles them.

use crate::payload::Format;
use std::borrow::Cow;
use wasmparser::{Parser, Payload, TypeRef};

/// A module in the binary format; text is converted.
///
/// # Errors
/// The error in its text, that it is not a module, or that it has threads.
pub fn binary(format: Format, bytes: &[u8]) -> Result<Cow<'_, [u8]>, String> {
    let binary = match format {
        Format::Text => wat::parse_bytes(bytes).map_err(|error| error.to_string())?,
        Format::Binary | Format::Precompiled | Format::Library => Cow::Borrowed(bytes),
    };
    if !binary.starts_with(b"\0asm") {
        return Err("it is not a WebAssembly module: its first bytes are not those of one".into());
    }
    refuse_threads(&binary)?;
    Ok(binary)
}

/// Refuses a core module whose memory is shared between threads: no engine here runs threads, and
/// their own errors do not say so. What else is wrong with a module, its engine says.
///
/// # Errors
/// That it has such a memory.
fn refuse_threads(binary: &[u8]) -> Result<(), String> {
    if is_component(binary) {
        return Ok(());
    }
    for part in Parser::new(0).parse_all(binary) {
        let is_shared = match part {
            Ok(Payload::MemorySection(memories)) => memories.into_iter().flatten().any(|memory| memory.shared),
            Ok(Payload::ImportSection(imports)) => {
                imports.into_imports().flatten().any(|import| matches!(import.ty, TypeRef::Memory(memory) if memory.shared))
            }
            // Both come before it.
            Ok(Payload::CodeSectionStart { .. }) | Err(_) => break,
            Ok(_) => false,
        };
        if is_shared {
            return Err("it has a memory that threads share, and no engine here runs threads: compile it without them".into());
        }
    }
    Ok(())
}

/// Whether the header is a component's: its layer field is 1 (the component model's binary format).
pub fn is_component(binary: &[u8]) -> bool {
    binary.get(6..8) == Some(&[1, 0])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shared_memory_is_refused_whether_own_or_imported() {
        let refused = |text: &str| refuse_threads(&wat::parse_str(text).unwrap()).is_err();
        assert!(refused("(module (memory 1 1 shared))"));
        assert!(refused("(module (import \"env\" \"memory\" (memory 1 1 shared)))"));
        assert!(!refused("(module (import \"env\" \"f\" (func)) (memory 1 1))"));
        assert!(!refused("(component)"));
        assert_eq!(refuse_threads(b"\0asm\x01\0\0\0\xff\xff\xff\xff"), Ok(()), "another error is the engine's");
    }
}
