//! What the verifier makes of each program on each kernel, as tables to read and as the committed file that changes are
//! held against.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use comfy_table::{CellAlignment, Table, presets};
use miette::{IntoDiagnostic, Result, WrapErr, miette};

use super::kernel::Wanted;
use crate::architecture::Architecture;
use crate::build::{MOST_VERIFIED_INSTRUCTIONS, Program};

/// The committed file.
pub const FILE: &str = "docs/kernels.md";
/// How its table begins; the compiler follows.
const HEADER: &str = "| program, by ";
/// By so much a figure may differ from the committed one.
const TOLERANCE_PERCENT: u64 = 10;

/// What the verifier tells of a program.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figure {
    /// Instructions that it walked through.
    pub instructions: u64,
    /// Bytes of the largest stack that it tells of.
    pub stack: u64,
}

/// The programs of one kernel in the order they are told.
pub type Column = Vec<(String, Figure)>;

/// Reads what `shunt debug verifier --output json` printed. An error if a program is too much for the verifier.
pub fn column(json: &str) -> Result<Column> {
    let programs: Vec<Program> = serde_json::from_str(json)
        .into_diagnostic()
        .wrap_err_with(|| format!("`shunt debug verifier --output json` says:\n{json}"))?;
    let figure = |program: &Program| {
        let stacks = program.stack_bytes.as_deref().unwrap_or_default();
        let stacks = stacks.split(|c: char| !c.is_ascii_digit()).filter_map(|bytes| bytes.parse().ok());
        Figure {
            instructions: program.verified_instructions.unwrap_or_default().into(),
            stack: stacks.max().unwrap_or_default(),
        }
    };
    let column: Column = programs.iter().map(|it| (it.program.clone(), figure(it))).collect();
    let most = u64::from(MOST_VERIFIED_INSTRUCTIONS);
    let too_long: Vec<_> =
        column.iter().filter(|(_, it)| it.instructions > most).map(|(name, _)| name.as_str()).collect();
    match (column.is_empty(), too_long.as_slice()) {
        (true, _) => Err(miette!("`shunt debug verifier` names no program")),
        (false, []) => Ok(column),
        (false, names) => Err(miette!(
            "more than {most} verified instructions: {}. Split the program, or bound its loops more tightly",
            names.join(", ")
        )),
    }
}

/// The figures of several kernels.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Figures {
    /// What compiled the programs.
    pub compiler: String,
    /// A kernel, as [`name`] has it, and its programs.
    pub columns: Vec<(String, Column)>,
}

/// A kernel as it is asked for, and Debian's version of it.
pub fn name(kernel: &str, version: &str) -> String {
    format!("{kernel} ({version})")
}

/// The kernel as it is asked for.
fn series(name: &str) -> &str {
    name.split_once(" (").map_or(name, |(series, _)| series)
}

impl Figures {
    /// The figures of a kernel, whichever version.
    fn of(&self, kernel: &str) -> Option<&(String, Column)> {
        self.columns.iter().find(|(name, _)| series(name) == series(kernel))
    }

    /// Without kernels that are not of the matrix, of which nothing is committed.
    pub fn of_the_matrix(&self) -> Self {
        let of_pcs = Wanted::MATRIX.map(|wanted| wanted.label(Architecture::X86_64));
        let of_arm = Wanted::OF_ARM.map(|wanted| wanted.label(Architecture::Aarch64));
        let names: Vec<_> = of_pcs.into_iter().chain(of_arm).collect();
        let columns = self.columns.iter().filter(|(name, _)| names.iter().any(|it| it == series(name)));
        Self { compiler: self.compiler.clone(), columns: columns.cloned().collect() }
    }

    /// Puts these in place of those that are there.
    pub fn renew(&mut self, new: &Figures) {
        self.compiler.clone_from(&new.compiler);
        for (kernel, column) in &new.columns {
            match self.columns.iter_mut().find(|(name, _)| series(name) == series(kernel)) {
                Some(old) => *old = (kernel.clone(), column.clone()),
                None => self.columns.push((kernel.clone(), column.clone())),
            }
        }
    }

    /// Why some of these are not held against the committed ones: others than we have changed something.
    pub fn others(&self, committed: &Figures) -> Vec<String> {
        if self.compiler != committed.compiler {
            return vec![format!("by {}, committed by {}", self.compiler, committed.compiler)];
        }
        let versions = self.columns.iter().filter_map(|(kernel, _)| Some((kernel, &committed.of(kernel)?.0)));
        versions
            .filter(|(now, old)| now != old)
            .map(|(now, old)| format!("{now}, committed of {old}"))
            .collect()
    }

    /// What differs from the committed figures of the same kernel and compiler by more than the tolerance, one line each.
    pub fn changes(&self, committed: &Figures) -> Vec<String> {
        let mut changes = Vec::new();
        if self.compiler != committed.compiler {
            return changes;
        }
        for (kernel, column) in &self.columns {
            let Some((version, old)) = committed.of(kernel) else {
                changes.push(format!("{kernel}: {FILE} has no figures of it"));
                continue;
            };
            if version != kernel {
                continue;
            }
            let old: BTreeMap<_, _> = old.iter().map(|(name, figure)| (name.as_str(), *figure)).collect();
            let new: BTreeMap<_, _> = column.iter().map(|(name, figure)| (name.as_str(), *figure)).collect();
            for (name, figure) in &new {
                match old.get(name) {
                    None => changes.push(format!("{kernel}: {name} is new")),
                    Some(old) => {
                        for (what, old, new) in [
                            ("verified instructions", old.instructions, figure.instructions),
                            ("bytes of stack", old.stack, figure.stack),
                        ] {
                            if old.abs_diff(new) * 100 > old * TOLERANCE_PERCENT {
                                changes.push(format!("{kernel}: {name} has {new} {what}, and had {old}"));
                            }
                        }
                    }
                }
            }
            let gone = old.keys().filter(|name| !new.contains_key(*name));
            changes.extend(gone.map(|name| format!("{kernel}: {name} is gone")));
        }
        changes
    }

    /// Programs in rows and kernels in columns, for people; the stack stands behind the instructions.
    pub fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_style(presets::NOTHING);
        table.set_header(["PROGRAM"].into_iter().chain(self.columns.iter().map(|(name, _)| name.as_str())));
        for (program, cells) in self.rows() {
            table.add_row([program].into_iter().chain(cells));
        }
        for column in table.column_iter_mut().skip(1) {
            column.set_cell_alignment(CellAlignment::Right);
        }
        table
    }

    fn rows(&self) -> Vec<(String, Vec<String>)> {
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in self.columns.iter().flat_map(|(_, column)| column) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        let cell = |column: &Column, wanted: &str| {
            let figure = column.iter().find(|(name, _)| name == wanted);
            figure.map_or("-".into(), |(_, it)| format!("{} / {}", it.instructions, it.stack))
        };
        let row = |name: &str| self.columns.iter().map(|(_, column)| cell(column, name)).collect();
        names.into_iter().map(|name| (name.to_owned(), row(name))).collect()
    }

    /// The table of the committed file.
    pub fn markdown(&self) -> String {
        let mut text = format!("{HEADER}{} |", self.compiler);
        for (kernel, _) in &self.columns {
            let _ = write!(text, " {kernel} |");
        }
        text += "\n|---|";
        text += &"---:|".repeat(self.columns.len());
        for (program, cells) in self.rows() {
            let _ = write!(text, "\n| {program} | {} |", cells.join(" | "));
        }
        text + "\n"
    }

    /// Reads the table of the committed file; lines around it do not matter.
    pub fn parse(text: &str) -> Self {
        let cells = |line: &str| -> Vec<String> {
            line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = text.lines().skip_while(|line| !line.starts_with(HEADER));
        let Some(header) = lines.next() else { return Self::default() };
        let compiler = header.trim_start_matches(HEADER).split(" |").next().unwrap_or_default().to_owned();
        let mut columns: Vec<(String, Column)> =
            cells(header).into_iter().skip(1).map(|kernel| (kernel, Vec::new())).collect();
        for line in lines.skip(1).take_while(|line| line.starts_with('|')) {
            let mut cells = cells(line).into_iter();
            let Some(program) = cells.next() else { continue };
            for ((_, column), cell) in columns.iter_mut().zip(cells) {
                let figure = cell.split_once(" / ").and_then(|(instructions, stack)| {
                    Some(Figure { instructions: instructions.parse().ok()?, stack: stack.parse().ok()? })
                });
                column.extend(figure.map(|figure| (program.clone(), figure)));
            }
        }
        columns.retain(|(_, column)| !column.is_empty());
        Self { compiler, columns }
    }

    /// The committed file with this table in place of its own.
    pub fn written_into(&self, text: &str) -> String {
        let before = text.lines().take_while(|line| !line.starts_with(HEADER));
        let after = text.lines().skip_while(|line| !line.starts_with(HEADER));
        let after = after.skip_while(|line| line.starts_with('|'));
        let join = |lines: Vec<&str>| lines.iter().map(|line| format!("{line}\n")).collect::<String>();
        format!("{}{}{}", join(before.collect()), self.markdown(), join(after.collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A program, its instructions and its stack.
    type Told<'a> = (&'a str, u64, u64);

    fn figures(columns: &[(&str, &[Told])]) -> Figures {
        let column = |programs: &[Told]| {
            let figure =
                |&(name, instructions, stack): &Told| (name.to_owned(), Figure { instructions, stack });
            programs.iter().map(figure).collect()
        };
        let columns = columns.iter().map(|(kernel, programs)| ((*kernel).to_owned(), column(programs)));
        Figures { compiler: "rustc 1".into(), columns: columns.collect() }
    }

    #[test]
    fn the_largest_stack_is_told_in_whichever_way_the_kernel_tells_it() {
        let json = r#"[
            {"program": "a", "verifiedInstructions": 250000, "stackBytes": "16+368+0", "jitedBytes": 1},
            {"program": "b", "verifiedInstructions": 3, "stackBytes": "max 288", "jitedBytes": 1}
        ]"#;
        let expected = figures(&[("k", &[("a", 250_000, 368), ("b", 3, 288)])]);
        assert_eq!(column(json).unwrap(), expected.columns[0].1);
    }

    #[test]
    fn a_program_above_the_limit_is_named() {
        let json = r#"[{"program": "a", "verifiedInstructions": 250001, "jitedBytes": 1}]"#;
        let error = column(json).unwrap_err().to_string();
        assert!(error.contains("250000 verified instructions: a."), "{error}");
    }

    #[test]
    fn a_written_table_reads_as_what_it_was() {
        let figures = figures(&[("6.1", &[("a", 7, 8), ("b", 9, 0)]), ("newest", &[("b", 5, 16)])]);
        let text =
            "# Title\n\n| other |\n|---|\n\n| program, by x | 6.0 |\n|---|---:|\n| a | 1 / 2 |\n\nWords.\n";
        let written = figures.written_into(text);
        assert!(written.starts_with(
            "# Title\n\n| other |\n|---|\n\n| program, by rustc 1 | 6.1 | newest |\n|---|---:|---:|\n"
        ));
        assert!(written.ends_with("| a | 7 / 8 | - |\n| b | 9 / 0 | 5 / 16 |\n\nWords.\n"), "{written}");
        assert_eq!(Figures::parse(&written), figures);
        assert_eq!(Figures::parse("nothing"), Figures::default());
    }

    #[test]
    fn a_change_above_a_tenth_is_told() {
        let committed = figures(&[("6.1", &[("a", 1000, 100), ("b", 10, 0), ("c", 1, 0)])]);
        let now = figures(&[("6.1", &[("a", 1100, 90), ("b", 12, 0), ("d", 1, 0)]), ("6.2", &[])]);
        assert_eq!(
            now.changes(&committed),
            [
                "6.1: b has 12 verified instructions, and had 10",
                "6.1: d is new",
                "6.1: c is gone",
                "6.2: docs/kernels.md has no figures of it"
            ]
        );
        assert!(committed.changes(&committed).is_empty());
    }

    #[test]
    fn figures_of_another_version_or_compiler_are_no_change_of_ours() {
        let committed = figures(&[("6.1 (6.1.1)", &[("a", 1000, 100)])]);
        let mut now = figures(&[("6.1 (6.1.2)", &[("a", 2000, 100)])]);
        assert_eq!(now.others(&committed), ["6.1 (6.1.2), committed of 6.1 (6.1.1)"]);
        assert!(now.changes(&committed).is_empty());
        now.columns[0].0 = "6.1 (6.1.1)".into();
        assert!(now.others(&committed).is_empty());
        assert_eq!(now.changes(&committed).len(), 1);
        now.compiler = "rustc 2".into();
        assert_eq!(now.others(&committed), ["by rustc 2, committed by rustc 1"]);
        assert!(now.changes(&committed).is_empty());
        let mut renewed = committed;
        renewed.renew(&figures(&[("6.1 (6.1.2)", &[("a", 3, 3)])]));
        assert_eq!(renewed, figures(&[("6.1 (6.1.2)", &[("a", 3, 3)])]));
    }

    #[test]
    fn renewing_leaves_the_figures_of_other_kernels() {
        let mut committed = figures(&[("6.1", &[("a", 1, 1)]), ("6.12", &[("a", 2, 2)])]);
        committed.renew(&figures(&[("6.12", &[("a", 3, 3)]), ("newest", &[("a", 4, 4)])]));
        let expected =
            figures(&[("6.1", &[("a", 1, 1)]), ("6.12", &[("a", 3, 3)]), ("newest", &[("a", 4, 4)])]);
        assert_eq!(committed, expected);
    }
}
