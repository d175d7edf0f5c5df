//! Diagnostics: what is wrong with a module, where, and what to do about it.
//!
//! A diagnostic points into a module ([`Loc`]) and, when the module came from text, into that
//! text ([`Span`]). [`render`] shows it in the text with a caret, as rustc does; for a module
//! that did not come from text, [`crate::text::explain`] shows it in the module's printed form.

use std::collections::BTreeMap;
use std::fmt::{self, Write as _};

use crate::module::Span;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    Error,
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
        })
    }
}

/// A part of a module, by position: symbols, constants, functions and instructions are counted
/// from 0 in their lists. The first number of a part of a function is the function.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Loc {
    Module,
    Symbol(usize),
    Const(usize),
    ConstType(usize),
    ConstData(usize),
    Func(usize),
    Param(usize, usize),
    ResultType(usize, usize),
    /// A whole instruction.
    Inst(usize, usize),
    /// The op's name.
    Op(usize, usize),
    /// The `@symbol` of a `call` or `constant`.
    Callee(usize, usize),
    Operand(usize, usize, usize),
    /// By position in the instruction's attributes.
    Attr(usize, usize, usize),
    /// The name a result is given.
    Result(usize, usize, usize),
    /// The type written for a result.
    Type(usize, usize, usize),
    Return(usize),
    Returned(usize, usize),
}

impl Loc {
    /// The next larger part, which has a place when this one has none.
    fn parent(self) -> Option<Loc> {
        Some(match self {
            Loc::Module => return None,
            Loc::Symbol(_) | Loc::Const(_) | Loc::Func(_) => Loc::Module,
            Loc::ConstType(c) | Loc::ConstData(c) => Loc::Const(c),
            Loc::Param(f, _) | Loc::ResultType(f, _) | Loc::Inst(f, _) | Loc::Return(f) => {
                Loc::Func(f)
            }
            Loc::Returned(f, _) => Loc::Return(f),
            Loc::Op(f, i) => Loc::Inst(f, i),
            Loc::Callee(f, i)
            | Loc::Operand(f, i, _)
            | Loc::Attr(f, i, _)
            | Loc::Result(f, i, _)
            | Loc::Type(f, i, _) => Loc::Op(f, i),
        })
    }
}

/// Where the parts of a module are in a text: made by the parser and by the printer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceMap(BTreeMap<Loc, Span>);

impl SourceMap {
    /// Notes the place of a part.
    pub fn insert(&mut self, loc: Loc, span: Span) {
        self.0.insert(loc, span);
    }

    /// The place of a part, or of the smallest part around it that has one.
    pub fn get(&self, loc: Loc) -> Option<Span> {
        let mut at = Some(loc);
        while let Some(l) = at {
            if let Some(span) = self.0.get(&l) {
                return Some(span.clone());
            }
            at = l.parent();
        }
        None
    }
}

/// A further place that explains a diagnostic.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    pub text: String,
    pub loc: Loc,
    pub span: Span,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    /// The verifier's rule (`V01` …); `None` for errors of the text itself.
    pub code: Option<&'static str>,
    /// One sentence without a full stop.
    pub message: String,
    /// Where, in the module; [`Loc::Module`] for errors of the text itself.
    pub loc: Loc,
    /// Where, in the text; empty at 0 when the module did not come from text.
    pub span: Span,
    /// What stands beside the caret; may be empty.
    pub label: String,
    pub notes: Vec<Note>,
    /// What to do.
    pub help: Option<String>,
}

impl Diagnostic {
    /// An error of the text at `span`.
    pub fn error(message: impl Into<String>, span: Span) -> Self {
        Diagnostic {
            severity: Severity::Error,
            code: None,
            message: message.into(),
            loc: Loc::Module,
            span,
            label: String::new(),
            notes: Vec::new(),
            help: None,
        }
    }

    /// The same with a text beside the caret.
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.label = label.into();
        self
    }

    /// The same with advice.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }

    /// The same with a further place.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>, loc: Loc, span: Span) -> Self {
        self.notes.push(Note { text: text.into(), loc, span });
        self
    }

    /// Points at the place that `map` gives for the diagnostic's part of the module.
    pub fn relocate(&mut self, map: &SourceMap) {
        if let Some(span) = map.get(self.loc) {
            self.span = span;
        }
        for note in &mut self.notes {
            if let Some(span) = map.get(note.loc) {
                note.span = span;
            }
        }
    }
}

/// `error[V01]: message`, without a place.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.code {
            Some(code) => write!(f, "{}[{code}]: {}", self.severity, self.message),
            None => write!(f, "{}: {}", self.severity, self.message),
        }
    }
}

/// Most characters of a source line that are shown; longer lines are cut around the place.
const LINE_WIDTH: usize = 140;

/// Characters shown before the place when a line is cut.
const LEAD: usize = 40;

/// The diagnostics in the text `src`, which the reader knows as `path`.
///
/// Columns count characters from 1. Spans that do not fit `src` are shown at its nearest place.
pub fn render(diagnostics: &[Diagnostic], src: &str, path: &str) -> String {
    let starts: Vec<usize> =
        std::iter::once(0).chain(src.match_indices('\n').map(|(i, _)| i + 1)).collect();
    let source = Source { src, path, starts };
    let mut out = String::new();
    for (i, d) in diagnostics.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        let _ = writeln!(out, "{d}");
        source.snippet(&mut out, &d.span, &d.label);
        for note in &d.notes {
            let _ = writeln!(out, "note: {}", note.text);
            source.snippet(&mut out, &note.span, "");
        }
        if let Some(help) = &d.help {
            let _ = writeln!(out, "help: {help}");
        }
    }
    out
}

struct Source<'a> {
    src: &'a str,
    path: &'a str,
    starts: Vec<usize>,
}

impl Source<'_> {
    /// The nearest character boundary at or before `offset`.
    fn boundary(&self, offset: u32) -> usize {
        let mut at = (offset as usize).min(self.src.len());
        while !self.src.is_char_boundary(at) {
            at -= 1;
        }
        at
    }

    fn snippet(&self, out: &mut String, span: &Span, label: &str) {
        let start = self.boundary(span.start);
        let end = self.boundary(span.end).max(start);
        let line = self.starts.partition_point(|&s| s <= start) - 1;
        let from = self.starts[line];
        let text = self.src[from..].split(['\n', '\r']).next().unwrap_or_default();
        // A place on the line break itself is shown after the last character.
        let column = self.src[from..start].chars().count().min(text.chars().count());
        let marked = self.src[start..end.min(from + text.len()).max(start)].chars().count();

        let number = (line + 1).to_string();
        let pad = " ".repeat(number.len());
        let _ = writeln!(out, "{pad}--> {}:{number}:{}", self.path, column + 1);
        let _ = writeln!(out, "{pad} |");

        let cut = if text.chars().count() > LINE_WIDTH { column.saturating_sub(LEAD) } else { 0 };
        let mut shown = String::new();
        let mut under = String::new();
        if cut > 0 {
            shown.push('…');
            under.push(' ');
        }
        let mut rest = text.chars().skip(cut);
        for (i, c) in rest.by_ref().take(LINE_WIDTH).enumerate() {
            // One column for each character, so that the caret stands under its character.
            shown.push(if c.is_control() { ' ' } else { c });
            let at = cut + i;
            if at < column {
                under.push(' ');
            } else if at < column + marked {
                under.push('^');
            }
        }
        if rest.next().is_some() {
            shown.push('…');
        }
        if marked == 0 {
            under.push('^');
        }
        let _ = writeln!(out, "{}", format!("{number} | {shown}").trim_end());
        let _ = writeln!(out, "{}", format!("{pad} | {under} {label}").trim_end());
    }
}

/// `1 result`, `2 results`.
pub(crate) fn counted(n: usize, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

/// The candidate that `word` was probably meant to be.
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<&'a str> {
    const LONGEST: usize = 64;
    const MOST: usize = 4096;
    let length = word.chars().count();
    if length > LONGEST {
        return None;
    }
    let allowed = (length / 3).max(1);
    candidates
        .into_iter()
        .take(MOST)
        .filter(|c| c.chars().count() <= LONGEST && *c != word)
        .map(|c| (distance(word, c), c))
        .filter(|&(d, c)| d <= allowed && d < c.chars().count())
        .min()
        .map(|(_, c)| c)
}

/// Edits (insert, delete, replace, swap of neighbours) from `a` to `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut before = vec![0; b.len() + 1];
    let mut last: Vec<usize> = (0..=b.len()).collect();
    for i in 0..a.len() {
        let mut row = vec![i + 1; b.len() + 1];
        for j in 0..b.len() {
            let replaced = last[j] + usize::from(a[i] != b[j]);
            row[j + 1] = replaced.min(last[j + 1] + 1).min(row[j] + 1);
            if i > 0 && j > 0 && a[i] == b[j - 1] && a[i - 1] == b[j] {
                row[j + 1] = row[j + 1].min(before[j - 1] + 1);
            }
        }
        before = std::mem::replace(&mut last, row);
    }
    last[b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn carets_stand_under_the_characters() {
        let src = "first\n\tβ = ünk\n";
        let at = src.find('ü').unwrap() as u32;
        let d = Diagnostic::error("what", at..at + 4).label("here").help("do");
        let want = "error: what\n --> f:2:6\n  |\n2 |  β = ünk\n  |      ^^^ here\nhelp: do\n";
        assert_eq!(render(&[d], src, "f"), want);
    }

    #[test]
    fn any_span_is_shown() {
        let long = format!("{}\n{}é", "x".repeat(1000), "y".repeat(300));
        for src in ["", "\n", "é", "a\r\nb", &long] {
            for start in 0..40u32 {
                for span in [start..start, start..start + 3, start * 40..u32::MAX, start..0] {
                    let shown = render(&[Diagnostic::error("m", span)], src, "p");
                    assert!(shown.contains('^') && shown.lines().all(|l| l.chars().count() < 160));
                }
            }
        }
    }

    #[test]
    fn suggestions_are_near() {
        let ops = ["matmul", "mul", "softmax", "add"];
        assert_eq!(did_you_mean("mamtul", ops), Some("matmul"));
        assert_eq!(did_you_mean("softmx", ops), Some("softmax"));
        assert_eq!(did_you_mean("reshape", ops), None);
        assert_eq!(did_you_mean(&"a".repeat(10_000), ops), None);
    }
}
