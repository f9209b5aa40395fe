// SPDX-License-Identifier: Apache-2.0
//! The world of a component: what it is run as, known from what it exports.

use wasmtime::component::Component;

/// A version of WASI.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// 0.2.
    V2,
    /// 0.3.
    V3,
}

/// The worlds that are run here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum World {
    /// `wasi:cli/command`: it runs, and ends.
    Command(Version),
    /// `wasi:http/proxy` of 0.2, `wasi:http/service` of 0.3: it answers HTTP requests.
    Http(Version),
}

/// What a component of each world exports (`wasi:cli` and `wasi:http`, the files command.wit,
/// proxy.wit and worlds.wit). The last number of the version follows. A component that serves HTTP
/// may be a command as well.
const EXPORTS: [(&str, World); 4] = [
    ("wasi:http/handler@0.3.", World::Http(Version::V3)),
    ("wasi:http/incoming-handler@0.2.", World::Http(Version::V2)),
    ("wasi:cli/run@0.3.", World::Command(Version::V3)),
    ("wasi:cli/run@0.2.", World::Command(Version::V2)),
];

impl World {
    /// The world of a component.
    ///
    /// # Errors
    /// If it is none of these. The error names what is missing.
    pub fn of(component: &Component) -> wasmtime::Result<Self> {
        let exports = component.component_type();
        let exports: Vec<_> = exports.exports(component.engine()).map(|(name, _)| name).collect();
        Self::that_exports(&exports).map_err(wasmtime::Error::msg)
    }

    fn that_exports(exports: &[&str]) -> Result<Self, String> {
        let found = EXPORTS.into_iter().find(|(wanted, _)| exports.iter().any(|name| name.starts_with(wanted)));
        found.map(|(_, world)| world).ok_or_else(|| {
            let wanted = EXPORTS.map(|(wanted, _)| format!("{wanted}x"));
            let has = if exports.is_empty() { "nothing".into() } else { exports.join(", ") };
            format!("it is a component of no world that is run here: it exports {has}, and one of {} is wanted", wanted.join(", "))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_what_it_exports() {
        let world = |exports: &[&str]| World::that_exports(exports);
        assert_eq!(world(&["wasi:cli/run@0.2.12"]), Ok(World::Command(Version::V2)));
        assert_eq!(world(&["x", "wasi:cli/run@0.3.0"]), Ok(World::Command(Version::V3)));
        assert_eq!(world(&["wasi:cli/run@0.2.0", "wasi:http/incoming-handler@0.2.3"]), Ok(World::Http(Version::V2)));
        assert_eq!(world(&["wasi:http/handler@0.3.0"]), Ok(World::Http(Version::V3)));
        for other in [&["wasi:cli/run@0.20.0", "wasi:cli/run"], ["wasi:http/handler@0.4.0", "run"].as_slice()] {
            let error = world(other).unwrap_err();
            assert!(error.contains(other[0]) && error.contains("one of wasi:http/handler@0.3.x, "), "{error}");
        }
        assert!(world(&[]).unwrap_err().contains("it exports nothing"));
    }
}
