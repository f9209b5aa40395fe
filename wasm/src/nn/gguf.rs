// SPDX-License-Identifier: Apache-2.0
//! What the header of a model's file says about the memory that the model needs (GGUF, version 3,
//! of ggml's docs/gguf.md).
//!
//! The file may be hostile, and the pod's process reads it: so few bytes are kept, and there is a
//! limit to how many are read.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read};

/// The most bytes of a header, which has the words of the tokenizer. The pod's process does nothing
/// else while it reads them.
const MAX_HEADER: u64 = 64 << 20;

/// The most entries of a header.
const MAX_ENTRIES: u64 = 1 << 16;

/// The longest key that counts, in bytes.
const MAX_KEY: u64 = 256;

/// The bytes of a number in the cache of keys and values: 16 bits.
const CACHED: u64 = 2;

/// The bytes of a number that is computed: 32 bits.
const COMPUTED: u64 = 4;

/// The tokens that are computed at a time, if nobody says so (llama.cpp's `--ubatch-size`).
const UBATCH: u64 = 512;

/// What llama-server itself takes, in bytes: measured with a tiny model.
const SERVER: u64 = 16 << 20;

/// The context, in tokens, if nobody says so. A model's own can be longer than any memory holds.
const CONTEXT: u64 = 4096;

/// The numbers of a model that say how much memory it needs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Shape {
    architecture: String,
    numbers: BTreeMap<String, u64>,
    words: u64,
}

/// The memory that a model needs beside its file, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Needs {
    /// For the context.
    pub context: u64,
    /// To compute.
    pub computing: u64,
}

/// The kinds of values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// A number of this many bytes; whether it is a whole one without a sign, or one with a sign.
    Number(usize, bool),
    Text,
    Array,
}

impl Kind {
    fn new(number: u32) -> io::Result<Self> {
        Ok(match number {
            0 | 1 | 7 => Self::Number(1, true),
            2 | 3 => Self::Number(2, true),
            4 | 5 => Self::Number(4, true),
            6 => Self::Number(4, false),
            8 => Self::Text,
            9 => Self::Array,
            10 | 11 => Self::Number(8, true),
            12 => Self::Number(8, false),
            _ => return Err(io::ErrorKind::InvalidData.into()),
        })
    }
}

impl Shape {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// `InvalidData` and `UnexpectedEof` for what is none; those of the file.
    pub fn read(file: impl Read) -> io::Result<Self> {
        let mut file = BufReader::new(file.take(MAX_HEADER));
        let mut head = [0; 8];
        file.read_exact(&mut head)?;
        if &head[..4] != b"GGUF" {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let _tensors = number(&mut file, 8)?;
        let entries = number(&mut file, 8)?;
        if entries > MAX_ENTRIES {
            return Err(io::ErrorKind::InvalidData.into());
        }
        let mut shape = Self::default();
        for _ in 0..entries {
            shape.take_entry(&mut file)?;
        }
        Ok(shape)
    }

    fn take_entry(&mut self, file: &mut impl BufRead) -> io::Result<()> {
        let key = text(file)?;
        match Kind::new(number(file, 4)? as u32)? {
            Kind::Number(size, is_whole) => {
                let value = number(file, size)?;
                if is_whole {
                    self.numbers.insert(key, value);
                }
            }
            Kind::Text if key == "general.architecture" => self.architecture = text(file)?,
            Kind::Text => skip_text(file)?,
            Kind::Array => self.take_array(key, file)?,
        }
        Ok(())
    }

    fn take_array(&mut self, key: String, file: &mut impl BufRead) -> io::Result<()> {
        let kind = Kind::new(number(file, 4)? as u32)?;
        let count = number(file, 8)?;
        if key == "tokenizer.ggml.tokens" {
            self.words = count;
        }
        match kind {
            Kind::Number(size, true) if count <= MAX_ENTRIES => {
                // A number for each layer: the largest bounds what all need.
                let mut largest = 0;
                for _ in 0..count {
                    largest = largest.max(number(file, size)?);
                }
                self.numbers.insert(key, largest);
            }
            Kind::Number(size, _) => skip(file, count.checked_mul(size as u64).ok_or(io::ErrorKind::InvalidData)?)?,
            Kind::Text => {
                for _ in 0..count {
                    skip_text(file)?;
                }
            }
            // None of them is known to be in a file.
            Kind::Array => return Err(io::ErrorKind::InvalidData.into()),
        }
        Ok(())
    }

    fn number(&self, name: &str) -> Option<u64> {
        self.numbers.get(&format!("{}.{name}", self.architecture)).copied()
    }

    /// The context that a model gets: what was asked for, or a usual length that is not longer than
    /// its own.
    pub fn context(&self, asked: Option<u32>) -> u32 {
        let usual = self.number("context_length").filter(|own| *own > 0).map_or(CONTEXT, |own| own.min(CONTEXT));
        asked.unwrap_or(usual as u32)
    }

    /// Whether the file says how the embeddings of a text's tokens become one (`pooling_type`, of
    /// which 0 is none): models made for embeddings do, those that write text do not.
    pub fn has_pooling(&self) -> bool {
        self.number("pooling_type").is_some_and(|kind| kind > 0)
    }

    /// What it needs with a context of so many tokens, and `ubatch` tokens computed at a time;
    /// `None` where the header does not say it.
    pub fn needs(&self, context: u32, ubatch: Option<u32>) -> Option<Needs> {
        let layers = self.number("block_count")?;
        let (width, heads) = (self.number("embedding_length")?, self.number("attention.head_count").filter(|heads| *heads > 0)?);
        let kept_heads = self.number("attention.head_count_kv").unwrap_or(heads);
        let length = |name| self.number(name).unwrap_or(width / heads);
        let numbers = length("attention.key_length").checked_add(length("attention.value_length"))?.checked_mul(kept_heads)?;
        // The engine rounds a context up.
        let tokens = u64::from(context).next_multiple_of(256);
        let context = numbers.checked_mul(layers)?.checked_mul(tokens)?.checked_mul(CACHED)?;
        // The largest of what is computed at once: a weight for each word, after each token.
        let widest = self.words.max(self.number("feed_forward_length").unwrap_or(0)).max(width);
        let computing = ubatch.map_or(UBATCH, u64::from).min(tokens).checked_mul(widest)?.checked_mul(COMPUTED)?.checked_add(SERVER)?;
        Some(Needs { context, computing })
    }
}

/// A whole number of `size` bytes, at most eight, little-endian.
fn number(file: &mut impl Read, size: usize) -> io::Result<u64> {
    let mut bytes = [0; 8];
    file.read_exact(&mut bytes[..size])?;
    Ok(u64::from_le_bytes(bytes))
}

/// A text. Of one that is too long for a key, nothing is kept.
fn text(file: &mut impl BufRead) -> io::Result<String> {
    let length = number(file, 8)?;
    if length > MAX_KEY {
        skip(file, length)?;
        return Ok(String::new());
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn skip_text(file: &mut impl BufRead) -> io::Result<()> {
    let length = number(file, 8)?;
    skip(file, length)
}

fn skip(file: &mut impl BufRead, length: u64) -> io::Result<()> {
    let skipped = io::copy(&mut file.take(length), &mut io::sink())?;
    if skipped < length { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tiny() -> Vec<u8> {
        std::fs::read(concat!(env!("CARGO_MANIFEST_DIR"), "/../images/llm/model/tiny.gguf")).unwrap()
    }

    #[test]
    fn the_tiny_models_needs_are_known() {
        let shape = Shape::read(&tiny()[..]).unwrap();
        assert_eq!((shape.context(None), shape.context(Some(8192))), (1024, 8192));
        // 4 layers, 4 heads of 32, 768 words.
        let needs = shape.needs(1000, None).unwrap();
        assert_eq!(needs, Needs { context: 1024 * 4 * 4 * (32 + 32) * 2, computing: 512 * 768 * 4 + (16 << 20) });
        assert_eq!(shape.needs(64, Some(8)).unwrap().computing, 8 * 768 * 4 + (16 << 20));
    }

    #[test]
    fn a_model_may_say_how_embeddings_are_pooled() {
        assert!(!Shape::read(&tiny()[..]).unwrap().has_pooling());
        let text = |text: &str| [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat();
        let architecture = [text("general.architecture"), 8u32.to_le_bytes().to_vec(), text("bert")].concat();
        let with = |pooling: u32| {
            let pooling = [text("bert.pooling_type"), 4u32.to_le_bytes().to_vec(), pooling.to_le_bytes().to_vec()].concat();
            let file = [&b"GGUF\x03\0\0\0"[..], &0u64.to_le_bytes(), &2u64.to_le_bytes(), &architecture, &pooling].concat();
            Shape::read(&file[..]).unwrap().has_pooling()
        };
        assert_eq!([0, 1, 2, 3].map(with), [false, true, true, true]);
    }

    #[test]
    fn a_header_that_was_cut_is_an_error_wherever_that_was() {
        let whole = tiny();
        let end = (0..whole.len()).find(|length| Shape::read(&whole[..*length]).is_ok()).unwrap();
        assert!(end > 10_000 && end < whole.len());
        for length in (0..end).step_by(97) {
            assert!(Shape::read(&whole[..length]).is_err(), "{length}");
        }
    }

    #[test]
    fn what_claims_to_be_huge_is_an_error() {
        let header = |entries: u64, rest: &[u8]| [&b"GGUF\x03\0\0\0"[..], &0u64.to_le_bytes(), &entries.to_le_bytes(), rest].concat();
        let key = [&1u64.to_le_bytes()[..], b"k"].concat();
        let array = |kind: u32, count: u64| [&key[..], &9u32.to_le_bytes(), &kind.to_le_bytes(), &count.to_le_bytes()].concat();
        let long_text = [&key[..], &8u32.to_le_bytes(), &u64::MAX.to_le_bytes()].concat();
        let nested = array(9, 1);
        for file in [
            header(u64::MAX, &[]),
            header(1, &long_text),
            header(1, &array(8, u64::MAX)),
            header(1, &array(12, u64::MAX)),
            header(1, &nested),
        ] {
            assert!(Shape::read(&file[..]).is_err());
        }
        assert!(Shape::read(&header(0, &[])[..]).unwrap().needs(1, None).is_none());
    }

    proptest! {
        #[test]
        fn any_change_of_a_file_is_a_header_or_an_error(at in 0usize..20_000, byte in any::<u8>(), context in any::<u32>()) {
            let mut file = tiny();
            file[at] = byte;
            if let Ok(shape) = Shape::read(&file[..]) {
                let _known = shape.needs(shape.context(Some(context)), Some(context));
            }
        }
    }
}
