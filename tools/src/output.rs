//! Writing to standard output without a panic when the reader goes away.

use std::io::{self, Write};

/// Writes text to standard output and flushes it.
///
/// # Errors
/// When the output is closed or full.
pub fn print(text: &str) -> io::Result<()> {
    write(text.as_bytes())
}

/// Writes bytes to standard output and flushes them.
///
/// # Errors
/// When the output is closed or full.
pub fn write(bytes: &[u8]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(bytes)?;
    out.flush()
}

/// Writes a line to standard error, where everything goes that is not the result.
pub fn note(text: &str) {
    // Nobody is left to tell when standard error is closed.
    let _ = writeln!(io::stderr(), "{text}");
}
