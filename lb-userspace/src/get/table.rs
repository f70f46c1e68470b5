//! Tables for people: columns apart, no frame.

use comfy_table::{Attribute, Cell, ContentArrangement, Table, presets};

use super::Row;

/// The rows under their titles. Bold titles on a terminal only.
pub(super) fn render<R: Row>(rows: &[R], wide: bool, terminal: bool) -> String {
    let columns = if wide { R::TITLES.len() } else { R::NARROW };
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    let title = |title: &&str| {
        let cell = Cell::new(title);
        if terminal { cell.add_attribute(Attribute::Bold) } else { cell }
    };
    table.set_header(R::TITLES.iter().take(columns).map(title));
    for row in rows {
        table.add_row(row.cells().into_iter().take(columns));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    if terminal {
        table.enforce_styling();
    } else {
        table.force_no_tty();
    }
    let text = table.to_string();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// `1.2 GiB`, `17 B`.
pub(super) fn bytes(count: u64) -> String {
    bytesize::ByteSize::b(count).to_string()
}

/// `3s`, `2m5s`, `1h3m`, `2d4h`.
pub(super) fn duration(millis: u64) -> String {
    let seconds = millis / 1000;
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{minutes}m{}s", seconds % 60),
        3600..86_400 => format!("{hours}h{}m", minutes % 60),
        _ => format!("{days}d{}h", hours % 24),
    }
}

/// A dash for what is not there.
pub(super) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Two(&'static str, &'static str, &'static str);

    impl Row for Two {
        const TITLES: &'static [&'static str] = &["NAME", "VALUE", "MORE"];
        const NARROW: usize = 2;

        fn cells(&self) -> Vec<String> {
            [self.0, self.1, self.2].map(str::to_owned).to_vec()
        }
    }

    #[test]
    fn columns_stand_apart_and_lines_have_no_tail() {
        let rows = [Two("a", "1", "x"), Two("longer", "22", "y")];
        assert_eq!(render(&rows, false, false), "NAME    VALUE\na       1\nlonger  22");
        assert_eq!(render(&rows, true, false), "NAME    VALUE  MORE\na       1      x\nlonger  22     y");
        assert!(render(&rows, false, true).contains("\u{1b}["), "bold titles on a terminal");
    }

    #[test]
    fn durations_have_two_parts_at_most() {
        let cases =
            [(999, "0s"), (59_000, "59s"), (125_000, "2m5s"), (3_780_000, "1h3m"), (187_200_000, "2d4h")];
        for (millis, text) in cases {
            assert_eq!(duration(millis), text);
        }
    }
}
