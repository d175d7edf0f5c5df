//! llama.cpp's grammars (GBNF), translated to llguidance's variant of Lark.
//!
//! GBNF describes characters, Lark describes words that a lexer finds: a word is as long as it can
//! be. So every character becomes a word of its own, and nothing is found greedily that the grammar
//! would divide otherwise. Read are rules, literals with their escapes, classes, `.`, groups,
//! alternatives, `* + ? {n} {n,} {n,m}` and comments; tokens (`<think>`, `<[12]>`) are refused.

use std::collections::HashMap;
use std::fmt::Write;
use std::iter::Peekable;
use std::str::CharIndices;

/// Deepest nesting of groups.
const MOST_DEPTH: usize = 64;
/// Most repetitions that are counted.
const MOST_COUNT: u32 = 2000;
/// The rule that a text must match.
const ROOT: &str = "root";

/// A text is no grammar, or uses what is not supported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {problem}")]
pub struct GbnfError {
    /// From 1.
    pub line: usize,
    pub problem: String,
}

/// The same grammar in Lark's form.
///
/// # Errors
/// The first thing that is wrong, with its line.
pub fn to_lark(text: &str) -> Result<String, GbnfError> {
    let mut reader =
        Reader { text, rest: text.char_indices().peekable(), rules: HashMap::new(), depth: 0 };
    let mut bodies: Vec<(usize, String)> = Vec::new();
    reader.skip(true);
    while reader.peek().is_some() {
        let at = reader.at();
        let name = reader.name()?;
        reader.skip(false);
        if !reader.take_text("::=") {
            return Err(reader.wrong(&format!("`::=` should follow the name `{name}`")));
        }
        reader.skip(true);
        let body = reader.alternatives()?;
        let rule = reader.rule(name, at);
        if std::mem::replace(&mut rule.defined, true) {
            return Err(error(text, at, &format!("the rule `{name}` is defined twice")));
        }
        bodies.push((rule.number, body));
        match reader.peek() {
            None | Some('\n' | '\r') => reader.skip(true),
            Some(c) => return Err(reader.wrong(&format!("`{c}` is not expected here"))),
        }
    }
    // The first in the text, so that the answer is the same every time.
    if let Some((name, rule)) =
        reader.rules.iter().filter(|(_, rule)| !rule.defined).min_by_key(|(_, rule)| rule.first_use)
    {
        return Err(error(text, rule.first_use, &format!("there is no rule `{name}`")));
    }
    let root = reader.rules.get(ROOT).map(|rule| rule.number);
    let root = root.ok_or_else(|| error(text, 0, "there is no rule `root`"))?;
    let mut out = format!("start: r{root}\n");
    for (number, body) in bodies {
        // Writing to a string does not fail.
        let _ = writeln!(out, "r{number}: {body}");
    }
    Ok(out)
}

fn error(text: &str, at: usize, problem: &str) -> GbnfError {
    let line = text[..at].matches('\n').count() + 1;
    GbnfError { line, problem: problem.to_owned() }
}

struct Rule {
    number: usize,
    defined: bool,
    /// Where its name comes first.
    first_use: usize,
}

struct Reader<'a> {
    text: &'a str,
    rest: Peekable<CharIndices<'a>>,
    rules: HashMap<&'a str, Rule>,
    /// Groups that are open.
    depth: usize,
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '-' || c == '_'
}

impl<'a> Reader<'a> {
    fn peek(&mut self) -> Option<char> {
        self.rest.peek().map(|(_, c)| *c)
    }

    fn at(&mut self) -> usize {
        self.rest.peek().map_or(self.text.len(), |(at, _)| *at)
    }

    /// Leaves characters behind.
    fn pass(&mut self, n: usize) {
        for _ in 0..n {
            self.rest.next();
        }
    }

    fn take(&mut self, wanted: char) -> bool {
        self.rest.next_if(|(_, c)| *c == wanted).is_some()
    }

    fn take_text(&mut self, wanted: &str) -> bool {
        let at = self.at();
        let found = self.text[at..].starts_with(wanted);
        if found {
            self.pass(wanted.chars().count());
        }
        found
    }

    fn wrong(&mut self, problem: &str) -> GbnfError {
        let at = self.at();
        error(self.text, at, problem)
    }

    /// Skips white space and comments; line ends only when they say nothing here.
    fn skip(&mut self, lines: bool) {
        while let Some(c) = self.peek() {
            match c {
                ' ' | '\t' => self.pass(1),
                '\n' | '\r' if lines => self.pass(1),
                '#' => while self.rest.next_if(|(_, c)| !matches!(c, '\n' | '\r')).is_some() {},
                _ => return,
            }
        }
    }

    fn name(&mut self) -> Result<&'a str, GbnfError> {
        let start = self.at();
        while self.rest.next_if(|(_, c)| is_name(*c)).is_some() {}
        match &self.text[start..self.at()] {
            "" => Err(self.wrong("the name of a rule is expected here")),
            name => Ok(name),
        }
    }

    fn rule(&mut self, name: &'a str, at: usize) -> &mut Rule {
        let number = self.rules.len();
        self.rules.entry(name).or_insert(Rule { number, defined: false, first_use: at })
    }

    fn alternatives(&mut self) -> Result<String, GbnfError> {
        let mut out = self.sequence()?;
        while self.take('|') {
            self.skip(true);
            out += " | ";
            out += &self.sequence()?;
        }
        Ok(out)
    }

    fn sequence(&mut self) -> Result<String, GbnfError> {
        let mut out = String::new();
        while let Some(c) = self.peek() {
            let item = match c {
                '"' => self.literal()?,
                '[' => self.class()?,
                '.' => {
                    self.rest.next();
                    "/[\\x{0}-\\x{10FFFF}]/".to_owned()
                }
                '(' => self.group()?,
                c if is_name(c) => {
                    let at = self.at();
                    let name = self.name()?;
                    format!("r{}", self.rule(name, at).number)
                }
                '<' | '!' => {
                    return Err(self.wrong("tokens (`<...>`, `!<...>`) are not supported"));
                }
                _ => break,
            };
            self.skip(self.depth > 0);
            let item = self.repeated(item)?;
            self.skip(self.depth > 0);
            if !item.is_empty() {
                out += if out.is_empty() { "" } else { " " };
                out += &item;
            }
        }
        // An empty alternative.
        Ok(if out.is_empty() { "\"\"".to_owned() } else { out })
    }

    fn group(&mut self) -> Result<String, GbnfError> {
        self.rest.next();
        self.depth += 1;
        if self.depth > MOST_DEPTH {
            return Err(self.wrong(&format!("groups are nested deeper than {MOST_DEPTH}")));
        }
        self.skip(true);
        let inner = self.alternatives()?;
        if !self.take(')') {
            return Err(self.wrong("`)` is expected here"));
        }
        self.depth -= 1;
        Ok(format!("({inner})"))
    }

    /// An item with the repetitions behind it; empty for none.
    fn repeated(&mut self, mut item: String) -> Result<String, GbnfError> {
        let mut times = 0;
        loop {
            let range = match self.peek() {
                Some(op @ ('*' | '+' | '?')) => {
                    self.rest.next();
                    op.to_string()
                }
                Some('{') => self.count()?,
                _ => return Ok(item),
            };
            times += 1;
            if times > MOST_DEPTH {
                return Err(self.wrong("too many repetitions of repetitions"));
            }
            if range.is_empty() || item.is_empty() {
                item.clear();
            } else if times > 1 {
                item = format!("({item}){range}");
            } else {
                item += &range;
            }
            self.skip(self.depth > 0);
        }
    }

    /// `{n}`, `{n,}` or `{n,m}`; empty for no times.
    fn count(&mut self) -> Result<String, GbnfError> {
        self.rest.next();
        self.skip(false);
        let least = self.number()?.unwrap_or(0);
        self.skip(false);
        let most = match self.take(',') {
            true => {
                self.skip(false);
                self.number()?
            }
            false => Some(least),
        };
        self.skip(false);
        if !self.take('}') {
            return Err(self.wrong("`}` is expected here"));
        }
        match most {
            Some(0) => Ok(String::new()),
            Some(most) if most < least => {
                Err(self.wrong(&format!("{{{least},{most}}} counts backwards")))
            }
            Some(most) => Ok(format!("{{{least},{most}}}")),
            None => Ok(format!("{{{least},}}")),
        }
    }

    fn number(&mut self) -> Result<Option<u32>, GbnfError> {
        let start = self.at();
        while self.rest.next_if(|(_, c)| c.is_ascii_digit()).is_some() {}
        match &self.text[start..self.at()] {
            "" => Ok(None),
            digits => match digits.parse() {
                Ok(n) if n <= MOST_COUNT => Ok(Some(n)),
                _ => {
                    Err(self.wrong(&format!("more than {MOST_COUNT} repetitions are not counted")))
                }
            },
        }
    }

    fn literal(&mut self) -> Result<String, GbnfError> {
        self.rest.next();
        let mut items = Vec::new();
        while !self.take('"') {
            let c = self.character("a literal")?;
            items.push(serde_json::Value::from(c.to_string()).to_string());
        }
        Ok(match items.as_slice() {
            [] => String::new(),
            [one] => one.clone(),
            _ => format!("({})", items.join(" ")),
        })
    }

    fn class(&mut self) -> Result<String, GbnfError> {
        self.rest.next();
        let mut out = if self.take('^') { "/[^".to_owned() } else { "/[".to_owned() };
        let empty = out.len();
        while !self.take(']') {
            let low = self.character("a class")?;
            let _ = write!(out, "\\x{{{:X}}}", u32::from(low));
            let is_range = self.peek() == Some('-') && !self.text[self.at()..].starts_with("-]");
            if is_range {
                self.rest.next();
                let high = self.character("a class")?;
                if high < low {
                    return Err(self.wrong(&format!("the range {low:?}-{high:?} is backwards")));
                }
                let _ = write!(out, "-\\x{{{:X}}}", u32::from(high));
            }
        }
        if out.len() == empty {
            return Err(self.wrong("a class should name characters"));
        }
        out += "]/";
        Ok(out)
    }

    /// A character within quotes or brackets, with its escapes.
    fn character(&mut self, within: &str) -> Result<char, GbnfError> {
        let open = format!("{within} is not closed");
        match self.rest.next().map(|(_, c)| c) {
            None | Some('\n') => Err(self.wrong(&open)),
            Some('\\') => {
                let (at, escaped) =
                    self.rest.next().ok_or_else(|| error(self.text, self.text.len(), &open))?;
                let digits = match escaped {
                    'n' => return Ok('\n'),
                    'r' => return Ok('\r'),
                    't' => return Ok('\t'),
                    '\\' | '"' | '[' | ']' | '-' | '^' | '/' => return Ok(escaped),
                    'x' => 2,
                    'u' => 4,
                    'U' => 8,
                    _ => {
                        return Err(error(self.text, at, &format!("\\{escaped} is not known")));
                    }
                };
                let hex = self.text.get(at + 1..at + 1 + digits);
                let code = hex.and_then(|hex| u32::from_str_radix(hex, 16).ok());
                let c = code.and_then(char::from_u32);
                let c = c.ok_or_else(|| {
                    error(
                        self.text,
                        at,
                        &format!("\\{escaped} needs {digits} digits of a character"),
                    )
                })?;
                self.pass(digits);
                Ok(c)
            }
            Some(c) => Ok(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_has_a_counterpart() {
        let table = [
            ("root ::= \"ab\"*", "start: r0\nr0: (\"a\" \"b\")*\n"),
            (
                "root ::= [a-z0] . | \"\"",
                "start: r0\nr0: /[\\x{61}-\\x{7A}\\x{30}]/ /[\\x{0}-\\x{10FFFF}]/ | \"\"\n",
            ),
            (
                "# c\nroot ::= (x-y |\n [^\\n\\]-]) # c\n\nx-y ::= \"\\x41\\u00e9\\\"\"{2,3}\n",
                "start: r1\nr1: (r0 | /[^\\x{A}\\x{5D}\\x{2D}]/)\nr0: (\"A\" \"é\" \"\\\"\"){2,3}\n",
            ),
            ("root ::= \"a\"{3}+ \"b\"{0} \"c\"{2,}", "start: r0\nr0: (\"a\"{3,3})+ \"c\"{2,}\n"),
            ("a ::= root\nroot ::= \"x\" a?", "start: r0\na"),
        ];
        for (text, want) in &table[..4] {
            assert_eq!(to_lark(text).as_deref(), Ok(*want), "{text}");
        }
        assert!(to_lark(table[4].0).unwrap().contains("\"x\" r"));
    }

    #[test]
    fn what_is_wrong_has_a_line() {
        let deep = format!("root ::= {}\"a\"", "(".repeat(100_000));
        let table = [
            ("root ::= this is (not valid GBNF", 1, "`)` is expected"),
            ("", 1, "no rule `root`"),
            ("a ::= \"x\"", 1, "no rule `root`"),
            ("root ::= \"x\"\n\nroot ::= \"y\"", 3, "defined twice"),
            ("root ::= \"x\"\n  nothing", 2, "`::=` should follow"),
            ("root ::= nothing", 1, "no rule `nothing`"),
            ("root ::= \"open", 1, "not closed"),
            ("root ::= [a", 1, "not closed"),
            ("root ::= [z-a]", 1, "backwards"),
            ("root ::= []", 1, "should name"),
            ("root ::= \"\\q\"", 1, "\\q is not known"),
            ("root ::= \"\\ud800\"", 1, "digits of a character"),
            ("root ::= \"\\x4", 1, "digits of a character"),
            ("root ::= \"a\"{5,2}", 1, "backwards"),
            ("root ::= \"a\"{99999999999}", 1, "more than"),
            ("root ::= <think>", 1, "not supported"),
            ("root ::= \"a\" ;", 1, "not expected"),
            (&deep, 1, "deeper"),
        ];
        for (text, line, want) in table {
            let error = to_lark(text).unwrap_err();
            assert!(error.problem.contains(want), "{text:.40}: {error}");
            assert_eq!(error.line, line, "{text:.40}");
        }
    }
}
