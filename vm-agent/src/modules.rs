// SPDX-License-Identifier: Apache-2.0
//! Loads kernel modules: those of the boot, and those that the kernel asks for when a process needs
//! their function.
//!
//! For the latter the kernel executes the program that /proc/sys/kernel/modprobe names, as root and
//! outside of all containers. Here that is a link to this program. A container cannot choose what
//! is executed or loaded: its root has neither /modules nor this program, its /proc/sys is
//! read-only, and the kernel makes the alias, of which only those in a list are known. (A
//! privileged container may write to /proc/sys. It can also load modules of its own: it may do
//! anything in the guest, and the boundary is the machine.)
//!
//! A kernel may have everything built in. Then both folders are empty, and the kernel asks for
//! nothing.

use magnetar_core::error::{Context, Error, Result};
use rustix::io::Errno;
use std::ffi::{CString, OsStr};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::ExitCode;

/// The folder of the boot's modules, `NNN-name.ko`, which are loaded in the order of their names.
pub const DIR: &str = "/modules";

/// The folder of all other modules, compressed, with the list of their aliases.
const LATER: &str = "/modules/later";

/// A link to this program, with a name that images do not have. iptables also executes the program
/// that the sysctl names, but in the container, where /init may be another program.
const HELPER: &str = "/modules/load";

/// Names the program that the kernel executes when it needs a module. A kernel without modules
/// lacks this file.
const MODPROBE: &str = "/proc/sys/kernel/modprobe";

/// `MODULE_INIT_COMPRESSED_FILE` of linux/module.h, which rustix has no name for.
const COMPRESSED: i32 = 4;

/// A module to be loaded.
#[derive(Debug, PartialEq, Eq)]
struct Module<'a> {
    file: &'a str,
    parameters: Vec<&'a str>,
}

/// Acts as modprobe if the kernel executed this program as such: `/modules/load -q -- ALIAS`.
pub fn run_if_asked() -> Option<ExitCode> {
    let mut arguments = std::env::args_os();
    if arguments.next().as_deref() != Some(OsStr::new(HELPER)) {
        return None;
    }
    // A message of this process is not read; the kernel logs why it refuses a module.
    let loaded = arguments.nth(2).and_then(|alias| load(alias.to_str()?).ok());
    Some(if loaded.is_some() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Loads the modules of the boot.
///
/// # Errors
/// The kernel's error.
pub fn load_all() -> Result<()> {
    let what = || format!("cannot list {DIR}");
    let mut names =
        fs::read_dir(DIR).and_then(|entries| entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>()).context(what)?;
    names.retain(|name| name.extension() == Some(OsStr::new("ko")));
    names.sort();
    for name in names {
        let file = fs::File::open(&name).context(|| format!("cannot open {}", name.display()))?;
        rustix::system::finit_module(file, c"", 0).context(|| format!("cannot load {}", name.display()))?;
    }
    Ok(())
}

/// Makes this program the kernel's modprobe, unless the kernel has no modules. The kernel looks for
/// it in the root of process 1, where the boot has mounted [`DIR`]. A kernel that looked in its
/// first root would find the same.
///
/// # Errors
/// The kernel's error.
pub fn answer_kernel() -> Result<()> {
    if !Path::new(MODPROBE).exists() {
        return Ok(());
    }
    symlink("/init", HELPER).context(|| format!("cannot make {HELPER}"))?;
    fs::write(MODPROBE, HELPER).context(|| format!("cannot write {HELPER} to {MODPROBE}"))
}

/// Loads the module with this alias and the modules that it needs, unless they are loaded. Does
/// nothing on a kernel without modules.
///
/// # Errors
/// `NotFound` if there is no such module, or the kernel's error.
pub fn load(alias: &str) -> Result<()> {
    if !Path::new(MODPROBE).exists() {
        return Ok(());
    }
    let dir = Path::new(LATER);
    let aliases = fs::read_to_string(dir.join("aliases")).context(|| "cannot read the aliases of modules".into())?;
    let modules = look_up(&aliases, alias);
    if modules.is_empty() {
        return Err(Error::not_found(format!("there is no module {alias:?}")));
    }
    for Module { file, parameters } in modules {
        let what = || format!("cannot load {file}");
        let parameters = CString::new(parameters.join(" ")).map_err(|_| Error::internal(what()))?;
        let module = fs::File::open(dir.join(file)).context(what)?;
        match rustix::system::finit_module(module, &parameters, COMPRESSED) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(error) => return Err(error).context(what),
        }
    }
    Ok(())
}

/// The modules to load for `alias`, in order. Each line of `aliases` has an alias, with `_` for
/// `-`, and then files, each of which may be followed by parameters. An alias can have several
/// lines.
fn look_up<'a>(aliases: &'a str, alias: &str) -> Vec<Module<'a>> {
    let alias = alias.replace('-', "_");
    let mut modules = Vec::<Module<'_>>::new();
    for line in aliases.lines() {
        let mut words = line.split(' ');
        if words.next() != Some(&alias) {
            continue;
        }
        for word in words {
            match modules.last_mut() {
                Some(module) if word.contains('=') => module.parameters.push(word),
                _ => modules.push(Module { file: word, parameters: Vec::new() }),
            }
        }
    }
    modules
}

#[cfg(test)]
mod tests {
    use super::{Module, look_up};

    const ALIASES: &str = "\
bridge stp.ko.xz llc.ko.xz bridge.ko.xz
nft_chain_2_nat nf_nat.ko.xz nft_chain_nat.ko.xz
rtnl_link_bridge stp.ko.xz llc.ko.xz bridge.ko.xz
rtnl_link_dummy dummy.ko.xz numdummies=0
two a.ko.xz x=1 y=2 b.ko.xz
two c.ko.xz
";

    fn files(alias: &str) -> Vec<&'static str> {
        look_up(ALIASES, alias).into_iter().map(|module| module.file).collect()
    }

    #[test]
    fn a_module_comes_after_what_it_needs() {
        assert_eq!(files("bridge"), ["stp.ko.xz", "llc.ko.xz", "bridge.ko.xz"]);
    }

    #[test]
    fn hyphens_and_underscores_in_aliases_are_the_same() {
        assert_eq!(files("rtnl-link-bridge"), files("bridge"));
        assert_eq!(files("nft-chain-2-nat"), ["nf_nat.ko.xz", "nft_chain_nat.ko.xz"]);
    }

    #[test]
    fn parameters_belong_to_the_file_before_them() {
        assert_eq!(look_up(ALIASES, "rtnl-link-dummy"), [Module { file: "dummy.ko.xz", parameters: vec!["numdummies=0"] }]);
    }

    #[test]
    fn all_lines_of_an_alias_count() {
        assert_eq!(
            look_up(ALIASES, "two"),
            [
                Module { file: "a.ko.xz", parameters: vec!["x=1", "y=2"] },
                Module { file: "b.ko.xz", parameters: vec![] },
                Module { file: "c.ko.xz", parameters: vec![] },
            ]
        );
    }

    #[test]
    fn only_whole_aliases_are_known() {
        for alias in ["", "brid", "bridge ", "bridge.ko.xz", "stp.ko.xz", "../bridge", "rtnl_link_", "numdummies=0", "two\n"] {
            assert!(files(alias).is_empty(), "{alias:?}");
        }
    }
}
