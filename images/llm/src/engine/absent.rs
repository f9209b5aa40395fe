// SPDX-License-Identifier: Apache-2.0
//! What a native build has in place of the host: nothing. Only modules have an engine.

use super::{Context, Engine, Graph, Outcome, Usage};

/// An engine that cannot exist.
#[derive(Debug)]
pub enum Absent {}

impl Engine for Absent {
    fn load(&mut self, _: &str, _: &str) -> Outcome<Graph> {
        match *self {}
    }

    fn begin(&mut self, _: Graph, _: &str) -> Outcome<Context> {
        match *self {}
    }

    fn tell(&mut self, _: Context, _: &str) -> Outcome<()> {
        match *self {}
    }

    fn piece(&mut self, _: Context) -> Outcome<Vec<u8>> {
        match *self {}
    }

    fn whole(&mut self, _: Context) -> Outcome<Vec<u8>> {
        match *self {}
    }

    fn usage(&mut self, _: Context) -> Outcome<Usage> {
        match *self {}
    }

    fn end(&mut self, _: Context) {
        match *self {}
    }
}
