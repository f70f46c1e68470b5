//! Where a run took place.

use std::fs;

use crate::command;

/// Kernel, processor and date, in one line.
pub fn describe() -> String {
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(1, |count| count.get());
    let date = command::stdout(std::process::Command::new("date").args(["-u", "+%F %H:%M UTC"]));
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "Linux {}, {cpus} CPUs ({}), load {load}, {}",
        kernel.trim(),
        model(&fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
        date.unwrap_or_default().trim()
    )
}

fn model(cpuinfo: &str) -> &str {
    let line = cpuinfo.lines().find(|line| line.starts_with("model name"));
    line.and_then(|line| line.split_once(": ")).map_or("unknown", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_processor_is_named() {
        assert_eq!(model("processor\t: 0\nmodel name\t: AMD EPYC\nmodel name\t: x\n"), "AMD EPYC");
        assert_eq!(model(""), "unknown");
    }
}
