// SPDX-License-Identifier: Apache-2.0
//! The part of Cloud Hypervisor's command line that magnetar-vmm uses. Anything else is an error,
//! so a new option is not overlooked.

use std::path::{Path, PathBuf};

/// The command line.
#[derive(Debug, Default)]
pub struct Options {
    /// The listening socket of the API: a descriptor.
    pub api: u32,
    /// The FIFO for events: a descriptor.
    pub events: u32,
    /// The number of processors.
    pub cpus: String,
    /// The memory, with its unit.
    pub memory: String,
    pub kernel: String,
    pub initramfs: String,
    /// The kernel's command line.
    pub parameters: String,
    /// The tag and the socket of the shared files.
    pub share: Option<(String, String)>,
    /// The guest's CID, and the socket for the host.
    pub vsock: Option<(String, String)>,
    /// The descriptor and the hardware address of each network interface.
    pub nics: Vec<(String, String)>,
}

impl Options {
    /// The path of a socket on which QEMU takes orders, in the directory where this program may
    /// make one.
    pub fn monitor(&self, name: &str) -> std::io::Result<PathBuf> {
        let vsock = self.vsock.as_ref().ok_or(std::io::Error::other("there is no --vsock, in whose directory sockets are"))?;
        Ok(Path::new(&vsock.1).with_file_name(name))
    }

    pub fn parse(words: impl Iterator<Item = String>) -> Result<Self, String> {
        let mut words = words.flat_map(|word| match word.split_once('=') {
            // `--option=value` is `--option value`.
            Some((option, value)) if option.starts_with("--") => vec![option.to_owned(), value.to_owned()],
            _ => vec![word],
        });
        let mut options = Self::default();
        let mut option = String::new();
        while let Some(word) = words.next() {
            let value = match word.starts_with("--") {
                true => {
                    option = word;
                    // A flag, and an option with any number of values.
                    if option == "--landlock" || option == "--net" {
                        continue;
                    }
                    words.next().ok_or(format!("{option} has no value"))?
                }
                false if option == "--net" => word,
                false => return Err(format!("{word} is no option")),
            };
            let part = |key: &str| part(&value, key).ok_or(format!("{option} {value}: no {key}"));
            match option.as_str() {
                "--api-socket" => options.api = number(&part("fd")?)?,
                "--event-monitor" => options.events = number(&part("fd")?)?,
                "--cpus" => options.cpus = part("boot")?,
                "--memory" => options.memory = part("size")?,
                "--kernel" => options.kernel = value,
                "--initramfs" => options.initramfs = value,
                "--cmdline" => options.parameters = value,
                "--fs" => options.share = Some((part("tag")?, part("socket")?)),
                "--vsock" => options.vsock = Some((part("cid")?, part("socket")?)),
                "--net" => options.nics.push((part("fd")?.trim_matches(['[', ']']).to_owned(), part("mac")?)),
                "--seccomp" | "--landlock-rules" | "--serial" | "--console" | "--rng" | "--balloon" => {}
                _ => return Err(format!("the option {option} is unknown")),
            }
        }
        Ok(options)
    }
}

/// The value of a key in `key=value,key=value`.
fn part(list: &str, key: &str) -> Option<String> {
    list.split(',').filter_map(|pair| pair.split_once('=')).find(|(name, _)| *name == key).map(|(_, value)| value.to_owned())
}

fn number(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}
