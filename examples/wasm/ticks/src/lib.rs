// SPDX-License-Identifier: Apache-2.0
//! A command of WASI 0.3, whose calls are asynchronous: it writes a line, waits, and writes the
//! next one, while the engine passes on what it has written.

use wasip3::{cli::stdout, clocks::monotonic_clock, exports::cli::run::Guest, wit_stream};

/// In nanoseconds.
const PAUSE: u64 = 100_000_000;

struct Ticks;

wasip3::cli::command::export!(Ticks);

impl Guest for Ticks {
    async fn run() -> Result<(), ()> {
        let (mut lines, reader) = wit_stream::new();
        let written = stdout::write_via_stream(reader);
        for tick in 1..=3 {
            monotonic_clock::wait_for(PAUSE).await;
            let rest = lines.write_all(format!("tick {tick}\n").into_bytes()).await;
            // Nobody reads the rest.
            if !rest.is_empty() {
                break;
            }
        }
        drop(lines);
        written.await.map_err(|error| eprintln!("standard output: {error:?}"))
    }
}
