// SPDX-License-Identifier: Apache-2.0
//! Parses a Rust source into tokens with line numbers, so that comments and strings are not taken
//! for code.

use std::{ops::RangeInclusive, path::Path, str::FromStr};

use anyhow::{Result, anyhow};
use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::Text;

/// One token. A group is flattened into its opening bracket, its content and its closing bracket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    /// Counted from one.
    pub line: usize,
    /// The token's text. Of a literal only the first character, which tells its kind.
    pub text: String,
}

/// A parsed source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source<'a> {
    /// The file.
    pub file: &'a Text,
    /// All tokens. Comments are left out; doc comments appear as the attributes that the compiler
    /// makes of them.
    pub tokens: Vec<Token>,
    /// The lines of each string of several lines, without the one that it begins in.
    pub strings: Vec<RangeInclusive<usize>>,
}

impl<'a> Source<'a> {
    /// Parses a file.
    pub fn parse(file: &'a Text) -> Result<Self> {
        let stream = TokenStream::from_str(&file.content).map_err(|e| anyhow!("{}: {e}", file.path.display()))?;
        let mut source = Self { file, tokens: Vec::new(), strings: Vec::new() };
        source.flatten(stream);
        Ok(source)
    }

    /// The path of the file.
    pub fn path(&self) -> &'a Path {
        &self.file.path
    }

    /// The index of each place at which these tokens follow each other.
    pub fn find(&self, words: &[&str]) -> impl Iterator<Item = usize> {
        self.tokens
            .windows(words.len().max(1))
            .enumerate()
            .filter(move |(_, window)| window.iter().zip(words).all(|(token, &word)| token.text == word))
            .map(|(index, _)| index)
    }

    /// The line at which a module of tests begins inside the file, if it has one.
    pub fn tests_begin(&self) -> Option<usize> {
        let test = self.find(&["#", "[", "cfg", "(", "test", ")", "]", "mod"]).next()?;
        let inline = self.tokens.get(test + 9).is_some_and(|token| token.text == "{");
        inline.then(|| self.tokens.get(test).map(|token| token.line)).flatten()
    }

    /// The tokens between the bracket at `open` and its closing bracket.
    pub fn inside(&self, open: usize) -> &[Token] {
        let mut depth = 0_usize;
        for (index, token) in self.tokens.iter().enumerate().skip(open) {
            match token.text.as_str() {
                "(" | "[" | "{" => depth += 1,
                ")" | "]" | "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            if depth == 0 {
                return self.tokens.get(open + 1..index).unwrap_or_default();
            }
        }
        &[]
    }

    fn flatten(&mut self, stream: TokenStream) {
        for tree in stream {
            let line = tree.span().start().line;
            match tree {
                TokenTree::Group(group) => {
                    let (open, close) = match group.delimiter() {
                        Delimiter::Parenthesis => ("(", ")"),
                        Delimiter::Brace => ("{", "}"),
                        Delimiter::Bracket => ("[", "]"),
                        Delimiter::None => ("", ""),
                    };
                    self.tokens.push(Token { line, text: open.to_owned() });
                    self.flatten(group.stream());
                    self.tokens.push(Token { line: group.span_close().start().line, text: close.to_owned() });
                }
                TokenTree::Ident(ident) => self.tokens.push(Token { line, text: ident.to_string() }),
                TokenTree::Punct(punct) => self.tokens.push(Token { line, text: punct.to_string() }),
                TokenTree::Literal(literal) => {
                    let end = literal.span().end().line;
                    if end > line {
                        self.strings.push(line + 1..=end);
                    }
                    let text = literal.to_string().chars().take(1).collect();
                    self.tokens.push(Token { line, text });
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(content: &str) -> Text {
        Text { path: "some.rs".into(), content: content.to_owned() }
    }

    #[test]
    fn comments_and_strings_are_not_code() {
        let file = text("// unsafe\nfn f() { g(\"unsafe\"); } /* unsafe */\n");
        assert_eq!(Source::parse(&file).unwrap().find(&["unsafe"]).count(), 0);
    }

    #[test]
    fn tokens_have_the_line_numbers_of_the_file() {
        let file = text("fn f() {\n    a::b();\n}\n");
        let source = Source::parse(&file).unwrap();
        let at = source.find(&["a", ":", ":", "b"]).next().unwrap();
        assert_eq!(source.tokens[at].line, 2);
    }

    #[test]
    fn only_tests_inside_the_file_begin_in_it() {
        let inside = text("fn f() {}\n\n#[cfg(test)]\nmod tests {}\n");
        assert_eq!(Source::parse(&inside).unwrap().tests_begin(), Some(3));
        let beside = text("fn f() {}\n\n#[cfg(test)]\nmod tests;\n");
        assert_eq!(Source::parse(&beside).unwrap().tests_begin(), None);
    }

    #[test]
    fn the_inside_of_a_bracket_ends_where_it_closes() {
        let file = text("f(a, g(b), c) d");
        let source = Source::parse(&file).unwrap();
        let words: Vec<_> = source.inside(1).iter().map(|t| t.text.as_str()).collect();
        assert_eq!(words.join(" "), "a , g ( b ) , c");
    }
}
