//! `--verify-diagnostics`: the file announces its errors, and exactly those must occur.
//!
//! A comment `// expected-error@+1 {{text}}` announces an error on the next line whose message
//! contains `text`; `@-2` counts upwards, and without `@` the comment's own line is meant.

use aether_ir::Diagnostic;
use aether_ir::text::parse_and_verify;
use anyhow::{Context, bail};

use super::{Output, Session};

const COMMENT: &str = "expected-error";

#[derive(Debug, PartialEq, Eq)]
struct Expected {
    /// Counted from 1.
    line: usize,
    text: String,
}

impl Session<'_> {
    /// Checks one part of the file.
    pub(super) fn verify_diagnostics(
        &self,
        source: &str,
        name: &str,
        out: &mut Output,
    ) -> anyhow::Result<()> {
        let mut expected = announced(source)?;
        let found = match parse_and_verify(source) {
            Err(found) => found,
            Ok(mut module) => {
                self.optimise(&mut module, out)?;
                Vec::new()
            }
        };
        for d in &found {
            let line = line_of(source, d);
            let said = said(d);
            match expected.iter().position(|e| e.line == line && said.contains(&e.text)) {
                Some(at) => drop(expected.remove(at)),
                None => {
                    out.ok = false;
                    let shown = aether_ir::diag::render(std::slice::from_ref(d), source, name);
                    out.note(format!("not expected: {shown}"));
                }
            }
        }
        for Expected { line, text } in expected {
            out.ok = false;
            out.note(format!("{name}:{line}: expected an error with `{text}`, found none"));
        }
        Ok(())
    }
}

/// Everything a diagnostic says, in one text.
fn said(d: &Diagnostic) -> String {
    let notes: Vec<&str> = d.notes.iter().map(|n| n.text.as_str()).collect();
    format!("{d} {} {} {}", d.label, notes.join(" "), d.help.as_deref().unwrap_or_default())
}

fn line_of(source: &str, d: &Diagnostic) -> usize {
    let end = (d.span.start as usize).min(source.len());
    source.as_bytes()[..end].iter().filter(|b| **b == b'\n').count() + 1
}

fn announced(source: &str) -> anyhow::Result<Vec<Expected>> {
    let mut all = Vec::new();
    for (i, line) in source.lines().enumerate() {
        let Some((_, comment)) = line.split_once("//") else { continue };
        for part in comment.split(COMMENT).skip(1) {
            all.push(
                parse(part, i + 1).with_context(|| format!("line {}: {}", i + 1, line.trim()))?,
            );
        }
    }
    Ok(all)
}

fn parse(part: &str, own_line: usize) -> anyhow::Result<Expected> {
    let (place, rest) = part.split_once("{{").context("expected `{{text}}`")?;
    let (text, _) = rest.split_once("}}").context("`{{` is not closed by `}}`")?;
    let line = match place.trim() {
        "" => Some(own_line),
        place => place
            .strip_prefix('@')
            .and_then(|n| n.parse::<isize>().ok())
            .and_then(|n| own_line.checked_add_signed(n)),
    };
    let Some(line) = line else {
        bail!("`{}` is no place: expected `@+1`, `@-1` or nothing", place.trim());
    };
    Ok(Expected { line, text: text.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn announcements() {
        let at = |line, text: &str| Expected { line, text: text.to_owned() };
        let source =
            "a // expected-error {{one}}\n// expected-error@+1 {{two}} expected-error@-1 {{3}}\n";
        assert_eq!(announced(source).unwrap(), [at(1, "one"), at(3, "two"), at(1, "3")]);
        for bad in ["// expected-error\n", "// expected-error@x {{t}}\n", "// expected-error {{t\n"]
        {
            assert!(announced(bad).is_err(), "{bad}");
        }
    }
}
