// SPDX-License-Identifier: Apache-2.0
//! Limits which devices the processes of a cgroup may use: by the devices controller in version 1,
//! by a BPF program in version 2.
//!
//! The last matching rule decides about an access, as the runtime specification requires
//! (config-linux.md, "Allowed Device list"). A rule that allows matches if it covers the whole
//! access; a rule that denies matches if it covers part of it.

use super::Cgroup;
use crate::error::{Context, Result};
use magnetar_sys::device_filter::{self, Instruction};
use rustix::fs::{Mode, OFlags};
use std::fs;
use std::path::{Path, PathBuf};
use tracing::debug;

/// Making a node: `BPF_DEVCG_ACC_MKNOD` of linux/bpf.h.
pub const MAKE: i32 = 1;
/// Reading: `BPF_DEVCG_ACC_READ`.
pub const READ: i32 = 2;
/// Writing: `BPF_DEVCG_ACC_WRITE`.
pub const WRITE: i32 = 4;
/// All accesses.
pub const ALL: i32 = MAKE | READ | WRITE;
/// A block device: `BPF_DEVCG_DEV_BLOCK`.
pub const BLOCK: i32 = 1;
/// A character device: `BPF_DEVCG_DEV_CHAR`.
pub const CHARACTER: i32 = 2;

/// A rule about devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// The kind of devices; both kinds if `None`.
    pub kind: Option<i32>,
    /// The major number; any if `None`.
    pub major: Option<i32>,
    /// The minor number; any if `None`.
    pub minor: Option<i32>,
    /// The accesses: a sum of [`MAKE`], [`READ`] and [`WRITE`].
    pub access: i32,
    /// Whether they are allowed, or denied.
    pub allow: bool,
}

impl Rule {
    /// Allows a character device.
    pub const fn character(major: i32, minor: Option<i32>) -> Self {
        Self { kind: Some(CHARACTER), major: Some(major), minor, access: ALL, allow: true }
    }

    /// Allows making any node. A node of a device that may not be used is harmless.
    pub const fn any_node(kind: i32) -> Self {
        Self { kind: Some(kind), major: None, minor: None, access: MAKE, allow: true }
    }

    /// Instructions that decide, or continue after the last of them if the rule does not match.
    fn instructions(&self) -> Vec<Instruction> {
        let mut code = Vec::new();
        if let Some(kind) = self.kind {
            code.push(jump_unless_equal(DEVICE, kind));
        }
        if self.access != ALL {
            code.push(copy(SCRATCH, ACCESS));
            if self.allow {
                code.push(and(SCRATCH, ALL & !self.access));
                code.push(jump_unless_equal(SCRATCH, 0));
            } else {
                code.push(and(SCRATCH, self.access));
                code.push(jump_if_equal(SCRATCH, 0));
            }
        }
        code.extend(self.major.map(|major| jump_unless_equal(MAJOR, major)));
        code.extend(self.minor.map(|minor| jump_unless_equal(MINOR, minor)));
        code.extend(decide(self.allow));
        let length = code.len();
        for (index, instruction) in code.iter_mut().enumerate() {
            if matches!(instruction.code, JNE | JEQ) {
                instruction.offset = (length - index - 1) as i16;
            }
        }
        code
    }

    /// The rule in the form of version 1's controller (the kernel's cgroup-v1/devices.rst).
    fn line(&self) -> String {
        let kind = match self.kind {
            Some(BLOCK) => 'b',
            Some(_) => 'c',
            None => 'a',
        };
        let number = |number: Option<i32>| number.map_or_else(|| "*".into(), |number| number.to_string());
        let letters: String =
            [(READ, 'r'), (WRITE, 'w'), (MAKE, 'm')].iter().filter(|(bit, _)| self.access & bit != 0).map(|(_, letter)| letter).collect();
        format!("{kind} {}:{} {letters}", number(self.major), number(self.minor))
    }

    fn decides_all(&self) -> bool {
        (self.kind, self.major, self.minor, self.access) == (None, None, None, ALL)
    }
}

/// Limits the processes of a cgroup, and of the cgroups below it, to the devices that `rules`
/// allow.
///
/// # Errors
/// The kernel's error. Then no process may run in the cgroup.
pub fn confine(cgroup: &Cgroup, rules: &[Rule]) -> Result<()> {
    attach(cgroup, rules, None)
}

/// As [`confine`], for a cgroup that gets more devices later.
///
/// # Errors
/// As [`confine`].
pub fn confine_with_exceptions(cgroup: &Cgroup, rules: &[Rule]) -> Result<Exceptions> {
    let exceptions = match cgroup {
        Cgroup::V2 { .. } => Exceptions::Map(device_filter::Exceptions::new().context(what)?),
        Cgroup::V1 { .. } => Exceptions::Folder(cgroup.controller_dir("devices").map(Path::to_owned)),
    };
    attach(cgroup, rules, Some(&exceptions))?;
    Ok(exceptions)
}

/// The devices that a cgroup may use beyond its rules. They can change at any time.
#[derive(Debug)]
pub enum Exceptions {
    /// The map that the cgroup's program looks into.
    Map(device_filter::Exceptions),
    /// The cgroup's directory in version 1, if the node confines devices.
    Folder(Option<PathBuf>),
}

impl Exceptions {
    /// Allows these accesses to a block device, and no others; none at all with 0.
    ///
    /// # Errors
    /// The kernel's error, such as `EPERM` if the node itself may not use the device.
    pub fn set_block(&self, major: u32, minor: u32, access: i32) -> Result<()> {
        let what = || format!("cannot change what a cgroup may do with the block device {major}:{minor}");
        let rule = |access, allow| Rule { kind: Some(BLOCK), major: Some(major as i32), minor: Some(minor as i32), access, allow };
        match self {
            Self::Map(map) => map.set(BLOCK as u32, major, minor, access as u32).context(what),
            Self::Folder(Some(dir)) => {
                fs::write(dir.join("devices.deny"), rule(ALL, false).line()).context(what)?;
                if access == 0 { Ok(()) } else { fs::write(dir.join("devices.allow"), rule(access, true).line()).context(what) }
            }
            Self::Folder(None) => Ok(()),
        }
    }
}

fn what() -> String {
    "cannot confine a cgroup to its devices".into()
}

fn attach(cgroup: &Cgroup, rules: &[Rule], exceptions: Option<&Exceptions>) -> Result<()> {
    match cgroup {
        Cgroup::V2 { dir } => {
            let dir = rustix::fs::open(dir, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()).context(what)?;
            let mut code = match exceptions {
                Some(Exceptions::Map(map)) => look_up(map.map()),
                Some(Exceptions::Folder(_)) | None => Vec::new(),
            };
            code.extend(program(rules));
            device_filter::attach(&code, &dir).context(what)
        }
        Cgroup::V1 { .. } => {
            // A node without this hierarchy does not confine devices at all.
            let Some(dir) = cgroup.controller_dir("devices") else { return Ok(()) };
            fs::write(dir.join("devices.deny"), "a").context(what)?;
            for rule in rules {
                let file = if rule.allow { "devices.allow" } else { "devices.deny" };
                match fs::write(dir.join(file), rule.line()) {
                    // The node itself may not use the device.
                    Err(error) if rule.allow && error.kind() == std::io::ErrorKind::PermissionDenied => {
                        debug!(rule = rule.line(), "skipped a rule for a device that the node may not use");
                    }
                    written => written.context(what)?,
                }
            }
            Ok(())
        }
    }
}

/// The kernel passes the address of `struct bpf_cgroup_dev_ctx` in register 1, and reads the answer
/// from register 0.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const DEVICE: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;
/// Calls leave this register and those after it as they are.
const SAVED: u8 = 9;
const STACK: u8 = 10;

/// Operations (linux/bpf_common.h, linux/bpf.h).
const LOAD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const COPY: u8 = 0xbc;
const JNE: u8 = 0x55;
const JEQ: u8 = 0x15;
const SET: u8 = 0xb7;
const EXIT: u8 = 0x95;
const STORE: u8 = 0x63;
const COPY_POINTER: u8 = 0xbf;
const ADD_TO_POINTER: u8 = 0x07;
const LOAD_MAP: u8 = 0x18;
const CALL: u8 = 0x85;
const XOR: u8 = 0xa4;
const AND_REGISTER: u8 = 0x5c;

/// `BPF_PSEUDO_MAP_FD`: the constant is a map's descriptor.
const OF_A_MAP: u8 = 1;
/// `BPF_FUNC_map_lookup_elem`: of the map in register 1, the address of the value for the key at
/// the address in register 2.
const LOOK_UP: i32 = 1;

/// The program that decides by these rules. Without rules it allows nothing.
pub fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        load(DEVICE, CONTEXT, 0),
        and(DEVICE, 0xffff),
        load(ACCESS, CONTEXT, 0),
        shift_to_access(),
        load(MAJOR, CONTEXT, 4),
        load(MINOR, CONTEXT, 8),
    ];
    for rule in rules.iter().rev() {
        code.extend(rule.instructions());
        if rule.decides_all() {
            // The verifier rejects unreachable instructions.
            return code;
        }
    }
    code.extend(decide(false));
    code
}

/// Instructions that allow what a map allows, and continue after the last of them otherwise. The
/// map's keys are the kind of device, its major and its minor number.
fn look_up(map: i32) -> Vec<Instruction> {
    let simple = |code, registers, offset, immediate| Instruction { code, registers, offset, immediate };
    let store = |register: u8, offset| simple(STORE, STACK | register << 4, offset, 0);
    let [set, exit] = decide(true);
    let mut code = vec![
        simple(COPY_POINTER, SAVED | CONTEXT << 4, 0, 0),
        load(DEVICE, CONTEXT, 0),
        and(DEVICE, 0xffff),
        store(DEVICE, -12),
        load(MAJOR, CONTEXT, 4),
        store(MAJOR, -8),
        load(MINOR, CONTEXT, 8),
        store(MINOR, -4),
        // The second argument is in the register that is otherwise the device's.
        simple(COPY_POINTER, DEVICE | STACK << 4, 0, 0),
        simple(ADD_TO_POINTER, DEVICE, 0, -12),
        simple(LOAD_MAP, CONTEXT | OF_A_MAP << 4, 0, map),
        simple(0, 0, 0, 0),
        simple(CALL, 0, 0, LOOK_UP),
    ];
    let allowed = [
        load(ACCESS, SAVED, 0),
        shift_to_access(),
        load(ANSWER, ANSWER, 0),
        // What is not allowed.
        simple(XOR, ANSWER, 0, ALL),
        simple(AND_REGISTER, ACCESS | ANSWER << 4, 0, 0),
        Instruction { offset: 2, ..jump_unless_equal(ACCESS, 0) },
        set,
        exit,
    ];
    code.push(Instruction { offset: allowed.len() as i16, ..jump_if_equal(ANSWER, 0) });
    code.extend(allowed);
    code.push(simple(COPY_POINTER, CONTEXT | SAVED << 4, 0, 0));
    code
}

fn load(register: u8, from: u8, offset: i16) -> Instruction {
    Instruction { code: LOAD, registers: register | from << 4, offset, immediate: 0 }
}

/// The accesses are in the upper half of the word that has the kind of device in its lower half.
fn shift_to_access() -> Instruction {
    Instruction { code: SHIFT_RIGHT, registers: ACCESS, offset: 0, immediate: 16 }
}

fn decide(allow: bool) -> [Instruction; 2] {
    let set = Instruction { code: SET, registers: ANSWER, offset: 0, immediate: allow.into() };
    [set, Instruction { code: EXIT, registers: 0, offset: 0, immediate: 0 }]
}

fn and(register: u8, immediate: i32) -> Instruction {
    Instruction { code: AND, registers: register, offset: 0, immediate }
}

fn copy(to: u8, from: u8) -> Instruction {
    Instruction { code: COPY, registers: to | from << 4, offset: 0, immediate: 0 }
}

fn jump_unless_equal(register: u8, immediate: i32) -> Instruction {
    Instruction { code: JNE, registers: register, offset: 0, immediate }
}

fn jump_if_equal(register: u8, immediate: i32) -> Instruction {
    Instruction { code: JEQ, registers: register, offset: 0, immediate }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Runs the program as the kernel would.
    pub fn run(program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        run_with(&[], program, kind, access, major, minor)
    }

    /// The same, with a map of devices and what is allowed of them.
    fn run_with(map: &[([i32; 3], i32)], program: &[Instruction], kind: i32, access: i32, major: i32, minor: i32) -> bool {
        // What pointers lead to, by numbers that stand for them.
        const FOUND: i32 = 100;
        const END_OF_STACK: i32 = 200;
        let context = [access << 16 | kind, major, minor];
        let (mut registers, mut stack, mut found) = ([0i32; 11], [0i32; 3], 0);
        registers[STACK as usize] = END_OF_STACK;
        let mut at = 0;
        loop {
            let Instruction { code, registers: both, offset, immediate } = program[at];
            let (to, from) = ((both & 15) as usize, (both >> 4) as usize);
            at += 1;
            match code {
                LOAD if registers[from] == FOUND => registers[to] = found,
                LOAD => registers[to] = context[offset as usize / 4],
                STORE => stack[((12 + offset) / 4) as usize] = registers[from],
                ADD_TO_POINTER => registers[to] += immediate,
                LOAD_MAP => at += 1,
                CALL => {
                    assert_eq!(registers[DEVICE as usize], END_OF_STACK - 12, "the key");
                    let entry = map.iter().find(|(key, _)| *key == stack);
                    found = entry.map_or(0, |(_, allowed)| *allowed);
                    // The kernel keeps none of the registers that carry arguments.
                    registers[..6].fill(-1);
                    registers[0] = if entry.is_some() { FOUND } else { 0 };
                }
                XOR => registers[to] ^= immediate,
                AND_REGISTER => registers[to] &= registers[from],
                AND => registers[to] &= immediate,
                SHIFT_RIGHT => registers[to] >>= immediate,
                COPY | COPY_POINTER => registers[to] = registers[from],
                SET => registers[to] = immediate,
                JNE if registers[to] != immediate => at += offset as usize,
                JEQ if registers[to] == immediate => at += offset as usize,
                JNE | JEQ => {}
                EXIT => return registers[0] == 1,
                other => panic!("unknown operation {other}"),
            }
        }
    }

    #[test]
    fn the_last_rule_decides() {
        let all = Rule { kind: None, major: None, minor: None, access: ALL, allow: true };
        let program = program(&[all, Rule { kind: Some(BLOCK), access: WRITE, allow: false, ..all }]);
        assert!(run(&program, BLOCK, READ, 8, 0));
        assert!(!run(&program, BLOCK, READ | WRITE, 8, 0), "part of it is denied");
        assert!(run(&program, CHARACTER, WRITE, 8, 0));
    }

    #[test]
    fn a_map_allows_devices_beyond_the_rules() {
        let mut code = look_up(5);
        code.extend(program(&[Rule::character(1, Some(3))]));
        let run = |kind, access, minor| run_with(&[([BLOCK, 7, 0], READ), ([BLOCK, 7, 1], READ | WRITE)], &code, kind, access, 7, minor);
        assert!(run(BLOCK, READ, 0) && run(BLOCK, WRITE, 1) && run(BLOCK, READ | WRITE, 1));
        assert!(!run(BLOCK, WRITE, 0) && !run(BLOCK, READ | WRITE, 0), "it may only be read");
        assert!(!run(BLOCK, MAKE, 1), "nobody has allowed that");
        assert!(!run(BLOCK, READ, 2) && !run(CHARACTER, READ, 0), "another device");
        assert!(run_with(&[([CHARACTER, 1, 3], 0)], &code, CHARACTER, READ, 1, 3), "the rules decide about the rest");
    }

    #[test]
    fn without_rules_nothing_is_allowed() {
        assert!(!run(&program(&[]), CHARACTER, READ, 1, 3));
    }

    #[test]
    fn rules_are_formatted_for_version_1() {
        assert_eq!(Rule::character(10, Some(232)).line(), "c 10:232 rwm");
        assert_eq!(Rule::any_node(BLOCK).line(), "b *:* m");
        assert_eq!(Rule { kind: None, major: None, minor: None, access: READ | WRITE, allow: false }.line(), "a *:* rw");
    }
}
