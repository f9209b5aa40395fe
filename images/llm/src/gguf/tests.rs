// SPDX-License-Identifier: Apache-2.0
use super::*;
use std::io::Cursor;

/// Writes headers.
#[derive(Default)]
struct Writer {
    keys: u64,
    bytes: Vec<u8>,
}

impl Writer {
    fn text(bytes: &mut Vec<u8>, text: &[u8]) {
        bytes.extend((text.len() as u64).to_le_bytes());
        bytes.extend(text);
    }

    fn key(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        Self::text(&mut self.bytes, key.as_bytes());
        self.bytes.extend(kind.to_le_bytes());
        self.bytes.extend(value);
        self.keys += 1;
        self
    }

    fn string(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        Self::text(&mut bytes, value.as_bytes());
        self.key(key, STRING, &bytes)
    }

    fn strings(self, key: &str, values: &[&[u8]]) -> Self {
        let mut bytes = STRING.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            Self::text(&mut bytes, value);
        }
        self.key(key, ARRAY, &bytes)
    }

    fn file(self) -> Vec<u8> {
        let mut file = b"GGUF\x03\0\0\0".to_vec();
        file.extend(7_u64.to_le_bytes());
        file.extend(self.keys.to_le_bytes());
        file.extend(self.bytes);
        file
    }
}

fn usual() -> Writer {
    let floats = [6_u32.to_le_bytes().to_vec(), 3_u64.to_le_bytes().to_vec(), vec![0; 12]].concat();
    Writer::default()
        .string("general.name", "A model")
        .key("llama.context_length", 4, &4096_u32.to_le_bytes())
        .key("tokenizer.ggml.eos_token_id", 4, &2_u32.to_le_bytes())
        .strings("tokenizer.ggml.tokens", &[b"<s>", b"\xff", b"</s>"])
        .key("tokenizer.ggml.scores", ARRAY, &floats)
        .key("tokenizer.ggml.bos_token_id", 4, &0_u32.to_le_bytes())
        .string("tokenizer.ggml.model", "llama")
        .string("tokenizer.chat_template", "{{ messages }}")
}

fn read(file: Vec<u8>) -> Result<Header> {
    Header::read(Cursor::new(file))
}

fn why(file: Vec<u8>) -> String {
    read(file).unwrap_err().to_string()
}

#[test]
fn a_header_says_how_to_write_a_prompt() {
    let expected = Header {
        name: Some("A model".into()),
        chat_template: Some("{{ messages }}".into()),
        context_length: Some(4096),
        bos: Some("<s>".into()),
        eos: Some("</s>".into()),
        adds_bos: true,
    };
    assert_eq!(read(usual().file()).unwrap(), expected);
    let explicit = usual().key("tokenizer.ggml.add_bos_token", BOOL, &[0]).file();
    assert!(!read(explicit).unwrap().adds_bos);
    assert_eq!(read(Writer::default().file()).unwrap(), Header::default());
}

#[test]
fn the_header_of_a_real_model_is_read() {
    // The script beside it makes it; a checkout may be without it.
    let Ok(file) = std::fs::File::open("model/tiny.gguf") else { return };
    let header = Header::read(file).unwrap();
    assert!(header.chat_template.unwrap().contains("<|im_start|>"));
    assert!(header.context_length.is_some() && header.eos.is_some() && !header.adds_bos);
}

#[test]
fn a_truncated_file_is_an_error_wherever_it_ends() {
    let file = usual().file();
    for length in 0..file.len() {
        let said = why(file[..length].to_vec());
        assert!(said.starts_with("it is no valid GGUF file: "), "{length}: {said}");
    }
}

#[test]
fn any_byte_may_be_any_other() {
    let file = usual().file();
    for at in 0..file.len() {
        for value in [0, 1, 7, 9, 0x7f, 0x80, 0xff] {
            let mut hostile = file.clone();
            hostile[at] = value;
            let _either = read(hostile);
        }
    }
}

#[test]
fn lengths_are_compared_with_the_file_before_anything_is_allocated() {
    let all = u64::MAX.to_le_bytes();
    let array = |inner: u32| [&inner.to_le_bytes()[..], &all].concat();
    let long = "it is no valid GGUF file: a length in its header leads beyond its end";
    assert_eq!(why(Writer::default().key("unknown", STRING, &all).file()), long);
    assert_eq!(why(Writer::default().key("unknown", ARRAY, &array(STRING)).file()), long);
    assert_eq!(why(Writer::default().key("unknown", ARRAY, &array(0)).file()), long);
    assert!(why(Writer::default().key("unknown", ARRAY, &array(10)).file()).ends_with("an array in its header is too long"));
    assert!(why(Writer::default().key("general.name", STRING, &all).file()).ends_with("a text in its header is too long"));
    let large = [&(MAX_TEXT - 1).to_le_bytes()[..], b"short"].concat();
    assert_eq!(why(Writer::default().key("general.name", STRING, &large).file()), long);
    let mut keys = Writer::default().file();
    keys[16..24].copy_from_slice(&all);
    assert!(why(keys).ends_with("it has too many keys"));
}

#[test]
fn arrays_of_arrays_have_an_end() {
    let mut nested = Vec::new();
    for _ in 0..100 {
        nested.extend(ARRAY.to_le_bytes());
        nested.extend(1_u64.to_le_bytes());
    }
    assert!(why(Writer::default().key("unknown", ARRAY, &nested).file()).ends_with("has no known type"));
}

#[test]
fn an_index_outside_of_the_vocabulary_names_no_token() {
    let header = read(usual().key("tokenizer.ggml.bos_token_id", 5, &(-1_i32).to_le_bytes()).file()).unwrap();
    assert_eq!((header.bos, header.eos.as_deref()), (None, Some("</s>")));
}

#[test]
fn another_file_is_named_as_such() {
    assert!(why(b"PK\x03\x04".repeat(9)).ends_with("it does not begin with GGUF"));
    assert!(why(b"GGUF\x01\0\0\0".repeat(9)).ends_with("its version is neither 2 nor 3"));
}
