// SPDX-License-Identifier: Apache-2.0
//! The header of a model's file (GGUF): what the server needs to know of the model, which is how to
//! write a prompt for it.
//!
//! ```text
//! "GGUF", version, number of tensors, number of keys, then key, type, value …, then the tensors
//! ```
//!
//! Whoever made the file may mean harm. Every length is compared with what is left of the file
//! before anything is allocated, what is kept has a limit, and the header has one as well.
//! Vocabularies are skipped, except for the few tokens that a chat template may name.

use std::fmt;
use std::io::{self, BufReader, Read, Seek, SeekFrom};

/// The most keys of a header.
const MAX_KEYS: u64 = 1 << 16;
/// The most bytes of a key.
const MAX_KEY: u64 = 1 << 10;
/// The most bytes of a text that is kept: chat templates have several thousand.
const MAX_TEXT: u64 = 1 << 20;
/// The most bytes of the header. Vocabularies of 256,000 tokens have some 10 MB.
const MAX_HEADER: u64 = 256 << 20;
/// Arrays of arrays are allowed, but nobody has them.
const MAX_DEPTH: u32 = 4;

/// The numbers of types of values.
const BOOL: u32 = 7;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// What the header says of the model, as far as the server is interested.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Header {
    /// `general.name`.
    pub name: Option<String>,
    /// `tokenizer.chat_template`, in Jinja.
    pub chat_template: Option<String>,
    /// The length of context that it was trained for, in tokens.
    pub context_length: Option<u64>,
    /// The text of the token that begins a text.
    pub bos: Option<String>,
    /// The text of the token that ends one.
    pub eos: Option<String>,
    /// Whether the tokenizer puts the first token before each prompt by itself.
    pub adds_bos: bool,
}

/// Why there is no header.
#[derive(Debug)]
pub enum GgufError {
    /// It cannot be read.
    Io(io::Error),
    /// It is no GGUF file, or its header contradicts itself.
    Invalid(&'static str),
}

impl fmt::Display for GgufError {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) => write!(formatter, "{error}"),
            Self::Invalid(why) => write!(formatter, "it is no valid GGUF file: {why}"),
        }
    }
}

impl From<io::Error> for GgufError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::Invalid("it ends within its header"),
            _ => Self::Io(error),
        }
    }
}

type Result<T> = std::result::Result<T, GgufError>;

impl Header {
    /// Reads the header of a file.
    ///
    /// # Errors
    /// When it cannot be read, or is no header.
    pub fn read(file: impl Read + Seek) -> Result<Self> {
        let mut reader = Reader::new(file)?;
        let mut found = Found::default();
        if reader.bytes(4)? != b"GGUF" {
            return Err(GgufError::Invalid("it does not begin with GGUF"));
        }
        if !(2..=3).contains(&reader.u32()?) {
            return Err(GgufError::Invalid("its version is neither 2 nor 3"));
        }
        let _tensors = reader.u64()?;
        let keys = reader.u64()?;
        if keys > MAX_KEYS {
            return Err(GgufError::Invalid("it has too many keys"));
        }
        for _ in 0..keys {
            let key = reader.text(MAX_KEY)?;
            let kind = reader.u32()?;
            found.take(&key, kind, &mut reader)?;
        }
        found.finish(&mut reader)
    }
}

/// What was found so far.
#[derive(Default)]
struct Found {
    header: Header,
    tokenizer: Option<String>,
    pre: Option<String>,
    adds_bos: Option<bool>,
    bos: Option<u64>,
    eos: Option<u64>,
    /// Where the vocabulary's first token is, and how many there are.
    tokens: Option<(u64, u64)>,
}

impl Found {
    fn take<R: Read + Seek>(&mut self, key: &str, kind: u32, reader: &mut Reader<R>) -> Result<()> {
        match (key, kind) {
            ("general.name", STRING) => self.header.name = Some(reader.text(MAX_TEXT)?),
            ("tokenizer.chat_template", STRING) => self.header.chat_template = Some(reader.text(MAX_TEXT)?),
            ("tokenizer.ggml.model", STRING) => self.tokenizer = Some(reader.text(MAX_TEXT)?),
            ("tokenizer.ggml.pre", STRING) => self.pre = Some(reader.text(MAX_TEXT)?),
            ("tokenizer.ggml.add_bos_token", BOOL) => self.adds_bos = Some(reader.bytes(1)? != [0]),
            ("tokenizer.ggml.tokens", ARRAY) => {
                let before = reader.position;
                let (inner, count) = (reader.u32()?, reader.u64()?);
                if inner == STRING {
                    self.tokens = Some((reader.position, count));
                }
                reader.go_to(before)?;
                reader.skip(ARRAY, 0)?;
            }
            ("tokenizer.ggml.bos_token_id", 0..=5 | 10 | 11) => self.bos = Some(reader.whole(kind)?),
            ("tokenizer.ggml.eos_token_id", 0..=5 | 10 | 11) => self.eos = Some(reader.whole(kind)?),
            (key, 0..=5 | 10 | 11) if key.ends_with(".context_length") => self.header.context_length = Some(reader.whole(kind)?),
            _ => reader.skip(kind, 0)?,
        }
        Ok(())
    }

    fn finish<R: Read + Seek>(self, reader: &mut Reader<R>) -> Result<Header> {
        let mut header = self.header;
        // What llama.cpp assumes where the file does not say it.
        let by_kind = match self.tokenizer.as_deref() {
            Some("llama") => true,
            Some("gpt2") => matches!(self.pre.as_deref(), Some("llama3" | "llama-v3" | "llama-bpe" | "falcon3" | "tekken")),
            Some(_) | None => false,
        };
        header.adds_bos = self.adds_bos.unwrap_or(by_kind);
        if let Some((at, count)) = self.tokens {
            let mut token = |index: Option<u64>| index.filter(|index| *index < count).map(|index| reader.token(at, index)).transpose();
            header.bos = token(self.bos)?;
            header.eos = token(self.eos)?;
        }
        Ok(header)
    }
}

/// Reads no further than the header may go.
struct Reader<R: Read + Seek> {
    file: BufReader<R>,
    position: u64,
    end: u64,
}

impl<R: Read + Seek> Reader<R> {
    fn new(mut file: R) -> Result<Self> {
        let end = file.seek(SeekFrom::End(0))?.min(MAX_HEADER);
        file.rewind()?;
        Ok(Self { file: BufReader::with_capacity(64 << 10, file), position: 0, end })
    }

    /// Takes so many bytes of what is left.
    fn advance(&mut self, length: u64) -> Result<()> {
        let after = self.position.checked_add(length).filter(|after| *after <= self.end);
        self.position = after.ok_or(GgufError::Invalid("a length in its header leads beyond its end"))?;
        Ok(())
    }

    fn bytes(&mut self, length: u64) -> Result<Vec<u8>> {
        self.advance(length)?;
        // The callers have limited it.
        let mut bytes = vec![0; length as usize];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.file.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    fn text(&mut self, most: u64) -> Result<String> {
        let length = self.u64()?;
        if length > most {
            return Err(GgufError::Invalid("a text in its header is too long"));
        }
        // Names and tokens may have bytes that are no text.
        Ok(String::from_utf8_lossy(&self.bytes(length)?).into_owned())
    }

    /// A whole number of any type; a negative one is none that we look for, and becomes very large.
    fn whole(&mut self, kind: u32) -> Result<u64> {
        Ok(match kind {
            0 => u64::from(u8::from_le_bytes(self.array()?)),
            1 => i64::from(i8::from_le_bytes(self.array()?)).cast_unsigned(),
            2 => u64::from(u16::from_le_bytes(self.array()?)),
            3 => i64::from(i16::from_le_bytes(self.array()?)).cast_unsigned(),
            4 => u64::from(self.u32()?),
            5 => i64::from(i32::from_le_bytes(self.array()?)).cast_unsigned(),
            _ => self.u64()?,
        })
    }

    fn skip(&mut self, kind: u32, depth: u32) -> Result<()> {
        if let Some(size) = size_of(kind) {
            return self.skip_bytes(size);
        }
        match kind {
            STRING => {
                let length = self.u64()?;
                self.skip_bytes(length)
            }
            ARRAY if depth < MAX_DEPTH => {
                let (inner, count) = (self.u32()?, self.u64()?);
                if let Some(size) = size_of(inner) {
                    return self.skip_bytes(count.checked_mul(size).ok_or(GgufError::Invalid("an array in its header is too long"))?);
                }
                // Each element takes bytes of the header, so this ends with it.
                for _ in 0..count {
                    self.skip(inner, depth + 1)?;
                }
                Ok(())
            }
            _ => Err(GgufError::Invalid("a value in its header has no known type")),
        }
    }

    fn skip_bytes(&mut self, length: u64) -> Result<()> {
        self.advance(length)?;
        // `advance` has compared it with the length of the file.
        Ok(self.file.seek_relative(length.cast_signed())?)
    }

    fn go_to(&mut self, position: u64) -> Result<()> {
        self.file.seek_relative(position.cast_signed() - self.position.cast_signed())?;
        self.position = position;
        Ok(())
    }

    /// The text of a token in the vocabulary that begins there.
    fn token(&mut self, vocabulary: u64, index: u64) -> Result<String> {
        self.go_to(vocabulary)?;
        for _ in 0..index {
            self.skip(STRING, 0)?;
        }
        self.text(MAX_TEXT)
    }
}

/// The bytes of a value whose length its type says.
fn size_of(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | BOOL => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
