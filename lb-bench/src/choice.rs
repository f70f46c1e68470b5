//! The part of the command line that is the same for every measuring program: which cases.

/// Which cases are measured.
#[derive(Debug, clap::Args)]
pub struct Choice {
    /// Cargo says so
    #[arg(long, hide = true)]
    bench: bool,
    /// Every combination, not the usual ones alone
    #[arg(long)]
    pub all: bool,
    /// Only cases whose name holds one of these
    #[arg(value_name = "PART OF A NAME")]
    only: Vec<String>,
}

impl Choice {
    /// Whether a case of this name is one of them.
    pub fn holds(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Arguments {
        #[command(flatten)]
        choice: Choice,
    }

    #[test]
    fn a_part_of_a_name_is_enough() {
        let of = |words: &[&str]| Arguments::parse_from([&["program", "--bench"], words].concat()).choice;
        assert!(of(&[]).holds("anything") && !of(&[]).all);
        let choice = of(&["--all", "new", "old"]);
        assert!(choice.all && choice.holds("a new flow") && choice.holds("old") && !choice.holds("none"));
    }
}
