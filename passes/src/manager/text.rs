//! Pipelines as text.
//!
//! A pipeline is a comma-separated list of pass names. A pass may carry options in braces:
//! `fuse{disable=matmul-gated|matmul-multi}` runs `fuse` without two of its rules, and
//! `autodiff{func=loss,wrt=x|w}` tells a pass what to work on. Several values of one option are
//! separated by `|`. Which options there are, [`Pass::options`] says; every pass with rules takes
//! `disable`.

use std::fmt;
use std::ops::Range;

use super::{Pipeline, Step, passes};
use crate::pass::{OptionKind, OptionSpec, Options, Pass};
use crate::util::nearest;

/// A pipeline's text cannot be read. [`Display`](fmt::Display) shows the text with a caret.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParsePipelineError {
    /// The pipeline as given.
    pub text: String,
    /// The bytes of it that are wrong.
    pub span: Range<usize>,
    pub message: String,
}

impl fmt::Display for ParsePipelineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let before = self.text[..self.span.start].chars().count();
        let width = self.text[self.span.clone()].chars().count().max(1);
        writeln!(f, "in the pipeline at column {}: {}", before + 1, self.message)?;
        writeln!(f, "  {}", self.text.replace(['\n', '\t'], " "))?;
        write!(f, "  {}{}", " ".repeat(before), "^".repeat(width))
    }
}

impl std::error::Error for ParsePipelineError {}

impl fmt::Display for Pipeline {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, step) in self.steps.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            f.write_str(step.pass.name())?;
            let disabled = Some(("disable", step.disabled.join("|")));
            let given = step.options.0.iter().map(|(name, values)| (*name, values.join("|")));
            let all: Vec<String> = disabled
                .filter(|(_, rules)| !rules.is_empty())
                .into_iter()
                .chain(given)
                .map(|(name, values)| format!("{name}={values}"))
                .collect();
            if !all.is_empty() {
                write!(f, "{{{}}}", all.join(","))?;
            }
        }
        Ok(())
    }
}

impl Pipeline {
    /// Reads a pipeline. An empty text is the empty pipeline.
    ///
    /// # Errors
    /// At an unknown pass, option or rule, with its place and the name that was probably meant.
    pub fn parse(text: &str) -> Result<Pipeline, ParsePipelineError> {
        Pipeline::parse_with(text, passes())
    }

    /// As [`Pipeline::parse`], where the text may name these passes and no others.
    ///
    /// # Errors
    /// As [`Pipeline::parse`].
    pub fn parse_with(
        text: &str,
        passes: &[&'static dyn Pass],
    ) -> Result<Pipeline, ParsePipelineError> {
        let mut parser = Parser { text, at: 0, passes };
        let mut steps = Vec::new();
        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(Pipeline { steps });
        }
        loop {
            steps.push(parser.step()?);
            if parser.rest().is_empty() {
                return Ok(Pipeline { steps });
            }
            parser.expect(",", "`,` or the end")?;
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    passes: &'a [&'static dyn Pass],
}

impl<'a> Parser<'a> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip_space(&mut self) {
        self.at = self.text.len() - self.rest().trim_start().len();
    }

    fn error(&self, span: Range<usize>, message: String) -> ParsePipelineError {
        ParsePipelineError { text: self.text.to_owned(), span, message }
    }

    fn expect(&mut self, token: &str, what: &str) -> Result<(), ParsePipelineError> {
        if !self.rest().starts_with(token) {
            let width = self.rest().chars().next().map_or(0, char::len_utf8);
            return Err(self.error(self.at..self.at + width, format!("expected {what}")));
        }
        self.at += token.len();
        self.skip_space();
        Ok(())
    }

    /// A word of letters, digits, `-`, `_` and `also`, with its place.
    fn word(
        &mut self,
        also: &[char],
        what: &str,
    ) -> Result<(&'a str, Range<usize>), ParsePipelineError> {
        let is_part =
            |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_' || also.contains(&c);
        let len = self.rest().find(|c| !is_part(c)).unwrap_or(self.rest().len());
        if len == 0 {
            let width = self.rest().chars().next().map_or(0, char::len_utf8);
            return Err(self.error(self.at..self.at + width, format!("expected {what}")));
        }
        let span = self.at..self.at + len;
        self.at = span.end;
        self.skip_space();
        Ok((&self.text[span.clone()], span))
    }

    fn step(&mut self) -> Result<Step, ParsePipelineError> {
        let (name, span) = self.word(&[], "the name of a pass")?;
        let names = || self.passes.iter().map(|p| p.name());
        let Some(pass) = self.passes.iter().copied().find(|p| p.name() == name) else {
            return Err(self.error(span, unknown("pass", name, names)));
        };
        let mut step = Step { pass, disabled: Vec::new(), options: Options::default() };
        if self.rest().starts_with('{') {
            self.expect("{", "`{`")?;
            while !self.rest().starts_with('}') {
                self.option(&mut step)?;
                if !self.rest().starts_with('}') {
                    self.expect(",", "`,`, `|` or `}`")?;
                }
            }
            self.expect("}", "`}`")?;
        }
        let given = |spec: &OptionSpec| step.options.0.contains_key(spec.name);
        match pass.options().iter().find(|spec| spec.required && !given(spec)) {
            Some(spec) => {
                let message = format!("`{name}` needs the option `{}`: {}", spec.name, spec.doc);
                Err(self.error(span, message))
            }
            None => Ok(step),
        }
    }

    /// One option with its values.
    fn option(&mut self, step: &mut Step) -> Result<(), ParsePipelineError> {
        let (name, span) = self.word(&[], "an option such as `disable=RULE`")?;
        let spec = step.pass.options().iter().find(|spec| spec.name == name);
        if spec.is_none() && name != "disable" {
            let own = step.pass.options();
            let names = || own.iter().map(|spec| spec.name).chain(["disable"]);
            return Err(self.error(span, unknown("option", name, names)));
        }
        if spec.is_some_and(|spec| step.options.0.contains_key(spec.name)) {
            return Err(self.error(span, format!("option `{name}` is given twice")));
        }
        self.expect("=", "`=`")?;
        let mut values = Vec::new();
        loop {
            match spec {
                None => step.disabled.push(self.rule(step.pass)?),
                Some(spec) => {
                    let value = self.value(spec, values.is_empty())?;
                    values.push(value);
                }
            }
            if !self.rest().starts_with('|') {
                break;
            }
            self.expect("|", "`|`")?;
        }
        if let Some(spec) = spec {
            step.options.0.insert(spec.name, values);
        }
        Ok(())
    }

    /// One value of an option.
    fn value(&mut self, spec: &OptionSpec, first: bool) -> Result<String, ParsePipelineError> {
        let what = if spec.kind == OptionKind::Number { "a whole number" } else { "a name" };
        let (value, span) = self.word(&['.', '$'], what)?;
        if spec.kind != OptionKind::Names && !first {
            return Err(self.error(span, format!("`{}` takes one value", spec.name)));
        }
        if spec.kind == OptionKind::Number && value.parse::<u64>().is_err() {
            return Err(self.error(span, format!("expected {what}, found `{value}`")));
        }
        Ok(value.to_owned())
    }

    fn rule(&mut self, pass: &dyn Pass) -> Result<&'static str, ParsePipelineError> {
        let (name, span) = self.word(&[], "the name of a rule")?;
        let rules = pass.rules();
        if let Some(rule) = rules.iter().find(|r| r.name == name) {
            return Ok(rule.name);
        }
        if rules.is_empty() {
            let message = format!("pass `{}` has no rules that can be switched off", pass.name());
            return Err(self.error(span, message));
        }
        Err(self.error(span, unknown("rule", name, || rules.iter().map(|r| r.name))))
    }
}

fn unknown<I: Iterator<Item = &'static str>>(
    kind: &str,
    name: &str,
    candidates: impl Fn() -> I,
) -> String {
    match nearest(name, candidates()) {
        Some(meant) => format!("unknown {kind} `{name}`; did you mean `{meant}`?"),
        None => {
            let all: Vec<&str> = candidates().collect();
            format!("unknown {kind} `{name}`; there are {}", all.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manager::DEFAULT_PIPELINE;

    #[test]
    fn pipelines_round_trip() {
        let texts = [
            "",
            "cse",
            "cse,fold,dce",
            "fuse{disable=matmul-add|matmul-multi},dce",
            "autodiff{func=main.grad,wrt=x|w,result=1}",
        ];
        for text in texts {
            assert_eq!(Pipeline::parse(text).unwrap().to_string(), text);
        }
        let spaced = Pipeline::parse(" cse , fuse { disable = matmul-add } ").unwrap();
        assert_eq!(spaced.to_string(), "cse,fuse{disable=matmul-add}");
        assert!(Pipeline::parse(DEFAULT_PIPELINE).is_ok());
    }

    #[test]
    fn errors_say_where_and_what_was_meant() {
        let table = [
            ("cse,fuze", 4..8, "unknown pass `fuze`; did you mean `fuse`?"),
            ("cse,,dce", 4..5, "expected the name of a pass"),
            ("cse,", 4..4, "expected the name of a pass"),
            ("cse dce", 4..5, "expected `,` or the end"),
            (
                "fuse{disable=matmul-ad}",
                13..22,
                "unknown rule `matmul-ad`; did you mean `matmul-add`?",
            ),
            ("dce{disable=x}", 12..13, "pass `dce` has no rules that can be switched off"),
            ("fuse{enable=x}", 5..11, "unknown option `enable`; there are disable"),
            ("autodiff{fun=main}", 9..12, "unknown option `fun`; did you mean `func`?"),
            ("autodiff{func=a|b}", 16..17, "`func` takes one value"),
            ("autodiff{func=a,func=b}", 16..20, "option `func` is given twice"),
            ("autodiff{result=one}", 16..19, "expected a whole number, found `one`"),
            ("autodiff{wrt=}", 13..14, "expected a name"),
            (
                "cse,autodiff{func=main}",
                4..12,
                "`autodiff` needs the option `wrt`: the parameters it differentiates with \
                 respect to",
            ),
            ("fuse{disable=matmul-add", 23..23, "expected `,`, `|` or `}`"),
            ("fuse{disable", 12..12, "expected `=`"),
            ("é", 0..2, "expected the name of a pass"),
        ];
        for (text, span, message) in table {
            let error = Pipeline::parse(text).err().expect(text);
            assert_eq!((error.span.clone(), error.message.as_str()), (span, message), "{text}");
        }
        let shown = Pipeline::parse("cse,fuze").err().unwrap().to_string();
        let want = "in the pipeline at column 5: unknown pass `fuze`; did you mean `fuse`?\n  \
                    cse,fuze\n      ^^^^";
        assert_eq!(shown, want);
    }
}
