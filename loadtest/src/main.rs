//! `tidegate-loadtest`: drives a gateway at a fixed rate and judges what it delivers.
//!
//! In: the command line; out: a report and an exit code ([`report::Verdict`]). It knows the protocol and the HTTP API only,
//! never the server's code, so that it cannot cheat.

mod clock;
mod finding;
mod judge;
mod options;
mod pacer;
mod process;
mod wire;

use clap::Parser;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let _cli = options::Cli::parse();
}
