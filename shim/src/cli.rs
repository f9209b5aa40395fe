// SPDX-License-Identifier: Apache-2.0
//! Parses the command line: subcommands for people, Go-style flags for containerd.
//!
//! containerd calls every shim the same way: flags with one dash, in the syntax of Go's package
//! `flag`, then `start` or `delete`. A command line that begins with one of our subcommands comes
//! from a person.

use crate::options::CONFIG_DIR;
use crate::shim_protocol::{Action, Call};
use anyhow::{anyhow, bail};
use clap::{Args, Parser, Subcommand};
use magnetar_core::record::DEFAULT_STATE_DIR;
use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

/// The socket at which containerd's proxy plugin expects `serve`;
/// `shim/etc/containerd/conf.d/magnetar.toml` names it.
pub const DEFAULT_LISTEN: &str = "/run/magnetar/serve.sock";

/// What the command line asks for.
#[derive(Debug)]
pub enum Invocation {
    /// A subcommand.
    People(People),
    /// The shim protocol.
    Containerd(Call),
    /// The text of the help or the version, to be printed.
    Text(String),
}

/// A shim of containerd 2.x for many kinds of sandbox.
#[derive(Debug, Parser)]
#[command(name = "containerd-shim-magnetar-v2", version, about, after_help = AFTER_HELP, disable_help_subcommand = true)]
struct PeopleArgs {
    #[command(subcommand)]
    command: People,
}

const AFTER_HELP: &str = "containerd itself calls this program with `-namespace NS -id ID … start` (or `delete`), `-info` and `-v`.";

/// The subcommands.
#[derive(Debug, Subcommand)]
pub enum People {
    /// Serve containerd's sandbox Controller (the proxy plugin "magnetar") until SIGTERM; pods live
    /// on
    Serve(Serve),
    /// Say what this host has for each kind of sandbox, and what is missing
    Check {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
        /// Look for sandboxers in this folder too
        #[arg(long, value_name = "DIR")]
        libexec: Option<PathBuf>,
    },
    /// Show the pods of this node: kind, age, memory; also while containerd or `serve` is down
    Pods {
        /// Print JSON instead of a table
        #[arg(long)]
        json: bool,
        /// Where the records of pods are kept
        #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
        state_dir: PathBuf,
    },
}

/// The options of `serve`.
#[derive(Debug, Clone, Args)]
pub struct Serve {
    /// The Unix socket to listen on
    #[arg(long, value_name = "PATH", default_value = DEFAULT_LISTEN)]
    pub listen: PathBuf,
    /// Where the records of pods are kept
    #[arg(long, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub state_dir: PathBuf,
    /// Where the options of runtime handlers are: `<kind>.toml` for the handler `magnetar-<kind>`
    #[arg(long, value_name = "DIR", default_value = CONFIG_DIR)]
    pub config_dir: PathBuf,
    /// Look for sandboxers in this folder too
    #[arg(long, value_name = "DIR")]
    pub libexec: Option<PathBuf>,
    /// Log each call
    #[arg(long)]
    pub debug: bool,
}

/// Parses a command line.
///
/// # Errors
/// What is wrong with it, as a message for the user.
pub fn parse(arguments: Vec<OsString>) -> anyhow::Result<Invocation> {
    let ours =
        |first: &OsString| ["serve", "check", "pods", "help", "-h", "-help", "--help", "-V", "--version"].iter().any(|word| first == word);
    match arguments.first() {
        Some(first) if !ours(first) => parse_go(arguments),
        Some(first) if first == "-help" || first == "help" => people(vec!["--help".into()]),
        Some(_) => people(arguments),
        None => people(vec!["--help".into()]),
    }
}

/// Prints a text. A reader that closes the pipe early is no error.
pub fn print(text: &str) -> anyhow::Result<ExitCode> {
    let _reader_left = std::io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

fn people(mut arguments: Vec<OsString>) -> anyhow::Result<Invocation> {
    arguments.insert(0, "containerd-shim-magnetar-v2".into());
    match PeopleArgs::try_parse_from(arguments) {
        Ok(parsed) => Ok(Invocation::People(parsed.command)),
        Err(error) if !error.use_stderr() => Ok(Invocation::Text(error.render().to_string())),
        Err(error) => bail!("{}", error.render().to_string().trim_start_matches("error: ").trim_end()),
    }
}

/// Parses the flags that containerd gives its shims (`pkg/shim/shim.go`).
fn parse_go(arguments: Vec<OsString>) -> anyhow::Result<Invocation> {
    let mut call = Call::default();
    let mut version = false;
    let mut info = false;
    let mut rest = arguments.into_iter();
    let mut action = None;
    while let Some(argument) = rest.next() {
        let text = argument.into_string().map_err(|raw| anyhow!("argument {raw:?} is not valid UTF-8"))?;
        let Some(flag) = text.strip_prefix("--").or_else(|| text.strip_prefix('-')).filter(|flag| !flag.is_empty()) else {
            action = Some(text);
            break;
        };
        let (name, inline) = match flag.split_once('=') {
            Some((name, value)) => (name, Some(value.to_string())),
            None => (flag, None),
        };
        let switch = match name {
            "v" | "version" => Some(&mut version),
            "info" => Some(&mut info),
            "debug" => Some(&mut call.debug),
            _ => None,
        };
        if let Some(switch) = switch {
            *switch = match inline.as_deref() {
                None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => true,
                Some("false" | "0" | "f" | "F" | "FALSE" | "False") => false,
                Some(value) => bail!("flag -{name}: {value:?} is neither true nor false"),
            };
            continue;
        }
        let mut ignored = String::new();
        let place = match name {
            "namespace" => &mut call.namespace,
            "id" => &mut call.id,
            "bundle" => &mut call.bundle,
            "address" => &mut call.grpc_address,
            "state-dir" => &mut call.state_dir,
            "config-dir" => &mut call.config_dir,
            "libexec" => &mut call.libexec,
            // containerd may pass these. They are not needed: the pod's socket has a fixed place,
            // and events are not sent through a program.
            "publish-binary" | "socket" | "debug-socket" => &mut ignored,
            _ => bail!("unknown flag or command {text:?}; --help lists all"),
        };
        *place = match inline {
            Some(value) => value,
            None => rest
                .next()
                .ok_or_else(|| anyhow!("flag -{name} needs a value"))?
                .into_string()
                .map_err(|raw| anyhow!("flag -{name}: {raw:?} is not valid UTF-8"))?,
        };
    }
    call.action = match (version, info, action.as_deref()) {
        (true, _, _) => Action::Version,
        (false, true, _) => Action::Info,
        (false, false, Some("start")) => Action::Start,
        (false, false, Some("delete")) => Action::Delete,
        (false, false, Some(other)) => bail!("unknown command {other:?}; --help lists all"),
        (false, false, None) => bail!("no command: containerd calls a shim with `start` or `delete`; --help lists ours"),
    };
    Ok(Invocation::Containerd(call))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> anyhow::Result<Invocation> {
        parse(line.split_whitespace().map(OsString::from).collect())
    }

    fn call(line: &str) -> Call {
        match parsed(line).unwrap() {
            Invocation::Containerd(call) => call,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_start_call_of_containerd_2_1_is_parsed() {
        let call =
            call("-namespace k8s.io -address /run/containerd/containerd.sock -publish-binary /usr/bin/containerd -id abc -debug start");
        assert_eq!(call.action, Action::Start);
        assert_eq!((call.namespace.as_str(), call.id.as_str(), call.debug), ("k8s.io", "abc", true));
        assert_eq!(call.grpc_address, "/run/containerd/containerd.sock");
    }

    #[test]
    fn the_delete_call_names_the_bundle() {
        let call = call("-namespace k8s.io -address a -publish-binary b -id abc -bundle /run/b/abc delete");
        assert_eq!((call.action, call.bundle.as_str()), (Action::Delete, "/run/b/abc"));
    }

    #[test]
    fn two_dashes_and_equals_signs_are_accepted() {
        let call = call("--namespace=n -id=a=b -debug=false delete");
        assert_eq!((call.namespace.as_str(), call.id.as_str(), call.debug), ("n", "a=b", false));
    }

    #[test]
    fn info_and_version_flags_are_commands() {
        assert_eq!(call("-v").action, Action::Version);
        assert_eq!(call("-info").action, Action::Info);
        assert_eq!(call("-version -namespace x start").action, Action::Version);
    }

    #[test]
    fn an_error_names_the_wrong_argument() {
        for (line, word) in [
            ("-nonsense x start", "nonsense"),
            ("-id", "-id"),
            ("-id a explode", "explode"),
            ("-id a", "no command"),
            ("explode", "explode"),
            ("-debug=maybe start", "maybe"),
            ("serve --lisen x", "--lisen"),
        ] {
            let error = parsed(line).unwrap_err().to_string();
            assert!(error.contains(word), "{line}: {error}");
        }
    }

    #[test]
    fn people_get_subcommands_and_help() {
        match parsed("serve").unwrap() {
            Invocation::People(People::Serve(serve)) => {
                assert_eq!(serve.listen, PathBuf::from("/run/magnetar/serve.sock"));
                assert_eq!(serve.state_dir, PathBuf::from("/run/magnetar"));
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(parsed("check --json").unwrap(), Invocation::People(People::Check { json: true, .. })));
        for line in ["", "--help", "-h", "help", "serve --help"] {
            assert!(matches!(parsed(line).unwrap(), Invocation::Text(text) if text.contains("Usage")), "{line:?}");
        }
        assert!(matches!(parsed("--version").unwrap(), Invocation::Text(_)));
    }
}
