// SPDX-License-Identifier: Apache-2.0
//! A command: it says hello to those whom its arguments name, and then prints the file that the
//! variable FILE names. Nothing in it is about WebAssembly.

use std::{env, fs, process::ExitCode};

fn main() -> ExitCode {
    for name in env::args().skip(1) {
        println!("hello {name}");
    }
    let Ok(file) = env::var("FILE") else {
        return ExitCode::SUCCESS;
    };
    match fs::read_to_string(&file) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("{file}: {error}");
            ExitCode::FAILURE
        }
    }
}
