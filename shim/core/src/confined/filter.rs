// SPDX-License-Identifier: Apache-2.0
//! System call filters: which calls a process may make, as a program for the kernel (seccomp(2)).

use crate::error::{Error, Result};
use magnetar_sys::bound::FilterInstruction;
use seccompiler::{BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch};
use std::collections::BTreeMap;

/// System calls by their numbers. A call with rules matches if one of them does, and one without
/// always.
pub type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// A filter that allows these calls, and no others. Those fail with ENOSYS, because a program may
/// have a fallback for a missing call.
///
/// # Errors
/// If there is no filter for this architecture.
pub fn allow(rules: Rules) -> Result<Vec<FilterInstruction>> {
    program(rules, SeccompAction::Errno(libc::ENOSYS as u32), SeccompAction::Allow)
}

/// A filter that allows all calls but these, which fail with `error`.
///
/// # Errors
/// If there is no filter for this architecture.
pub fn deny(rules: Rules, error: i32) -> Result<Vec<FilterInstruction>> {
    program(rules, SeccompAction::Allow, SeccompAction::Errno(error as u32))
}

/// A rule that matches a call whose argument number `argument`, from 0, compares so.
///
/// # Errors
/// If there is no such argument.
pub fn when(argument: u8, compared: SeccompCmpOp, value: u64) -> Result<SeccompRule> {
    when_all([(argument, compared, value)])
}

/// A rule that matches a call of which all these are true.
///
/// # Errors
/// If there is no such argument, or none is given.
pub fn when_all(conditions: impl IntoIterator<Item = (u8, SeccompCmpOp, u64)>) -> Result<SeccompRule> {
    let conditions = conditions
        .into_iter()
        .map(|(argument, compared, value)| SeccompCondition::new(argument, SeccompCmpArgLen::Qword, compared, value))
        .collect::<Result<Vec<_>, _>>();
    conditions.and_then(SeccompRule::new).map_err(unusable)
}

fn program(rules: Rules, otherwise: SeccompAction, matched: SeccompAction) -> Result<Vec<FilterInstruction>> {
    let architecture = TargetArch::try_from(std::env::consts::ARCH).map_err(unusable)?;
    let program: BpfProgram = SeccompFilter::new(rules, otherwise, matched, architecture).and_then(TryInto::try_into).map_err(unusable)?;
    let instruction =
        |one: seccompiler::sock_filter| FilterInstruction { code: one.code, jump_true: one.jt, jump_false: one.jf, operand: one.k };
    Ok(program.into_iter().map(instruction).collect())
}

fn unusable(error: impl std::fmt::Display) -> Error {
    Error::internal(format!("cannot make a system call filter: {error}"))
}
