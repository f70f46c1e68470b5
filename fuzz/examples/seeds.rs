//! Writes the fixture list as the corpora that fuzzing starts with.

use std::{fs, io};

use lb_testkit::fuzz::{packets, scripts};

fn main() -> io::Result<()> {
    for (target, seeds) in [("parser", packets()), ("datapath", scripts())] {
        let folder = format!("{}/corpus/{target}", env!("CARGO_MANIFEST_DIR"));
        fs::create_dir_all(&folder)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(format!("{folder}/fixture-{number:03}"), seed)?;
        }
        println!("{} seeds in {folder}", seeds.len());
    }
    Ok(())
}
