// SPDX-License-Identifier: Apache-2.0
//! How to find a program of the node's.

use crate::error::{Error, Result};
use crate::runtime::cli::in_path;
use std::path::PathBuf;

/// llama.cpp's own server, the engine of language models.
pub const LLAMA_SERVER: Program = Program {
    name: "llama-server",
    places: &["/usr/lib/llama.cpp", "/usr/libexec"],
    remedy: "install Debian's package llama.cpp-tools, or llama.cpp",
};

/// A program that may be installed on the node.
#[derive(Debug, Clone, Copy)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Where some distributions put it, in addition to `PATH`.
    pub places: &'static [&'static str],
    /// How to get it, as an order.
    pub remedy: &'static str,
}

impl Program {
    /// Finds the program. `configured` is another name or an absolute path, or empty for the
    /// default.
    ///
    /// # Errors
    /// `NotFound`, with the name, the searched places, and how to get it.
    pub fn find(&self, configured: &str) -> Result<PathBuf> {
        let name = if configured.is_empty() { self.name } else { configured };
        if name.starts_with('/') {
            return in_path(name).ok_or_else(|| Error::not_found(format!("{name}, which is configured, is not an executable file")));
        }
        let in_places = || self.places.iter().find_map(|place| in_path(&format!("{place}/{name}")));
        in_path(name).or_else(in_places).ok_or_else(|| {
            let places: String = self.places.iter().map(|place| format!(" nor in {place}")).collect();
            Error::not_found(format!("{name} is neither in PATH{places}: {}", self.remedy))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Code;
    use std::path::Path;

    const ABSENT: Program =
        Program { name: "no-such-program", places: &["/usr/libexec", "/usr/lib/qemu"], remedy: "install Debian's package no-such-package" };

    #[test]
    fn a_missing_program_is_named_with_its_package() {
        let error = ABSENT.find("").unwrap_err();
        assert_eq!(error.code(), Code::NotFound);
        for word in ["no-such-program", "PATH nor in /usr/libexec nor in /usr/lib/qemu", "no-such-package"] {
            assert!(error.to_string().contains(word), "{error}");
        }
    }

    #[test]
    fn a_configured_path_wins() {
        assert_eq!(ABSENT.find("/bin/sh").unwrap(), Path::new("/bin/sh"));
        assert!(ABSENT.find("sh").unwrap().ends_with("sh"));
        let error = ABSENT.find("/etc/passwd").unwrap_err();
        assert!(error.to_string().starts_with("/etc/passwd, which is configured"), "{error}");
    }

    #[test]
    fn programs_outside_of_path_are_found() {
        let program = Program { name: "passwd-not-in-path", places: &["/nowhere", "/bin"], remedy: "install Debian's package none" };
        assert_eq!(program.find("sh").unwrap().file_name().unwrap(), "sh");
    }
}
