// SPDX-License-Identifier: Apache-2.0
//! The host's `wasi_ephemeral_nn`, as WasmEdge's plugin defines it.

use super::{Context, Engine, Failure, Graph, Outcome, Usage};
use serde_json::Value;

/// The input that is the prompt, and the output that is the answer.
const TEXT: u32 = 0;
/// The input that is metadata, and the output that counts tokens.
const METADATA: u32 = 1;
/// The number of the type of bytes.
const U8: u32 = 3;
/// Room for a piece, or for most answers. It grows when the host says that it is too small.
const ROOM: usize = 64 << 10;
/// The most room for an answer.
const MOST_ROOM: usize = 64 << 20;
/// The host's code for a buffer that is too small.
const TOO_LARGE: u32 = 7;

/// A tensor as the host reads it from our memory.
#[repr(C)]
struct Tensor {
    dimensions: *const u32,
    rank: u32,
    kind: u32,
    data: *const u8,
    length: u32,
}

// SAFETY: these are the types of the functions of WasmEdge's plugin and of Magnetar. Each returns 0
// or an error number.
#[link(wasm_import_module = "wasi_ephemeral_nn")]
unsafe extern "C" {
    fn load_by_name_with_config(name: *const u8, length: u32, metadata: *const u8, metadata_length: u32, graph: *mut u32) -> u32;
    fn init_execution_context(graph: u32, context: *mut u32) -> u32;
    fn set_input(context: u32, index: u32, tensor: *const Tensor) -> u32;
    safe fn compute(context: u32) -> u32;
    safe fn compute_single(context: u32) -> u32;
    fn get_output(context: u32, index: u32, buffer: *mut u8, most: u32, written: *mut u32) -> u32;
    fn get_output_single(context: u32, index: u32, buffer: *mut u8, most: u32, written: *mut u32) -> u32;
    safe fn fini_single(context: u32) -> u32;
    safe fn finalize_execution_context(context: u32) -> u32;
}

/// The host.
#[derive(Debug)]
pub struct Host {
    buffer: Vec<u8>,
}

impl Host {
    /// The only one.
    pub fn new() -> Self {
        Self { buffer: vec![0; ROOM] }
    }

    fn give(context: u32, index: u32, text: &str) -> Outcome<()> {
        let dimensions = [1];
        let tensor = Tensor { dimensions: dimensions.as_ptr(), rank: 1, kind: U8, data: text.as_ptr(), length: text.len() as u32 };
        // SAFETY: the tensor and what it points to live longer than the call, which reads them.
        done(unsafe { set_input(context, index, &raw const tensor) })
    }

    fn output(&mut self, Context(context): Context, index: u32, single: bool) -> Outcome<&[u8]> {
        loop {
            let (buffer, most, mut written) = (self.buffer.as_mut_ptr(), self.buffer.len() as u32, 0);
            // SAFETY: the host writes no more than `most` bytes, which the buffer has.
            let code = unsafe {
                match single {
                    true => get_output_single(context, index, buffer, most, &raw mut written),
                    false => get_output(context, index, buffer, most, &raw mut written),
                }
            };
            if code == TOO_LARGE && self.buffer.len() < MOST_ROOM {
                self.buffer.resize(self.buffer.len() * 4, 0);
                continue;
            }
            done(code)?;
            return self.buffer.get(..written as usize).ok_or(Failure::Other(TOO_LARGE));
        }
    }
}

impl Engine for Host {
    fn load(&mut self, alias: &str, metadata: &str) -> Outcome<Graph> {
        let mut graph = 0;
        // SAFETY: both texts live longer than the call, which reads them, and writes a number.
        done(unsafe {
            load_by_name_with_config(alias.as_ptr(), alias.len() as u32, metadata.as_ptr(), metadata.len() as u32, &raw mut graph)
        })?;
        Ok(Graph(graph))
    }

    fn begin(&mut self, Graph(graph): Graph, prompt: &str) -> Outcome<Context> {
        let mut context = 0;
        // SAFETY: the host writes a number there.
        done(unsafe { init_execution_context(graph, &raw mut context) })?;
        match Self::give(context, TEXT, prompt) {
            Ok(()) => Ok(Context(context)),
            Err(failure) => {
                self.end(Context(context));
                Err(failure)
            }
        }
    }

    fn tell(&mut self, Context(context): Context, metadata: &str) -> Outcome<()> {
        Self::give(context, METADATA, metadata)
    }

    fn piece(&mut self, context: Context) -> Outcome<Vec<u8>> {
        done(compute_single(context.0))?;
        self.output(context, TEXT, true).map(<[u8]>::to_vec)
    }

    fn whole(&mut self, context: Context) -> Outcome<Vec<u8>> {
        done(compute(context.0))?;
        self.output(context, TEXT, false).map(<[u8]>::to_vec)
    }

    fn usage(&mut self, context: Context) -> Outcome<Usage> {
        let output = self.output(context, METADATA, false)?;
        let counts: Value = serde_json::from_slice(output).unwrap_or_default();
        let count = |name: &str| counts[name].as_u64().unwrap_or_default();
        Ok(Usage { input: count("input_tokens"), output: count("output_tokens") })
    }

    fn end(&mut self, Context(context): Context) {
        // There is nothing to end in a computation that has come to its end.
        let _ended = fini_single(context);
        let _ended = finalize_execution_context(context);
    }
}

fn done(code: u32) -> Outcome<()> {
    if code == 0 { Ok(()) } else { Err(Failure::numbered(code)) }
}
