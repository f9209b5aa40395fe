// SPDX-License-Identifier: Apache-2.0
//! The functions of `wasi_ephemeral_nn` over a module's memory, for each engine to lend to its
//! modules. All parameters and results are i32.
//!
//! The signatures are those of the crate wasmedge-wasi-nn 0.8 and of WasmEdge's plugin. The memory
//! is hostile: each pointer and each length is checked.

use super::answers::{Code, Outcome};
use super::graph::{Graphs, MAX_PROMPT, Output};
use crate::memory::Memory;

/// The module from which a module imports them.
pub const MODULE: &str = "wasi_ephemeral_nn";

/// The number of the encoding GGML.
const GGML: u32 = 6;

/// The last target that `load` takes: the ones before it are CPU and GPU.
const TPU: u32 = 2;

/// The bytes of a tensor: the pointer and the length of its dimensions, its type, the pointer and
/// the length of its data.
const TENSOR: u32 = 20;

/// The bytes of a builder: a pointer and a length.
const BUILDER: u32 = 8;

/// The most bytes of a name, a path or metadata.
const MAX_TEXT: u32 = 1 << 20;

/// A function.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Function {
    /// Loads a model by what its builders say.
    Load,
    /// Loads a model by its alias.
    LoadByName,
    /// Loads a model by its alias, with metadata.
    LoadByNameWithConfig,
    /// Begins a computation.
    InitExecutionContext,
    /// Gives it the prompt, or metadata.
    SetInput,
    /// Computes the whole answer.
    Compute,
    /// Computes the next piece of it.
    ComputeSingle,
    /// Ends an answer that comes in pieces.
    FiniSingle,
    /// Copies an output.
    GetOutput,
    /// Copies an output of the last piece.
    GetOutputSingle,
    /// Forgets a model.
    Unload,
    /// Ends a computation.
    FinalizeExecutionContext,
}

impl Function {
    /// All of them.
    pub const ALL: [Self; 12] = [
        Self::Load,
        Self::LoadByName,
        Self::LoadByNameWithConfig,
        Self::InitExecutionContext,
        Self::SetInput,
        Self::Compute,
        Self::ComputeSingle,
        Self::FiniSingle,
        Self::GetOutput,
        Self::GetOutputSingle,
        Self::Unload,
        Self::FinalizeExecutionContext,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Load => "load",
            Self::LoadByName => "load_by_name",
            Self::LoadByNameWithConfig => "load_by_name_with_config",
            Self::InitExecutionContext => "init_execution_context",
            Self::SetInput => "set_input",
            Self::Compute => "compute",
            Self::ComputeSingle => "compute_single",
            Self::FiniSingle => "fini_single",
            Self::GetOutput => "get_output",
            Self::GetOutputSingle => "get_output_single",
            Self::Unload => "unload",
            Self::FinalizeExecutionContext => "finalize_execution_context",
        }
    }

    /// The number of its parameters.
    pub fn parameters(self) -> usize {
        match self {
            Self::Compute | Self::ComputeSingle | Self::FiniSingle | Self::Unload | Self::FinalizeExecutionContext => 1,
            Self::InitExecutionContext => 2,
            Self::LoadByName | Self::SetInput => 3,
            Self::Load | Self::LoadByNameWithConfig | Self::GetOutput | Self::GetOutputSingle => 5,
        }
    }
}

/// Calls a function. Returns its errno, 0 for success. Missing arguments are 0.
pub fn call(function: Function, arguments: &[u32], memory: &mut dyn Memory, graphs: &mut Graphs) -> u32 {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let done = match function {
        Function::Load => {
            load(argument(0), argument(1), [argument(2), argument(3)], memory, graphs).and_then(|graph| put(memory, argument(4), graph))
        }
        Function::LoadByName => text(memory, argument(0), argument(1))
            .and_then(|alias| graphs.load_by_name(&alias, &[]))
            .and_then(|graph| put(memory, argument(2), graph)),
        Function::LoadByNameWithConfig => text(memory, argument(0), argument(1))
            .and_then(|alias| graphs.load_by_name(&alias, &bytes(memory, argument(2), argument(3), MAX_TEXT)?))
            .and_then(|graph| put(memory, argument(4), graph)),
        Function::InitExecutionContext => graphs.begin(argument(0)).and_then(|context| put(memory, argument(1), context)),
        Function::SetInput => tensor(memory, argument(2)).and_then(|tensor| graphs.set_input(argument(0), argument(1), tensor)),
        Function::Compute => graphs.compute(argument(0)),
        Function::ComputeSingle => graphs.compute_single(argument(0)),
        Function::FiniSingle => graphs.end_single(argument(0)),
        Function::GetOutput | Function::GetOutputSingle => {
            let [context, index, at, most, written] = [0, 1, 2, 3, 4].map(argument);
            let output = if function == Function::GetOutput { Output::Whole } else { Output::LastPiece };
            graphs.output(context, index, output).and_then(|output| copy(memory, &output, at, most, written))
        }
        Function::Unload => graphs.unload(argument(0)),
        Function::FinalizeExecutionContext => graphs.end(argument(0)),
    };
    done.map_or_else(|code| code as u32, |()| 0)
}

fn load(builders: u32, count: u32, [encoding, target]: [u32; 2], memory: &dyn Memory, graphs: &mut Graphs) -> Outcome<u32> {
    if encoding != GGML {
        return Err(Code::InvalidEncoding);
    }
    if target > TPU || !(1..=2).contains(&count) {
        return Err(Code::InvalidArgument);
    }
    let builder = |index: u32| {
        let pair = memory.read(builders.checked_add(index * BUILDER)?, BUILDER)?;
        Some((word(&pair, 0)?, word(&pair, 1)?))
    };
    let (at, length) = builder(0).ok_or(Code::MissingMemory)?;
    // A whole model in the module's memory would be there twice, and is larger than that.
    let model = text(memory, at, length)?;
    let path = model.strip_prefix("preload:").ok_or(Code::Unsupported)?;
    let metadata = match count {
        1 => Vec::new(),
        _ => builder(1).ok_or(Code::MissingMemory).and_then(|(at, length)| bytes(memory, at, length, MAX_TEXT))?,
    };
    graphs.load_path(path, &metadata)
}

/// The data of a tensor. Its dimensions and type say nothing about text.
fn tensor(memory: &dyn Memory, at: u32) -> Outcome<Vec<u8>> {
    let tensor = memory.read(at, TENSOR).ok_or(Code::MissingMemory)?;
    let (data, length) = word(&tensor, 3).zip(word(&tensor, 4)).ok_or(Code::MissingMemory)?;
    bytes(memory, data, length, MAX_PROMPT)
}

/// The little-endian number at an index of i32s.
fn word(bytes: &[u8], index: usize) -> Option<u32> {
    bytes.as_chunks().0.get(index).copied().map(u32::from_le_bytes)
}

fn bytes(memory: &dyn Memory, at: u32, length: u32, most: u32) -> Outcome<Vec<u8>> {
    if length > most { Err(Code::TooLarge) } else { memory.read(at, length).ok_or(Code::MissingMemory) }
}

fn text(memory: &dyn Memory, at: u32, length: u32) -> Outcome<String> {
    let text = bytes(memory, at, length, MAX_TEXT)?;
    // Some senders count the zero byte at the end of a string of C.
    let text = text.strip_suffix(&[0]).unwrap_or(&text);
    String::from_utf8(text.to_vec()).map_err(|_| Code::InvalidArgument)
}

fn put(memory: &mut dyn Memory, at: u32, number: u32) -> Outcome<()> {
    memory.write(at, &number.to_le_bytes()).ok_or(Code::MissingMemory)
}

/// Copies an output into a buffer of `most` bytes. A length of 0 is unknown: applications that use
/// llama-core pass an empty vector's length where its capacity is meant. Only the memory is the
/// limit then.
fn copy(memory: &mut dyn Memory, output: &[u8], at: u32, most: u32, written: u32) -> Outcome<()> {
    if most != 0 && output.len() > most as usize {
        return Err(Code::TooLarge);
    }
    memory.write(at, output).ok_or(Code::MissingMemory)?;
    put(memory, written, output.len() as u32)
}

#[cfg(test)]
mod tests;
