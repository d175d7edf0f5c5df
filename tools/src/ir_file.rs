//! IR modules from text, verified, with errors shown in the text.

use std::path::Path;

use aether_ir::Module;
use aether_ir::diag::render;
use aether_ir::text::parse_and_verify;
use anyhow::{Context, anyhow};

/// Parses and verifies a module.
///
/// # Errors
/// Every diagnostic, with the line it is about.
pub fn parse(source: &str, name: &str) -> anyhow::Result<Module> {
    let shown = |diagnostics: Vec<aether_ir::diag::Diagnostic>| {
        let text = render(&diagnostics, source, name);
        // The command line puts its own `error: ` in front.
        let text = text.trim_end();
        anyhow!("{}", text.strip_prefix("error: ").unwrap_or(text).to_owned())
    };
    parse_and_verify(source).map_err(shown)
}

/// Reads, parses and verifies a file.
///
/// # Errors
/// When it cannot be read, or as [`parse`].
pub fn read(path: &Path) -> anyhow::Result<Module> {
    let source =
        std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&source, &path.display().to_string())
}
