//! Probes that go on until their standard input ends, and say at each line of it how things stand.
use std::io::{self, BufRead, Write};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde::Serialize;

/// What a probe has seen so far, and whether it may go on.
#[derive(Debug, Default)]
pub(super) struct Live<T> {
    state: Mutex<T>,
    over: AtomicBool,
}

impl<T: Serialize + Sync + Send> Live<T> {
    pub fn new(state: T) -> Self {
        Live { state: Mutex::new(state), over: AtomicBool::new(false) }
    }

    pub fn note(&self, change: impl FnOnce(&mut T)) {
        // No thread panics while it holds the lock.
        if let Ok(mut state) = self.state.lock() {
            change(&mut state);
        }
    }

    pub fn goes_on(&self) -> bool {
        !self.over.load(Ordering::Relaxed)
    }

    fn print(&self) -> io::Result<()> {
        let Ok(state) = self.state.lock() else { return Ok(()) };
        let line = serde_json::to_string(&*state)?;
        drop(state);
        let mut out = io::stdout().lock();
        writeln!(out, "{line}")?;
        out.flush()
    }

    /// Runs `work`, which looks at [`Live::goes_on`], and answers each line of standard input.
    pub fn run(&self, work: impl FnOnce(&Self) -> io::Result<()> + Send) -> io::Result<()> {
        thread::scope(|scope| {
            let worker = scope.spawn(|| work(self));
            for line in io::stdin().lock().lines() {
                line?;
                self.print()?;
            }
            self.over.store(true, Ordering::Relaxed);
            worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }
}
