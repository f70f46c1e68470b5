//! Samples, and the rows they become.

use super::objects::Size;
use super::site::Side;
use crate::bench::Row;
use crate::bench::row::Target;

/// From so many samples on the last percent is told apart from the longest.
const ENOUGH_FOR_P99: usize = 100;

/// What was measured of one side at one size.
#[derive(Debug, Default)]
pub struct Figures {
    samples: Vec<Samples>,
    doubt: Option<String>,
}

#[derive(Debug)]
struct Samples {
    what: String,
    unit: &'static str,
    values: Vec<f64>,
}

impl Figures {
    /// One more sample.
    pub fn add(&mut self, what: &str, unit: &'static str, value: f64) {
        match self.samples.iter_mut().find(|samples| samples.what == what) {
            Some(samples) => samples.values.push(value),
            None => self.samples.push(Samples { what: what.into(), unit, values: vec![value] }),
        }
    }

    /// So many more of something that is counted over all changes.
    pub fn count(&mut self, what: &str, more: u32) {
        match self.samples.iter_mut().find(|samples| samples.what == what) {
            Some(samples) => samples.values.iter_mut().for_each(|value| *value += f64::from(more)),
            None => self.add(what, "", f64::from(more)),
        }
    }

    /// Why they mean nothing.
    pub fn doubt(&mut self, why: String) {
        self.doubt.get_or_insert(why);
    }
}

/// The rows of both sides; Shunt's are held against kube-proxy's of the same size.
pub fn rows(measured: &[(Size, Side, Figures)]) -> Vec<Row> {
    let mut rows: Vec<Row> =
        measured.iter().flat_map(|(size, side, figures)| of_one(*size, *side, figures)).collect();
    let theirs: Vec<(String, String, f64)> =
        rows.iter().map(|row| (row.case.clone(), row.what.clone(), row.value)).collect();
    for row in &mut rows {
        let Some(rest) = row.case.strip_prefix(Side::Shunt.name()) else { continue };
        let case = format!("{}{rest}", Side::KubeProxy.name());
        let same = theirs.iter().find(|(other, what, _)| *other == case && *what == row.what);
        if let Some((_, _, value)) = same.filter(|(_, _, value)| *value > 0.0) {
            (row.floor, row.ratio) = (Some(case), Some(row.value / value));
        }
    }
    rows
}

/// The name of a case.
pub fn case(side: Side, size: Size) -> String {
    format!("{}: {size}", side.name())
}

fn of_one(size: Size, side: Side, figures: &Figures) -> Vec<Row> {
    let mut rows = Vec::new();
    for Samples { what, unit, values } in &figures.samples {
        let mut sorted = values.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| sorted[((sorted.len() - 1) as f64 * share).round() as usize];
        let row = |what: &str, value: f64, range: Option<(f64, f64)>| {
            let (low, high) = range.unzip();
            let target = (side == Side::Shunt).then(|| target(size, what)).flatten();
            Row {
                case: case(side, size),
                what: what.into(),
                value,
                low,
                high,
                unit: (*unit).into(),
                floor: None,
                ratio: None,
                target,
                problem: figures.doubt.clone(),
            }
        };
        let last = (sorted.len() - 1) as f64;
        let quarters = || (sorted[(last * 0.25) as usize], sorted[(last * 0.75).ceil() as usize]);
        rows.push(row(what, at(0.5), (sorted.len() > 2).then(quarters)));
        if what.contains("first packet") && sorted.len() > 2 {
            if sorted.len() >= ENOUGH_FOR_P99 {
                rows.push(row(&format!("{what}, p99"), at(0.99), None));
            }
            rows.push(row(&format!("{what}, longest"), at(1.0), None));
        }
    }
    rows
}

/// What is wanted of a row of Shunt's.
fn target(size: Size, what: &str) -> Option<Target> {
    let is_large = size.services == 10_000;
    let most = match what {
        "endpoint replaced, answer to first packet, p99" if is_large => 10.0,
        "100 endpoints replaced, answer to first packet, p99" if size.is_long() => 100.0,
        "endpoint replaced, CPU" if is_large => 5.0,
        "resident memory, peak" if is_large => 150.0,
        "maps" if is_large => 200.0,
        _ => return None,
    };
    Some(Target::ValueAtMost(most))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LARGE: Size = Size { services: 10_000, endpoints: 10 };

    fn figures(what: &str, values: &[f64]) -> Figures {
        let mut figures = Figures::default();
        values.iter().for_each(|value| figures.add(what, "ms", *value));
        figures
    }

    #[test]
    fn shunt_is_held_against_kube_proxy_of_the_same_size() {
        let what = "new Service, write to first packet";
        let other = Size { services: 1, endpoints: 10 };
        let measured = [
            (LARGE, Side::Shunt, figures(what, &[3.0, 2.0, 4.0, 1.0, 5.0])),
            (LARGE, Side::KubeProxy, figures(what, &[30.0])),
            (other, Side::Shunt, figures(what, &[1.0])),
        ];
        let rows = rows(&measured);
        let shown: Vec<_> = rows.iter().map(|row| (row.value, row.ratio)).collect();
        assert_eq!(shown, [(3.0, Some(0.1)), (5.0, None), (30.0, None), (1.0, None)]);
        assert_eq!(rows[0].floor.as_deref(), Some("kube-proxy: 10 000 Services x 10 endpoints"));
        assert_eq!((rows[0].low, rows[0].high), (Some(2.0), Some(4.0)));
    }

    #[test]
    fn targets_are_asked_of_shunt_alone_and_of_enough_samples() {
        let what = "endpoint replaced, answer to first packet";
        let many: Vec<f64> = (1..=200).map(f64::from).collect();
        let measured =
            [(LARGE, Side::Shunt, figures(what, &many)), (LARGE, Side::KubeProxy, figures(what, &many))];
        let rows = rows(&measured);
        let asked: Vec<_> = rows.iter().filter(|row| row.target.is_some()).collect();
        assert_eq!(asked.len(), 1);
        assert_eq!((asked[0].value, asked[0].is_met()), (198.0, Some(false)));
    }

    #[test]
    fn what_is_counted_is_one_sum() {
        let mut figures = Figures::default();
        [0, 2, 1].into_iter().for_each(|more| figures.count("cut", more));
        let rows = rows(&[(LARGE, Side::Shunt, figures)]);
        assert_eq!((rows.len(), rows[0].value, rows[0].low), (1, 3.0, None));
    }

    #[test]
    fn a_doubt_is_on_every_row() {
        let mut figures = figures("maps", &[1.0]);
        figures.doubt("first".into());
        figures.doubt("second".into());
        let rows = rows(&[(LARGE, Side::Shunt, figures)]);
        assert_eq!(rows[0].problem.as_deref(), Some("first"));
        assert_eq!(rows[0].is_met(), Some(false));
    }
}
