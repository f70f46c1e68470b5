//! Long steps: a spinner with the latest line of output on a terminal, plain lines elsewhere.

use std::io::{BufRead, BufReader, IsTerminal, Read};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use miette::{IntoDiagnostic, Result, miette};

use crate::command::{spawn_piped, typed};

/// Lines of output that a failure shows at most.
const SHOWN_LINES: usize = 200;

/// Runs a command to its end. Its output is shown when it fails.
pub fn run(title: &str, command: &mut Command) -> Result<()> {
    let step = Step::begin(title);
    let began = Instant::now();
    let mut child = spawn_piped(command)?;
    let (sender, lines) = mpsc::channel();
    let readers = [
        child.stdout.take().map(|pipe| forward_lines(pipe, sender.clone())),
        child.stderr.take().map(|pipe| forward_lines(pipe, sender)),
    ];
    let mut output = Vec::new();
    for line in lines {
        step.detail(&line);
        output.push(line);
    }
    for reader in readers.into_iter().flatten() {
        let _ = reader.join();
    }
    let status = child.wait().into_diagnostic()?;
    if status.success() {
        step.done(began.elapsed());
        return Ok(());
    }
    step.failed();
    let hidden = output.len().saturating_sub(SHOWN_LINES);
    if hidden > 0 {
        eprintln!("… {hidden} lines before these:");
    }
    eprintln!("{}", output[hidden..].join("\n"));
    Err(miette!("{status} from: {}", typed(command)))
}

fn forward_lines(pipe: impl Read + Send + 'static, sender: mpsc::Sender<String>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        for line in BufReader::new(pipe).split(b'\n').map_while(std::io::Result::ok) {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    })
}

/// One step that is shown while it lasts.
pub struct Step {
    title: String,
    spinner: Option<ProgressBar>,
}

impl Step {
    /// Shows the title from now on.
    pub fn begin(title: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{spinner} {prefix} {elapsed:.dim} {wide_msg:.dim}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner());
            let spinner = ProgressBar::new_spinner().with_style(style).with_prefix(title.to_owned());
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        if spinner.is_none() {
            eprintln!("  {title} …");
        }
        Self { title: title.into(), spinner }
    }

    /// Shows what the step is at, on a terminal.
    pub fn detail(&self, text: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.set_message(text.trim().to_owned());
        }
    }

    /// Says something that stays to be read.
    pub fn say(&self, text: &str) {
        let line = format!("  {}: {text}", self.title);
        match &self.spinner {
            Some(spinner) => spinner.suspend(|| eprintln!("{line}")),
            None => eprintln!("{line}"),
        }
    }

    /// Ends the step well.
    pub fn done(self, took: Duration) {
        self.end(&format!("  {}: done in {:.0} s", self.title, took.as_secs_f64()));
    }

    fn failed(self) {
        self.end(&format!("  {}: FAILED", self.title));
    }

    fn end(&self, line: &str) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
        eprintln!("{line}");
    }
}

impl Drop for Step {
    fn drop(&mut self) {
        if let Some(spinner) = &self.spinner {
            spinner.finish_and_clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_command_is_named() {
        let error =
            run("a test", Command::new("sh").args(["-c", "echo out; echo err >&2; exit 4"])).unwrap_err();
        let error = error.to_string();
        assert!(
            error.contains("exit status: 4") && error.contains("out") && error.contains("err"),
            "{error}"
        );
    }
}
