// SPDX-License-Identifier: Apache-2.0
//! What computes: the host's `wasi_ephemeral_nn`, or in tests a fake.
//!
//! A computation is begun with its prompt, told how to go on, and asked for piece after piece, or
//! for all at once. Several can be under way: the host's engine batches them.

#[cfg(not(target_arch = "wasm32"))]
pub mod absent;
#[cfg(test)]
pub mod fake;
#[cfg(target_arch = "wasm32")]
pub mod wasi;

/// A loaded model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Graph(pub u32);

/// A computation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context(pub u32);

/// How many tokens a computation took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of the prompt.
    pub input: u64,
    /// Of the answer.
    pub output: u64,
}

/// Why there is no result, as the interface numbers it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// 1: something has a value that the engine does not take.
    InvalidArgument,
    /// 4: the next piece has not come yet.
    Busy,
    /// 8: no model has that name.
    NotFound,
    /// 100: the text is complete.
    EndOfSequence,
    /// 101: the context is full.
    ContextFull,
    /// 102: the prompt does not fit into the context.
    PromptTooLong,
    /// 103: the model cannot be loaded.
    ModelNotFound,
    /// Any other.
    Other(u32),
}

impl Failure {
    /// The failure with that number, which is not 0.
    #[cfg_attr(not(target_arch = "wasm32"), allow(dead_code, reason = "only the host numbers them"))]
    pub fn numbered(number: u32) -> Self {
        match number {
            1 => Self::InvalidArgument,
            4 => Self::Busy,
            8 => Self::NotFound,
            100 => Self::EndOfSequence,
            101 => Self::ContextFull,
            102 => Self::PromptTooLong,
            103 => Self::ModelNotFound,
            other => Self::Other(other),
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::InvalidArgument => write!(formatter, "a value that the engine does not take"),
            Self::Busy => write!(formatter, "the engine is busy"),
            Self::NotFound => write!(formatter, "no model has that name"),
            Self::EndOfSequence => write!(formatter, "the text is complete"),
            Self::ContextFull => write!(formatter, "the context is full"),
            Self::PromptTooLong => write!(formatter, "the prompt does not fit into the context"),
            Self::ModelNotFound => write!(formatter, "the model cannot be loaded"),
            Self::Other(number) => write!(formatter, "the engine has failed (error {number})"),
        }
    }
}

/// A result of the engine.
pub type Outcome<T> = Result<T, Failure>;

/// The engine.
pub trait Engine {
    /// Loads a model, which takes as long as it takes.
    ///
    /// # Errors
    /// When there is no such model, or it cannot be loaded.
    fn load(&mut self, alias: &str, metadata: &str) -> Outcome<Graph>;

    /// Begins a computation. Nothing is computed yet.
    ///
    /// # Errors
    /// When the engine does not take the prompt.
    fn begin(&mut self, graph: Graph, prompt: &str) -> Outcome<Context>;

    /// Says how the answer is computed.
    ///
    /// # Errors
    /// When the engine does not take the metadata.
    fn tell(&mut self, context: Context, metadata: &str) -> Outcome<()>;

    /// The next piece of the answer. A host that knows `non-blocking` does not wait for it.
    ///
    /// # Errors
    /// Why there is none: it has not come, the text is complete, or it failed.
    fn piece(&mut self, context: Context) -> Outcome<Vec<u8>>;

    /// Computes the whole answer.
    ///
    /// # Errors
    /// Why it failed.
    fn whole(&mut self, context: Context) -> Outcome<Vec<u8>>;

    /// How many tokens there were. Before anything is computed, it counts the prompt's.
    ///
    /// # Errors
    /// When they could not be counted.
    fn usage(&mut self, context: Context) -> Outcome<Usage>;

    /// Ends a computation, complete or not.
    fn end(&mut self, context: Context);
}
