// SPDX-License-Identifier: Apache-2.0
//! `wasi:logging/logging` for core modules, as WasmEdge lends it to them: applications for
//! LlamaEdge log by it. It is one function, `log(level, context, message)`, of five i32 and without
//! a result: a text is a pointer and a length.
//!
//! The level is that of the interface (WebAssembly/wasi-logging, `wit/logging.wit`), by its number.
//! WasmEdge takes the context for the place where to write: standard output, standard error, or
//! else a file of the host. Here any other context goes to standard error, with its name.

use crate::memory::Memory;
use std::fmt;
use std::io::Write;

/// The module from which a module imports the function.
pub const MODULE: &str = "wasi:logging/logging";

/// The function's name.
pub const FUNCTION: &str = "log";

/// The number of its parameters.
pub const PARAMETERS: usize = 5;

/// The levels, by their numbers.
const LEVELS: [&str; 6] = ["trace", "debug", "info", "warn", "error", "critical"];

/// The most bytes of a context or a message.
const MAX_TEXT: u32 = 1 << 20;

/// What is wrong with a call, which ends the module as a trap does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Misuse(String);

/// Where a line belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Output,
    Error,
}

/// Logs a line. Missing arguments are 0.
///
/// # Errors
/// What is wrong with the arguments.
pub fn log(arguments: &[u32], memory: &dyn Memory) -> Result<(), Misuse> {
    let (place, line) = line(arguments, memory).map_err(Misuse)?;
    // The container may have closed it.
    let _unheard = match place {
        Place::Output => std::io::stdout().write_all(line.as_bytes()).and_then(|()| std::io::stdout().flush()),
        Place::Error => std::io::stderr().write_all(line.as_bytes()),
    };
    Ok(())
}

impl fmt::Display for Misuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "log: {}", self.0)
    }
}

impl std::error::Error for Misuse {}

fn line(arguments: &[u32], memory: &dyn Memory) -> Result<(Place, String), String> {
    let argument = |index: usize| arguments.get(index).copied().unwrap_or_default();
    let level = LEVELS.get(argument(0) as usize).ok_or_else(|| format!("{} is no level", argument(0)))?;
    let text = |what: &str, index: usize| {
        let (at, length) = (argument(index), argument(index + 1));
        let bytes = (length <= MAX_TEXT).then(|| memory.read(at, length)).flatten();
        let bytes = bytes.ok_or_else(|| format!("the {what} is outside of the memory, or longer than {MAX_TEXT} bytes"))?;
        Ok::<_, String>(String::from_utf8_lossy(&bytes).into_owned())
    };
    let (context, message) = (text("context", 1)?, text("message", 3)?);
    Ok(match context.as_str() {
        "" | "stdout" => (Place::Output, format!("[{level}] {message}\n")),
        "stderr" => (Place::Error, format!("[{level}] {message}\n")),
        other => (Place::Error, format!("[{level}] {other}: {message}\n")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::Linear;

    #[test]
    fn a_line_has_its_level_and_goes_where_its_context_says() {
        let mut memory = *b"stdoutstderrhello";
        let memory = Linear(&mut memory);
        let line = |level, context, length| line(&[level, context, length, 12, 5], &memory);
        assert_eq!(line(2, 0, 6), Ok((Place::Output, "[info] hello\n".into())));
        assert_eq!(line(0, 0, 0), Ok((Place::Output, "[trace] hello\n".into())));
        assert_eq!(line(5, 6, 6), Ok((Place::Error, "[critical] hello\n".into())));
        assert_eq!(line(3, 0, 3), Ok((Place::Error, "[warn] std: hello\n".into())));
        assert_eq!(line(6, 0, 6).unwrap_err(), "6 is no level");
        for (context, length) in [(0, 18), (u32::MAX, 1), (0, u32::MAX)] {
            assert!(line(2, context, length).unwrap_err().starts_with("the context is outside"));
        }
    }
}
