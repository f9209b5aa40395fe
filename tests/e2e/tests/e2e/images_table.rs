// SPDX-License-Identifier: Apache-2.0
//! Images, mounts, working directories, users, programs and exit codes as a table: each case is
//! asked of the handler under test and of containerd's stock handler with runc, in the same node
//! and the same run, and the two outcomes must be equal.
//!
//! ```text
//!   mounts, sources, process, programs, surroundings, commands     the cases, each a name and a container (or a command in one)
//!              │
//!            ask  ── on "runc" ──► outcomes ─┐
//!              └──── on the handler ► outcomes ─┴─► compared; what differs must be in `differences`
//! ```
//!
//! What can be asked is what the CRI can say. A tmpfs, a file mode of a mount, a hook or an rlimit
//! cannot be said there.

mod ask;
mod commands;
mod differences;
mod files;
mod mounts;
mod process;
mod programs;
mod sources;
mod surroundings;

use std::io::Write as _;

use anyhow::{Result, bail, ensure};
use magnetar_e2e::{Case, on_node};

use self::{
    ask::{Answer, Needs, Question},
    differences::{DIFFERENCES, Difference, Kind},
    files::Files,
};

/// containerd's own shim with runc: what every handler is compared with.
const STOCK: &str = "runc";

/// The cases of one part of the table, with their files made.
type Part = fn(&Files) -> Result<Vec<Question>>;

const PARTS: [Part; 6] =
    [mounts::questions, sources::questions, process::questions, programs::questions, surroundings::questions, commands::questions];

#[test]
fn mount_points_are_the_same_as_with_runc() {
    on_node(async |case| compare(case, mounts::questions).await);
}

#[test]
fn mounted_files_and_options_are_the_same_as_with_runc() {
    on_node(async |case| compare(case, sources::questions).await);
}

#[test]
fn directories_users_and_variables_are_the_same_as_with_runc() {
    on_node(async |case| compare(case, process::questions).await);
}

#[test]
fn programs_start_and_exit_as_with_runc() {
    on_node(async |case| compare(case, programs::questions).await);
}

#[test]
fn devices_masked_paths_capabilities_and_limits_are_the_same_as_with_runc() {
    on_node(async |case| compare(case, surroundings::questions).await);
}

#[test]
fn commands_in_a_container_behave_as_with_runc() {
    on_node(async |case| compare(case, commands::questions).await);
}

/// A listed difference of a case that nobody asks about would never be found to be none.
#[test]
fn case_names_are_unique_and_every_listed_difference_names_a_case() -> Result<()> {
    let files = Files::new()?;
    let mut names = Vec::new();
    for part in PARTS {
        names.extend(part(&files)?.into_iter().map(|question| question.name));
    }
    let mut unique = names.clone();
    unique.sort_unstable();
    unique.dedup();
    ensure!(unique.len() == names.len(), "two cases have the same name");
    for name in DIFFERENCES.iter().flat_map(|difference| difference.cases) {
        ensure!(names.contains(name), "there is no case {name:?}");
    }
    Ok(())
}

/// Asks both handlers and fails with everything that differs and is not listed, or is listed and
/// does not differ.
async fn compare(case: &Case, part: Part) -> Result<()> {
    let kind = Kind::of(case);
    let announced = announces_recursive_read_only(case).await?;
    let has = |needs: Needs| match needs {
        Needs::UserNamespace if case.is_vm() => Err("a virtual machine has no user namespace of the node's"),
        Needs::RecursiveReadOnly if !announced => Err("containerd does not announce mounts that are read-only all the way down"),
        Needs::UserNamespace | Needs::RecursiveReadOnly => Ok(()),
    };
    for question in part(&Files::new()?)? {
        if let Some(Err(because)) = question.needs.map(has) {
            writeln!(std::io::stderr(), "skipped images_table: {}: {because}", question.name)?;
        }
    }
    let only = |question: &Question| question.needs.is_none_or(|needs| has(needs).is_ok());
    let stock = asked(case, STOCK, part, only).await?;
    let tested = asked(case, case.handler(), part, only).await?;
    let (mut wrong, mut listed) = (Vec::new(), 0);
    for (stock, tested) in stock.iter().zip(&tested) {
        if !stock.names_its_subject() {
            wrong.push(format!("{}: the case names another subject than runc does: {stock}", stock.name));
        }
        let difference = DIFFERENCES.iter().find(|difference| difference.cases.contains(&stock.name) && difference.kinds.contains(&kind));
        if difference.is_some() {
            listed += 1;
        }
        wrong.extend(judged(stock, tested, difference));
    }
    // Past libtest's capture: whoever reads the output must see how much was compared.
    writeln!(std::io::stderr(), "compared with {STOCK}: {} cases, of which {listed} differ for a listed reason", stock.len())?;
    if wrong.is_empty() { Ok(()) } else { bail!("{} cases:\n{}", wrong.len(), wrong.join("\n")) }
}

async fn asked(case: &Case, handler: &str, part: Part, only: impl Fn(&Question) -> bool) -> Result<Vec<Answer>> {
    let files = Files::new()?;
    let mut questions = part(&files)?;
    questions.retain(only);
    ask::ask(case, handler, &files, questions).await
}

/// Whether a kubelet would ask the handler for mounts that are read-only all the way down.
/// containerd 2.1 announces nothing of a handler with a sandboxer, and ends with a nil pointer when
/// it is asked all the same.
async fn announces_recursive_read_only(case: &Case) -> Result<bool> {
    let handlers = case.node().status().await?.runtime_handlers;
    let handler = handlers.into_iter().find(|handler| handler.name == case.handler());
    Ok(handler.and_then(|handler| handler.features).is_some_and(|features| features.recursive_read_only_mounts))
}

/// What is wrong with two outcomes of one case, if anything is.
fn judged(stock: &Answer, tested: &Answer, difference: Option<&Difference>) -> Option<String> {
    let both = || format!("  runc: {stock}\n  here: {tested}");
    match difference {
        None => (!tested.outcome.is_as(&stock.outcome)).then(|| format!("{}: differs\n{}", stock.name, both())),
        Some(_) if tested.outcome.is_as(&stock.outcome) => {
            Some(format!("{}: is listed and does not differ any more\n{}", stock.name, both()))
        }
        Some(difference) => (!tested.to_string().contains(difference.here))
            .then(|| format!("{}: differs otherwise than listed ({:?})\n{}", stock.name, difference.here, both())),
    }
}
