// SPDX-License-Identifier: Apache-2.0
//! The CRI's log format: `<time> <stdout|stderr> <P|F> <text>`, one entry a line; `P` marks a
//! piece of a line that goes on in the next entry of the same stream.

use crate::{Error, Result};

/// Which stream an entry came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// One line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// When containerd read it, RFC 3339 with nanoseconds.
    pub time: String,
    /// The stream.
    pub source: Source,
    /// The line goes on in the next entry.
    pub partial: bool,
    /// The text without its end of line.
    pub text: Vec<u8>,
}

/// A whole log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// In the order of the file.
    pub entries: Vec<Entry>,
}

impl Log {
    /// Reads a log. A last line that is not complete yet is left out.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        let complete = bytes.iter().rposition(|&b| b == b'\n').map_or(0, |end| end + 1);
        let entries = bytes[..complete]
            .split_inclusive(|&b| b == b'\n')
            .enumerate()
            .map(|(n, line)| {
                let line = line.strip_suffix(b"\n").unwrap_or(line);
                entry(line).ok_or_else(|| Error::Log { line: n + 1, text: String::from_utf8_lossy(line).into_owned() })
            })
            .collect::<Result<_>>()?;
        Ok(Self { entries })
    }

    /// Everything written to standard output, as it was written.
    pub fn stdout(&self) -> String {
        self.text(Source::Stdout)
    }

    /// Everything written to standard error, as it was written.
    pub fn stderr(&self) -> String {
        self.text(Source::Stderr)
    }

    fn text(&self, source: Source) -> String {
        let mut bytes = Vec::new();
        for entry in self.entries.iter().filter(|e| e.source == source) {
            bytes.extend_from_slice(&entry.text);
            if !entry.partial {
                bytes.push(b'\n');
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }
}

fn entry(line: &[u8]) -> Option<Entry> {
    let mut parts = line.splitn(4, |&b| b == b' ');
    let time = String::from_utf8(parts.next()?.to_vec()).ok()?;
    let source = match parts.next()? {
        b"stdout" => Source::Stdout,
        b"stderr" => Source::Stderr,
        _ => return None,
    };
    let partial = match parts.next()? {
        b"P" => true,
        b"F" => false,
        _ => return None,
    };
    Some(Entry { time, source, partial, text: parts.next()?.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &[u8] = b"2026-01-01T00:00:00.1Z stdout F one\n\
        2026-01-01T00:00:00.2Z stdout P tw\n\
        2026-01-01T00:00:00.3Z stderr F oops \n\
        2026-01-01T00:00:00.4Z stdout F o\n\
        2026-01-01T00:00:00.5Z stdout F thr";

    #[test]
    fn streams_are_separated_and_partial_entries_joined() {
        let log = Log::parse(LOG).unwrap();
        assert_eq!(log.stdout(), "one\ntwo\n");
        assert_eq!(log.stderr(), "oops \n");
    }

    #[test]
    fn a_line_still_being_written_is_left_out() {
        assert_eq!(Log::parse(LOG).unwrap().entries.len(), 4);
        assert_eq!(Log::parse(b"").unwrap(), Log::default());
    }

    #[test]
    fn empty_lines_are_kept() {
        let log = Log::parse(b"t stdout F \nt stdout F \n").unwrap();
        assert_eq!(log.stdout(), "\n\n");
    }

    #[test]
    fn an_invalid_log_line_is_named_with_its_number() {
        let error = Log::parse(b"t stdout F a\nnonsense\n").unwrap_err();
        assert_eq!(error.to_string(), "line 2 is not a CRI log line: \"nonsense\"");
    }
}
