// SPDX-License-Identifier: Apache-2.0
//! An engine for tests, which answers by what the prompt asks for in words of its own.
//!
//! `pieces:a|b|c` is answered in those pieces, `count:N` with so many numbers, `slow:N` likewise
//! with a pause before each; `long` is too long, `full` fills the context, `fail` fails. Anything
//! else is sent back, byte by byte.

use super::{Context, Engine, Failure, Graph, Outcome, Usage};
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What was seen by the engine, for the tests to look at.
#[derive(Debug, Default)]
pub struct Seen {
    /// What models were loaded with.
    pub loaded: Vec<(String, String)>,
    /// The metadata and the prompt of each computation.
    pub begun: Vec<(String, String)>,
    /// How many computations are under way, and the most that ever were.
    pub active: (usize, usize),
}

/// The engine.
#[derive(Default)]
pub struct Fake {
    seen: Arc<Mutex<Seen>>,
    next: u32,
    contexts: BTreeMap<u32, Answer>,
}

struct Answer {
    prompt: String,
    pieces: VecDeque<Vec<u8>>,
    end: Failure,
    slow: bool,
    given: u64,
    most: u64,
    /// Whether the next piece has not come yet, which only those hear that do not wait.
    is_late: bool,
    waits: bool,
}

impl Fake {
    /// An engine, and what it sees.
    pub fn new() -> (Self, Arc<Mutex<Seen>>) {
        let fake = Self::default();
        let seen = fake.seen.clone();
        (fake, seen)
    }
}

impl Engine for Fake {
    fn load(&mut self, alias: &str, metadata: &str) -> Outcome<Graph> {
        self.seen.lock().unwrap().loaded.push((alias.into(), metadata.into()));
        if alias == "missing" { Err(Failure::NotFound) } else { Ok(Graph(self.seen.lock().unwrap().loaded.len() as u32)) }
    }

    fn begin(&mut self, _: Graph, prompt: &str) -> Outcome<Context> {
        {
            let mut seen = self.seen.lock().unwrap();
            seen.begun.push((String::new(), prompt.into()));
            seen.active.0 += 1;
            seen.active.1 = seen.active.1.max(seen.active.0);
        }
        // The last word of a conversation decides.
        let asked = prompt.split("<|im_end|>").filter_map(|turn| turn.split_once("user\n")).last().map_or(prompt, |(_, asked)| asked);
        let numbers = |count: &str| (0..count.parse().unwrap_or(0)).map(|n: u32| format!("{n} ").into_bytes()).collect();
        let (mut end, mut slow) = (Failure::EndOfSequence, false);
        let pieces: VecDeque<Vec<u8>> = match asked.split_once(':') {
            Some(("pieces", pieces)) => pieces.split('|').map(|piece| piece.as_bytes().to_vec()).collect(),
            Some(("count", count)) => numbers(count),
            Some(("slow", count)) => {
                slow = true;
                numbers(count)
            }
            Some(("large", count)) => vec![vec![b'x'; 1000]; count.parse().unwrap_or(0)].into(),
            _ => {
                end = match asked {
                    "long" => Failure::PromptTooLong,
                    "full" => Failure::ContextFull,
                    "fail" => Failure::Other(5),
                    _ => end,
                };
                match end {
                    Failure::EndOfSequence => asked.bytes().map(|byte| vec![byte]).collect(),
                    Failure::ContextFull => vec![b"so far".to_vec()].into(),
                    _ => VecDeque::new(),
                }
            }
        };
        self.next += 1;
        let answer = Answer { prompt: prompt.into(), pieces, end, slow, given: 0, most: u64::MAX, is_late: true, waits: true };
        self.contexts.insert(self.next, answer);
        Ok(Context(self.next))
    }

    fn tell(&mut self, context: Context, metadata: &str) -> Outcome<()> {
        let answer = self.contexts.get_mut(&context.0).ok_or(Failure::InvalidArgument)?;
        let mut seen = self.seen.lock().unwrap();
        if let Some(begun) = seen.begun.iter_mut().rev().find(|begun| begun.1 == answer.prompt) {
            begun.0 = metadata.into();
        }
        let told: serde_json::Value = serde_json::from_str(metadata).unwrap_or_default();
        answer.most = told["n-predict"].as_u64().unwrap_or(u64::MAX);
        answer.waits = told["non-blocking"] != true;
        Ok(())
    }

    fn piece(&mut self, context: Context) -> Outcome<Vec<u8>> {
        let answer = self.contexts.get_mut(&context.0).ok_or(Failure::InvalidArgument)?;
        answer.is_late ^= true;
        if !answer.waits && !answer.is_late {
            return Err(Failure::Busy);
        }
        if answer.slow {
            std::thread::sleep(Duration::from_millis(5));
        }
        if answer.given == answer.most {
            return Err(Failure::EndOfSequence);
        }
        let piece = answer.pieces.pop_front().ok_or(answer.end)?;
        answer.given += 1;
        Ok(piece)
    }

    fn whole(&mut self, context: Context) -> Outcome<Vec<u8>> {
        let answer = self.contexts.get(&context.0).ok_or(Failure::InvalidArgument)?;
        let length = answer.prompt.len() as f64;
        Ok(serde_json::json!({"n_embedding": 3, "embedding": [length, 0.5, -1]}).to_string().into_bytes())
    }

    fn usage(&mut self, context: Context) -> Outcome<Usage> {
        let answer = self.contexts.get(&context.0).ok_or(Failure::InvalidArgument)?;
        Ok(Usage { input: answer.prompt.split_whitespace().count() as u64, output: answer.given })
    }

    fn end(&mut self, context: Context) {
        if self.contexts.remove(&context.0).is_some() {
            self.seen.lock().unwrap().active.0 -= 1;
        }
    }
}
