//! What a person sees while a run goes on: bars and one line of figures on a terminal, a line every few seconds
//! elsewhere.
//!
//! Everything goes to the standard error output, so that the report can be piped.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

/// Without a terminal, one line in this time.
const LINE_INTERVAL: Duration = Duration::from_secs(5);

/// A bar or a line of figures.
pub struct Bar {
    bar: Option<ProgressBar>,
    last_line: Instant,
}

impl Bar {
    /// A bar that counts to `total`.
    pub fn counting(what: &str, total: u64) -> Self {
        let style = ProgressStyle::with_template("{prefix:>22} {wide_bar} {pos}/{len} {eta}");
        Self::new(what, style.ok().map(|style| ProgressBar::new(total).with_style(style)))
    }

    /// A line that shows what [`Self::show`] is given.
    pub fn figures(what: &str) -> Self {
        let style = ProgressStyle::with_template("{prefix:>22} {spinner} {msg}");
        Self::new(what, style.ok().map(|style| ProgressBar::new_spinner().with_style(style)))
    }

    fn new(what: &str, bar: Option<ProgressBar>) -> Self {
        let bar = bar.filter(|_| std::io::stderr().is_terminal()).map(|bar| bar.with_prefix(what.to_owned()));
        Self { bar, last_line: Instant::now() }
    }

    /// One more is done.
    pub fn advance(&self) {
        if let Some(bar) = &self.bar {
            bar.inc(1);
        }
    }

    /// So many are done.
    pub fn set(&self, done: u64) {
        if let Some(bar) = &self.bar {
            bar.set_position(done);
        }
    }

    /// Shows figures.
    pub fn show(&mut self, figures: impl FnOnce() -> String) {
        if let Some(bar) = &self.bar {
            bar.set_message(figures());
            bar.tick();
        } else if self.last_line.elapsed() >= LINE_INTERVAL {
            self.last_line = Instant::now();
            eprintln!("{}", figures());
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
