//! From text to a module: reads, resolves, and collects what is wrong.

use lalrpop_util::{ErrorRecovery, ParseError};

use super::lexer::{self, Tok, short};
use super::{ast, lower};
use crate::diag::{Diagnostic, SourceMap, did_you_mean};
use crate::module::Module;
use crate::verify::verify;

lalrpop_util::lalrpop_mod!(
    #[allow(clippy::all, unused, missing_docs)] // generated code
    grammar,
    "/text/grammar.rs"
);

/// Greatest length of a text in bytes.
pub const MAX_SOURCE: usize = 256 << 20;

/// Most diagnostics that are collected for one text or module.
pub const MAX_DIAGNOSTICS: usize = 50;

/// The module that `src` describes, or what is wrong with the text.
///
/// Names are resolved and types read; the rules of the IR itself are the verifier's
/// ([`parse_and_verify`] applies both).
pub fn parse_module(src: &str) -> Result<Module, Vec<Diagnostic>> {
    parse_with_map(src).map(|(module, _)| module)
}

/// The module that `src` describes, when it also keeps every rule of the IR; diagnostics of both
/// kinds have their places in `src`.
pub fn parse_and_verify(src: &str) -> Result<Module, Vec<Diagnostic>> {
    let (module, map) = parse_with_map(src)?;
    verify(&module).map_err(|mut diagnostics| {
        diagnostics.iter_mut().for_each(|d| d.relocate(&map));
        diagnostics
    })?;
    Ok(module)
}

/// As [`parse_module`], with the place of every part of the module.
pub fn parse_with_map(src: &str) -> Result<(Module, SourceMap), Vec<Diagnostic>> {
    if src.len() > MAX_SOURCE {
        let message = format!("the text has {} bytes, more than {MAX_SOURCE}", src.len());
        return Err(vec![Diagnostic::error(message, 0..0)]);
    }
    let tokens = lexer::lex(src).map_err(|at| {
        let message = format!("the text has more than {} tokens", lexer::MAX_TOKENS);
        let d = Diagnostic::error(message, ast::span((at, at)));
        vec![d.help("write large constants as `dense<0x…>` or `file(…)`")]
    })?;
    let mut errors = Vec::new();
    let parsed = grammar::FileParser::new().parse(&mut errors, tokens);
    let mut diagnostics: Vec<Diagnostic> = errors
        .into_iter()
        .take(MAX_DIAGNOSTICS)
        .map(|e: ErrorRecovery<usize, Tok, ()>| syntax_error(src, e.error))
        .collect();
    match parsed {
        Ok(tree) => {
            let (module, map, more) = lower::lower(&tree);
            diagnostics.extend(more);
            diagnostics.sort_by_key(|d| d.span.start);
            diagnostics.truncate(MAX_DIAGNOSTICS);
            if diagnostics.is_empty() { Ok((module, map)) } else { Err(diagnostics) }
        }
        Err(e) => {
            diagnostics.push(syntax_error(src, e));
            diagnostics.truncate(MAX_DIAGNOSTICS);
            Err(diagnostics)
        }
    }
}

fn syntax_error(src: &str, error: ParseError<usize, Tok<'_>, ()>) -> Diagnostic {
    match error {
        ParseError::UnrecognizedToken { token: (start, tok, end), expected } => {
            unexpected(src, tok, (start, end), &expected)
        }
        ParseError::UnrecognizedEof { expected, .. } => {
            let at = src.trim_end().len();
            Diagnostic::error("the text ends too early", ast::span((at, at)))
                .label(expectation(&expected))
        }
        ParseError::ExtraToken { token: (start, tok, end) } => {
            unexpected(src, tok, (start, end), &[])
        }
        ParseError::InvalidToken { location } => {
            Diagnostic::error("no token begins here", ast::span((location, location)))
        }
        ParseError::User { error: () } => Diagnostic::error("the text cannot be read", 0..0),
    }
}

fn unexpected(src: &str, tok: Tok, at: (usize, usize), expected: &[String]) -> Diagnostic {
    let span = ast::span(at);
    let label = expectation(expected);
    match tok {
        Tok::Bad(text) if text.contains('"') => {
            Diagnostic::error("the quotes are not closed on this line", span)
        }
        Tok::Bad(text) => {
            Diagnostic::error(format!("`{}` has no meaning here", short(text)), span).label(label)
        }
        Tok::Ident(word) => {
            let d = Diagnostic::error(format!("unexpected `{}`", short(word)), span).label(label);
            let words = expected.iter().map(|e| e.trim_matches('"'));
            match did_you_mean(word, words.filter(|w| w.bytes().all(|b| b.is_ascii_lowercase()))) {
                Some(meant) => d.help(format!("did you mean `{meant}`?")),
                None => d,
            }
        }
        Tok::End => {
            // The statement's end has no extent: point behind what was read last.
            let end = src[..at.0].trim_end().len();
            Diagnostic::error("the statement ends too early", ast::span((end, end))).label(label)
        }
        tok if expected.is_empty() => Diagnostic::error(format!("unexpected {tok}"), span)
            .label("expected the end of the text"),
        tok => Diagnostic::error(format!("unexpected {tok}"), span).label(label),
    }
}

/// `expected A, B or C`, when they are few.
fn expectation(expected: &[String]) -> String {
    const MOST: usize = 5;
    let mut words: Vec<String> = expected
        .iter()
        .map(|e| e.trim_matches('"'))
        .filter(|e| *e != "unknown text")
        .map(|e| if e.contains(' ') || e.len() > 8 { e.to_owned() } else { format!("`{e}`") })
        .map(|e| match e.as_str() {
            "`name`" => "a name".to_owned(),
            "`%value`" => "a `%value`".to_owned(),
            "`@name`" => "an `@name`".to_owned(),
            "`string`" => "a string".to_owned(),
            "`number`" => "a number".to_owned(),
            "`integer`" => "an integer".to_owned(),
            "hexadecimal bytes" => "bytes as `0x…`".to_owned(),
            "[dimension]" => "a dimension".to_owned(),
            _ => e,
        })
        .collect();
    if words.is_empty() || words.len() > MOST {
        return String::new();
    }
    let last = words.pop().unwrap_or_default();
    if words.is_empty() {
        return format!("expected {last}");
    }
    format!("expected {} or {last}", words.join(", "))
}
