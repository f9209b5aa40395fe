// SPDX-License-Identifier: Apache-2.0
//! Text out of pieces that may end within a character.

/// The bytes of a character that is not complete.
#[derive(Debug, Default)]
pub struct Unfinished(Vec<u8>);

impl Unfinished {
    /// Adds a piece, and returns all characters that are complete.
    pub fn push(&mut self, piece: &[u8]) -> String {
        self.0.extend(piece);
        let mut text = String::new();
        loop {
            match std::str::from_utf8(&self.0) {
                Ok(rest) => {
                    text.push_str(rest);
                    self.0.clear();
                    return text;
                }
                Err(error) => {
                    text.push_str(&String::from_utf8_lossy(&self.0[..error.valid_up_to()]));
                    let Some(wrong) = error.error_len() else {
                        self.0.drain(..error.valid_up_to());
                        return text;
                    };
                    text.push(char::REPLACEMENT_CHARACTER);
                    self.0.drain(..error.valid_up_to() + wrong);
                }
            }
        }
    }

    /// What is left at the end.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.0).into_owned();
        self.0.clear();
        rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn characters_stay_whole_wherever_pieces_end() {
        let text = "aé€😀z";
        for size in 1..=text.len() {
            let mut unfinished = Unfinished::default();
            let joined: String = text.as_bytes().chunks(size).map(|piece| unfinished.push(piece)).collect();
            assert_eq!(joined + &unfinished.finish(), text);
        }
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        let mut unfinished = Unfinished::default();
        assert_eq!(unfinished.push(b"a\xffb\xe2\x82"), "a\u{fffd}b");
        assert_eq!(unfinished.push(b"c\xf0\x9f"), "\u{fffd}c");
        assert_eq!(unfinished.finish(), "\u{fffd}");
        assert_eq!(unfinished.finish(), "");
    }
}
