// SPDX-License-Identifier: Apache-2.0
//! Every call of the Task API in every state of a container and of an exec: our code is the stock
//! shim's, in the same node.
//!
//! Both are asked on their sockets. What they answer differently is in one list, with reasons; what
//! is in there and does not differ fails as well. In the form of the node whose first process does
//! not reap (`--root-cgroup`) the stock shim is left behind as a zombie, whatever it is asked:
//! there this test fails after its comparison.

mod calls;
mod differences;
mod subjects;

use std::{fmt::Write as _, io::Write as _};

use anyhow::{Context as _, Result, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use magnetar_e2e::{Case, on_magnetar};

use self::{
    calls::Call,
    differences::{DIFFERENCES, NOT_ASKED, breaks_the_stock_shim},
    subjects::{Column, Streams, Subject},
};
use crate::bench::Bench;

const OURS: &str = "what is compared with the stock shim is ours";

/// How many containers of each side are at work at the same time.
const AT_ONCE: u32 = 4;

#[test]
fn every_call_in_every_state_returns_the_stock_shims_code() {
    on_magnetar(OURS, async |case| {
        let (stock, ours) = (Bench::stock(case).await?, Bench::new(case).await?);
        // Either goes on when the other fails: a call that is given up leaves a container half
        // made.
        let (theirs, our) = tokio::join!(answers(case, &stock, Side::Stock), answers(case, &ours, Side::Ours));
        let cells: Vec<_> =
            theirs?.into_iter().zip(our?).map(|((column, call, stock), (_, _, ours))| Cell { column, call, stock, ours }).collect();
        write!(std::io::stderr(), "{}{}", table("container", Column::CONTAINERS, &cells), table("exec", Column::EXECS, &cells))?;
        let faults = faults(case, &cells);
        ours.close(case).await?;
        stock.close(case).await?;
        ensure!(faults.is_empty(), "{faults}");
        Ok(())
    });
}

/// Who is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Side {
    Stock,
    Ours,
}

/// One call in one state.
struct Cell {
    column: Column,
    call: Call,
    stock: String,
    ours: String,
}

/// What one side answers to every call in every column, in the table's order.
async fn answers(case: &Case, bench: &Bench, side: Side) -> Result<Vec<(Column, Call, String)>> {
    let columns = Column::CONTAINERS.iter().chain(Column::EXECS).copied().enumerate();
    let answers = columns.map(|(number, column)| answers_in(case, bench, column, side, number));
    let at_once = usize::try_from(case.at_once(AT_ONCE))?;
    let answers: Vec<_> = stream::iter(answers).buffered(at_once).try_collect().await?;
    Ok(answers.concat())
}

/// The same for one column. A subject that a call has not changed is left to the next call; else
/// that one gets a fresh one.
async fn answers_in(case: &Case, bench: &Bench, column: Column, side: Side, place: usize) -> Result<Vec<(Column, Call, String)>> {
    let (mut answers, mut kept) = (Vec::new(), None::<(Subject, Streams)>);
    for (number, &call) in column.calls().iter().enumerate() {
        if side == Side::Stock && breaks_the_stock_shim(call, column) {
            answers.push((column, call, NOT_ASKED.to_owned()));
            continue;
        }
        let streams = call.streams(column);
        let subject = match kept.take() {
            Some((subject, the_same)) if the_same == streams => subject,
            other => {
                if let Some((old, _)) = other {
                    old.remove(bench).await?;
                }
                Subject::new(bench, column, format!("{side:?}-{place}-{number}").to_lowercase(), streams).await?
            }
        };
        let before = subject.states(bench).await?;
        let answer = call.ask(case, bench, &subject).await;
        // Whoever was killed may not have ended yet.
        let spent = call.kills() && answer == "OK" || subject.states(bench).await? != before;
        answers.push((column, call, answer));
        if spent {
            subject.remove(bench).await.with_context(|| format!("after {call:?} of {}", column.full_name()))?;
        } else {
            kept = Some((subject, streams));
        }
    }
    if let Some((subject, _)) = kept {
        subject.remove(bench).await?;
    }
    Ok(answers)
}

/// Rows are calls, columns are states. A cell has the answer of both, or the stock shim's and ours.
fn table(of: &str, columns: &[Column], cells: &[Cell]) -> String {
    let mut text = format!("\n| {of} |");
    for column in columns {
        let _infallible = write!(text, " {} |", column.name);
    }
    text += "\n| --- |";
    text += &" --- |".repeat(columns.len());
    for call in columns.first().map_or(&[][..], |column| column.calls()) {
        let _infallible = write!(text, "\n| {} |", call.name());
        for column in columns {
            let cell = cells.iter().find(|cell| cell.call == *call && cell.column.full_name() == column.full_name());
            let _infallible = match cell {
                Some(Cell { stock, ours, .. }) if stock == ours => write!(text, " {ours} |"),
                Some(Cell { stock, ours, .. }) => write!(text, " {stock} / {ours} |"),
                None => write!(text, " – |"),
            };
        }
    }
    text + "\n"
}

/// What differs and is not in the list, and what is in the list and does not differ so.
fn faults(case: &Case, cells: &[Cell]) -> String {
    let mut faults = String::new();
    let list: Vec<_> = DIFFERENCES.iter().filter(|difference| difference.concerns(case)).collect();
    for difference in &list {
        for (&call, &column) in difference.calls.iter().flat_map(|call| difference.columns.iter().map(move |column| (call, column))) {
            if !cells.iter().any(|cell| cell.call == call && cell.column.full_name() == column) {
                let _infallible = writeln!(faults, "{}, {column}: is in the list and no cell of the table", call.name());
            }
        }
    }
    for cell in cells {
        let name = cell.column.full_name();
        let listed = list.iter().find(|d| d.calls.contains(&cell.call) && d.columns.contains(&name.as_str()));
        let (call, stock, ours) = (cell.call.name(), &cell.stock, &cell.ours);
        let _infallible = match listed {
            None if stock == ours => Ok(()),
            None => writeln!(faults, "{call}, {name}: the stock shim says {stock}, and ours {ours}"),
            Some(d) if d.stock == stock && d.ours == ours => Ok(()),
            Some(d) => writeln!(faults, "{call}, {name}: {stock} and {ours}, and the list says {} and {} ({})", d.stock, d.ours, d.because),
        };
    }
    faults
}
