//! One side at one size: starts, then changes.

use std::time::Instant;

use miette::{Result, WrapErr};

use super::figures::Figures;
use super::objects::{Passing, Size};
use super::prober::{self, Expected, Seen, Watch};
use super::site::{Programs, Side, Site};
use crate::kube::{ApiServer, Request, Writer, Written};

/// How often things are done.
#[derive(Clone, Copy, Debug)]
pub struct Effort {
    /// Cold starts.
    pub starts: u32,
    /// Changes of each kind with Shunt.
    pub changes: u32,
    /// Likewise with kube-proxy, which must rest for seconds in between.
    pub slow_changes: u32,
}

/// The API server and the objects in it.
pub struct Cluster<'a> {
    /// The server.
    pub api: &'a ApiServer,
    /// The way to change one object.
    pub writer: &'a Writer,
    /// What is in it.
    pub size: Size,
}

/// Measures one side. `passing` numbers the Services that come and go, `say` is told what is going on.
pub fn measure(
    side: Side,
    cluster: &Cluster<'_>,
    programs: &Programs,
    effort: Effort,
    passing: &mut u32,
    say: &dyn Fn(&str),
) -> Result<Figures> {
    let mut site = Site::build(side, cluster.api, programs)?;
    let mut figures = Figures::default();
    let done = starts(&mut site, cluster, effort.starts, &mut figures, say)
        .and_then(|()| {
            let changes = if side == Side::Shunt { effort.changes } else { effort.slow_changes };
            let run = Run { site: &site, cluster, say };
            if cluster.size.is_long() {
                run.replace_slices(changes, passing, &mut figures)
            } else {
                run.passing_services(changes, passing, &mut figures)
            }
        })
        .wrap_err_with(|| format!("{}, {}. Its last words:\n{}", side.name(), cluster.size, site.log()));
    done?;
    figures.add("resident memory, peak", "MiB", site.peak_memory()?);
    if let Some(maps) = site.map_memory()? {
        figures.add("maps", "MiB", maps);
    }
    Ok(figures)
}

fn starts(
    site: &mut Site,
    cluster: &Cluster<'_>,
    starts: u32,
    figures: &mut Figures,
    say: &dyn Fn(&str),
) -> Result<()> {
    let frontends = cluster.size.frontends();
    for start in 0..starts {
        say(&format!("start {} of {starts}", start + 1));
        site.clear()?;
        let before = site.processor_time()?;
        let began = Instant::now();
        site.launch()?;
        let (last, late) = prober::all_answer(site.client(), &frontends)?;
        figures.add("cold start, process to last Service answering", "s", (last - began).as_secs_f64());
        figures.add("cold start, Services that came after the first hundred", "", f64::from(late));
        site.settle(Instant::now())?;
        figures.add("cold start, CPU", "s", (site.processor_time()? - before).as_secs_f64());
    }
    Ok(())
}

struct Run<'a> {
    site: &'a Site,
    cluster: &'a Cluster<'a>,
    say: &'a dyn Fn(&str),
}

impl Run<'_> {
    /// Services with one endpoint come, get another endpoint, lose it, and go.
    fn passing_services(&self, changes: u32, passing: &mut u32, figures: &mut Figures) -> Result<()> {
        for change in 0..changes {
            (self.say)(&format!("change {} of {changes}", change + 1));
            let service = Passing(*passing);
            *passing += 1;
            let [first, second] = [0, 1].map(|turn| service.endpoint(turn));
            self.write(&service.create_slice())?;
            self.site.settle(Instant::now())?;
            let steps = [
                ("new Service", service.create(), Expected::Nobody, Expected::AnyOf(vec![first])),
                (
                    "endpoint replaced",
                    service.change(&[second]),
                    Expected::AnyOf(vec![first]),
                    Expected::AnyOf(vec![second]),
                ),
                (
                    "last endpoint removed",
                    service.change(&[]),
                    Expected::AnyOf(vec![second]),
                    Expected::Nobody,
                ),
            ];
            for (what, request, before, after) in steps {
                let watch = Watch { frontend: service.frontend(), before, after, is_whole: true };
                self.change(what, &watch, &request, figures)?;
            }
            for request in service.delete() {
                self.write(&request)?;
            }
            self.site.settle(Instant::now())?;
        }
        Ok(())
    }

    /// Whole slices of a large Service are replaced.
    fn replace_slices(&self, changes: u32, turn: &mut u32, figures: &mut Figures) -> Result<()> {
        let size = self.cluster.size;
        for change in 0..changes {
            (self.say)(&format!("change {} of {changes}", change + 1));
            *turn += 1;
            let index = *turn % size.slices();
            let new = size.members(0, index, *turn);
            let watch = Watch {
                frontend: size.frontends()[0],
                before: Expected::NoneOf(new.clone()),
                after: Expected::AnyOf(new),
                is_whole: false,
            };
            self.change("100 endpoints replaced", &watch, &size.replace(index, *turn), figures)?;
        }
        Ok(())
    }

    fn change(&self, what: &str, watch: &Watch, request: &Request, figures: &mut Figures) -> Result<()> {
        let before = self.site.processor_time()?;
        let seen = watch.observe(self.site.client(), || self.write(request))?;
        self.site.settle(seen.obeyed)?;
        let used = self.site.processor_time()? - before;
        let Seen { written, obeyed, strays, cut } = seen;
        figures.add(&format!("{what}, write to first packet"), "ms", millis(written.sent, obeyed));
        figures.add(&format!("{what}, answer to first packet"), "ms", millis(written.answered, obeyed));
        figures.add(&format!("{what}, CPU"), "ms", used.as_secs_f64() * 1000.0);
        figures.count(&format!("{what}, connections under way that were cut"), cut);
        figures.add("API server, write to answer", "ms", millis(written.sent, written.answered));
        if strays > 0 {
            figures.doubt(format!("{what}: {strays} connections obeyed before one that did not"));
        }
        Ok(())
    }

    fn write(&self, request: &Request) -> Result<Written> {
        self.cluster.writer.write(request)
    }
}

/// Milliseconds from one to the other; the second may be the earlier one.
fn millis(from: Instant, to: Instant) -> f64 {
    let signed = |later: Instant, earlier: Instant| later.duration_since(earlier).as_secs_f64() * 1000.0;
    if to >= from { signed(to, from) } else { -signed(from, to) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn what_came_before_is_negative() {
        let now = Instant::now();
        let later = now + Duration::from_millis(3);
        assert_eq!((millis(now, later), millis(later, now)), (3.0, -3.0));
    }
}
