//! Rings: time to build, balance, disruption. The measuring part of `cargo xtask bench maglev`: prints one JSON
//! object a line.

use std::time::Instant;

use clap::Parser;
use lb_bench::choice::Choice;
use lb_common::addr::{Ipv4, Port};
use lb_common::maglev::{EndpointHash, LENGTHS, build, ring_length};
use serde_json::{Value, json};

#[derive(Debug, Parser)]
struct Arguments {
    /// How often each ring is built
    #[arg(long, default_value_t = 21)]
    rounds: usize,
    #[command(flatten)]
    choice: Choice,
}

fn main() {
    let arguments = Arguments::parse();
    let mut counts = vec![2, 10, 40, 163, 655, 1310, 10_000];
    if arguments.choice.all {
        counts.extend([1, 3, 5, 20, 100, 500, 1000, 5000]);
        counts.sort_unstable();
    }
    for endpoints in counts {
        for row in rows(endpoints, arguments.rounds) {
            let case = row["case"].as_str().unwrap_or_default();
            if arguments.choice.holds(case) {
                println!("{row}");
            }
        }
    }
    eprintln!("lengths in use: {LENGTHS:?}");
}

fn endpoint(number: usize) -> EndpointHash {
    let address = Ipv4::from_octets((0x0af4_0000 + number as u32).to_be_bytes());
    EndpointHash::new(address, Port::new(8080), 0x5eed)
}

fn ring(endpoints: &[EndpointHash], length: u32) -> Vec<u32> {
    let (mut ring, mut next) = (vec![0; length as usize], vec![0; endpoints.len()]);
    build(endpoints, &mut ring, &mut next);
    ring
}

fn rows(count: usize, rounds: usize) -> Vec<Value> {
    let endpoints: Vec<_> = (0..count).map(endpoint).collect();
    let length = ring_length(count);
    let mut millis: Vec<f64> = (0..rounds)
        .map(|_| {
            let began = Instant::now();
            std::hint::black_box(ring(std::hint::black_box(&endpoints), length));
            began.elapsed().as_secs_f64() * 1000.0
        })
        .collect();
    millis.sort_by(f64::total_cmp);
    let case = format!("{count} endpoints, {length} slots");
    let row = |what: &str, value: f64, unit: &str, range: Option<(f64, f64)>| {
        json!({
            "case": case,
            "what": what,
            "value": value,
            "low": range.map(|(low, _)| low),
            "high": range.map(|(_, high)| high),
            "unit": unit,
        })
    };
    let range = (millis[rounds / 4], millis[rounds * 3 / 4]);
    let whole = ring(&endpoints, length);
    let shares = shares(&whole, count);
    let ideal = whole.len() as f64 / count as f64;
    let most = shares.iter().max().copied().unwrap_or(0) as f64 / ideal;
    let mut rows = vec![
        row("time to build", millis[rounds / 2], "ms", Some(range)),
        row("largest share, above the ideal one", (most - 1.0) * 100.0, "%", None),
    ];
    // One endpoint in the middle goes.
    let mut fewer = endpoints.clone();
    let gone = count / 2;
    fewer.remove(gone);
    if !fewer.is_empty() {
        let after = ring(&fewer, length);
        let index = |slot: u32| if slot as usize >= gone { slot as usize + 1 } else { slot as usize };
        let kept =
            |(before, after): &(&u32, &u32)| **before as usize != gone && index(**after) != **before as usize;
        let moved = whole.iter().zip(&after).filter(kept).count();
        let percent = moved as f64 * 100.0 / whole.len() as f64;
        rows.push(row("slots of others that move when one goes", percent, "%", None));
    }
    rows
}

fn shares(ring: &[u32], count: usize) -> Vec<u32> {
    let mut shares = vec![0; count];
    for slot in ring {
        shares[*slot as usize] += 1;
    }
    shares
}
