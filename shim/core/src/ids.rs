// SPDX-License-Identifier: Apache-2.0
//! Names from outside, parsed once: a value of one of these types is safe as a file name.
//!
//! The grammar is containerd's (package `identifiers`): 1 to 76 bytes, alphanumeric runs joined by
//! single `.`, `_` or `-`. So there is no slash, no `..`, no hidden file and no option-like `-x`.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fmt;

/// containerd's limit, in bytes.
const MAX_LEN: usize = 76;

fn check(kind: &str, text: &str) -> Result<()> {
    let separated = |bytes: &[u8]| {
        bytes.first().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
            && bytes.windows(2).all(|pair| pair.iter().any(u8::is_ascii_alphanumeric))
            && bytes.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    if text.is_empty() {
        return Err(Error::invalid(format!("{kind} is empty")));
    }
    if text.len() > MAX_LEN {
        return Err(Error::invalid(format!("{kind} has {} bytes, more than {MAX_LEN}", text.len())));
    }
    if !separated(text.as_bytes()) {
        return Err(Error::invalid(format!("{kind} {text:?} may only hold letters and digits, with single '.', '_' or '-' between them")));
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Parses a name, or says what is wrong with it (`InvalidArgument`).
            pub fn parse(text: impl Into<String>) -> Result<Self> {
                let text = text.into();
                check($kind, &text)?;
                Ok(Self(text))
            }

            /// The name as it was given.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;
            fn try_from(text: String) -> Result<Self> {
                Self::parse(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// A containerd namespace, `k8s.io` for pods of Kubernetes.
    Namespace,
    "namespace"
);
id!(
    /// A pod.
    SandboxId,
    "sandbox id"
);
id!(
    /// A container of a pod.
    ContainerId,
    "container id"
);
id!(
    /// A further process in a running container.
    ExecId,
    "exec id"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_containerd_makes_are_accepted() {
        for id in ["k8s.io", "a", "0a1b", &"f".repeat(64), "my-pod_1.x"] {
            assert_eq!(SandboxId::parse(id).unwrap().as_str(), id);
        }
    }

    #[test]
    fn names_that_could_leave_a_directory_are_refused() {
        for id in ["", ".", "..", "a/b", "/a", "a..b", "-a", "a-", ".a", "a\0b", "ä", &"f".repeat(77)] {
            assert_eq!(SandboxId::parse(id).unwrap_err().code(), crate::error::Code::InvalidArgument, "{id:?}");
        }
    }
}
