//! Progress of a download on standard error: a bar on a terminal, else one line per stage.

use std::io::IsTerminal;
use std::time::Duration;

use aether_llm::hub::{Progress, bytes};
use indicatif::{ProgressBar, ProgressStyle};

/// Shows [`Progress`] events to the user. Nothing is shown before the first event, so that a
/// model that is already there makes no noise. The bar goes away when this is dropped.
#[derive(Debug)]
pub struct Reporter {
    terminal: bool,
    bar: Option<ProgressBar>,
}

impl Default for Reporter {
    fn default() -> Self {
        Self::new()
    }
}

impl Reporter {
    /// A reporter for this process's standard error.
    pub fn new() -> Self {
        Self { terminal: std::io::stderr().is_terminal(), bar: None }
    }

    /// Shows one event.
    pub fn show(&mut self, progress: Progress) {
        match progress {
            Progress::Started { total } if self.terminal => self.bar = Some(bar(total)),
            Progress::Started { total } => eprintln!("{} to download", bytes(total)),
            Progress::Advanced { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_length(total);
                    bar.set_position(done);
                }
            }
            Progress::Message(text) => self.line(&text),
            Progress::Verifying => match &self.bar {
                Some(bar) => bar.set_message("verifying"),
                None => self.line("verifying"),
            },
        }
    }

    fn line(&self, text: &str) {
        match &self.bar {
            Some(bar) => bar.println(text),
            None => eprintln!("{text}"),
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(total: u64) -> ProgressBar {
    let bar = ProgressBar::new(total);
    // The template is fixed, so a failure to read it would be seen by the test below; the
    // plain bar is the fallback.
    if let Ok(style) = style() {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}

fn style() -> Result<ProgressStyle, indicatif::style::TemplateError> {
    let template = "{wide_bar} {decimal_bytes}/{decimal_total_bytes} \
                    {decimal_bytes_per_sec} {eta} {msg}";
    Ok(ProgressStyle::with_template(template)?.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn template_is_valid() {
        super::style().unwrap();
    }
}
