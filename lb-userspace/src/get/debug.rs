//! `shunt debug`: what developers ask.

use std::io::IsTerminal;

use lb_kernel::programs::load::ProgramFacts;
use lb_kernel::programs::{checks, verifier};

use super::{Row, table};
use crate::args::{DebugArgs, DebugCommand, Output};
use crate::exit::Error;

impl Row for ProgramFacts {
    const TITLES: &'static [&'static str] = &["PROGRAM", "VERIFIED INSNS", "STACK", "JITED", "TRANSLATED"];
    const NARROW: usize = 4;

    fn cells(&self) -> Vec<String> {
        let number = |value: Option<u32>| value.map_or_else(|| "-".to_owned(), |value| value.to_string());
        vec![
            self.program.to_owned(),
            number(self.verified_instructions),
            self.stack_bytes.clone().unwrap_or_else(|| "-".to_owned()),
            self.jited_bytes.to_string(),
            number(self.translated_bytes),
        ]
    }
}

/// Loads every program, attaches none, and writes what the verifier made of each to standard output.
pub fn run(args: &DebugArgs) -> Result<(), Error> {
    let DebugCommand::Verifier { output } = args.command;
    checks::capabilities()?;
    let facts = verifier::report()?;
    if output == Output::Json {
        // Strings and numbers always make JSON.
        super::write(&serde_json::to_string_pretty(&facts).unwrap_or_default());
    } else {
        super::write(&table::render(&facts, output == Output::Wide, std::io::stdout().is_terminal()));
    }
    Ok(())
}
