//! `edgellm`: the library from the command line. Everything here goes through the public Rust API.

mod args;
mod bench;
mod chat;
mod convert;
mod failure;
mod generate;
mod info;
mod interrupt;
mod memory;
mod run;
mod tokenize;

use args::{Cli, Command};
use clap::Parser;
use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let log = env_logger::Env::new().filter_or("LIBEDGELLM_LOG", "error").write_style("LIBEDGELLM_LOG_STYLE");
    env_logger::Builder::from_env(log).init();
    let result = match &cli.command {
        Command::Run(args) => run::run(args),
        Command::Chat(args) => chat::chat(args),
        Command::Info(args) => info::info(args),
        Command::Tokenize(args) => tokenize::tokenize(args),
        Command::Bench(args) => bench::bench(args),
        Command::Convert(args) => convert::convert(args),
    };
    match result {
        Ok(()) | Err(failure::Failure::Quiet) => ExitCode::SUCCESS,
        Err(failure::Failure::Message(message)) => {
            // With stderr gone too there is nobody left to tell; `eprintln!` would panic.
            let _ = writeln!(std::io::stderr(), "edgellm: {message}");
            ExitCode::FAILURE
        }
    }
}
