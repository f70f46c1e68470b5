//! Child processes: what is run is shown, and a failure names the command and shows its output.

use std::ffi::OsStr;
use std::process::{Child, Command, Output, Stdio};

use miette::{IntoDiagnostic, Result, WrapErr, miette};

/// The command as one would type it.
pub fn typed(command: &Command) -> String {
    let mut line = String::new();
    for (name, value) in command.get_envs() {
        if let Some(value) = value {
            line += &format!("{}={} ", name.to_string_lossy(), quoted(value));
        }
    }
    line += &quoted(command.get_program());
    for argument in command.get_args() {
        line.push(' ');
        line += &quoted(argument);
    }
    line
}

fn quoted(word: &OsStr) -> String {
    let word = word.to_string_lossy();
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=+,@%^".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.into_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Runs to the end with this terminal as output. An exit status other than 0 is an error.
pub fn run(command: &mut Command) -> Result<()> {
    let status =
        command.status().into_diagnostic().wrap_err_with(|| format!("cannot start: {}", typed(command)))?;
    if status.success() { Ok(()) } else { Err(miette!("{status} from: {}", typed(command))) }
}

/// Starts it with nothing to read; what it prints goes through two pipes.
pub fn spawn_piped(command: &mut Command) -> Result<Child> {
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot start: {}", typed(command)))
}

/// Runs to the end and returns what was printed. An exit status other than 0 is an error that shows it.
pub fn output(command: &mut Command) -> Result<Output> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .into_diagnostic()
        .wrap_err_with(|| format!("cannot start: {}", typed(command)))?;
    if output.status.success() {
        return Ok(output);
    }
    Err(miette!(
        "{} from: {}\n{}{}",
        output.status,
        typed(command),
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    ))
}

/// Standard output of a command that must succeed.
pub fn stdout(command: &mut Command) -> Result<String> {
    Ok(String::from_utf8_lossy(&output(command)?.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typed_command_can_be_pasted_into_a_shell() {
        let mut command = Command::new("apt-get");
        command.args(["install", "it's", ""]).env("RUNLEVEL", "1");
        assert_eq!(typed(&command), r"RUNLEVEL=1 apt-get install 'it'\''s' ''");
    }

    #[test]
    fn a_failure_shows_the_command_and_what_it_said() {
        let error = output(Command::new("sh").args(["-c", "echo why >&2; exit 3"])).unwrap_err().to_string();
        assert!(
            error.contains("exit status: 3") && error.contains("sh -c") && error.contains("why"),
            "{error}"
        );
    }
}
