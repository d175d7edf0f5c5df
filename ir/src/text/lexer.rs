//! Tokens of the text form.
//!
//! Inside `tensor<…>` other rules hold (`2x3xf32` is five tokens there and none outside), so the
//! lexer changes between two sets of tokens. Line breaks matter little: an instruction, a
//! declaration or a closing brace at the start of a line ends the statement before it, which the
//! lexer marks by [`Tok::End`]. So a broken statement never drags the next one along.

use std::fmt;

use logos::{Lexer, Logos};

/// A token. Names come without their sigil, strings and quoted names with their quotes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Tok<'s> {
    Module,
    Sym,
    In,
    Const,
    Func,
    Return,
    Donate,
    File,
    Dense,
    Sha256,
    Tensor,
    True,
    False,
    LBrace,
    RBrace,
    LParen,
    RParen,
    LBracket,
    RBracket,
    Lt,
    Gt,
    Comma,
    Colon,
    Eq,
    Arrow,
    DotDotEq,
    /// The `x` between dimensions.
    Times,
    Ident(&'s str),
    /// `%name`
    Value(&'s str),
    /// `@name`
    Global(&'s str),
    Str(&'s str),
    Int(&'s str),
    Float(&'s str),
    Hex(&'s str),
    /// A dimension in brackets, brackets included.
    Dim(&'s str),
    /// The end of a statement.
    End,
    /// Text that is no token.
    Bad(&'s str),
}

/// What a reader would call the token.
impl fmt::Display for Tok<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Tok::Module => "module",
            Tok::Sym => "sym",
            Tok::In => "in",
            Tok::Const => "const",
            Tok::Func => "func",
            Tok::Return => "return",
            Tok::Donate => "donate",
            Tok::File => "file",
            Tok::Dense => "dense",
            Tok::Sha256 => "sha256",
            Tok::Tensor => "tensor",
            Tok::True => "true",
            Tok::False => "false",
            Tok::LBrace => "{",
            Tok::RBrace => "}",
            Tok::LParen => "(",
            Tok::RParen => ")",
            Tok::LBracket => "[",
            Tok::RBracket => "]",
            Tok::Lt => "<",
            Tok::Gt => ">",
            Tok::Comma => ",",
            Tok::Colon => ":",
            Tok::Eq => "=",
            Tok::Arrow => "->",
            Tok::DotDotEq => "..=",
            Tok::Times => "x",
            Tok::End => return f.write_str("the end of the statement"),
            Tok::Value(s) => return write!(f, "`%{}`", short(s)),
            Tok::Global(s) => return write!(f, "`@{}`", short(s)),
            Tok::Ident(s)
            | Tok::Str(s)
            | Tok::Int(s)
            | Tok::Float(s)
            | Tok::Hex(s)
            | Tok::Dim(s)
            | Tok::Bad(s) => return write!(f, "`{}`", short(s)),
        };
        write!(f, "`{text}`")
    }
}

/// The beginning of a text of unknown length.
pub fn short(text: &str) -> String {
    const MOST: usize = 40;
    let mut out: String =
        text.chars().take(MOST).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if text.chars().nth(MOST).is_some() {
        out.push('…');
    }
    out
}

/// Words that cannot name an attribute or a symbol without quotes.
pub fn is_keyword(word: &str) -> bool {
    Main::lexer(word).next().is_some_and(|t| !matches!(t, Ok(Main::Ident)))
}

#[derive(Logos, Clone, Copy, Debug, PartialEq)]
#[logos(skip(r"[ \t\r\n\f]+"))]
#[logos(skip(r"//[^\n]*", allow_greedy = true))]
enum Main {
    #[token("module")]
    Module,
    #[token("sym")]
    Sym,
    #[token("in")]
    In,
    #[token("const")]
    Const,
    #[token("func")]
    Func,
    #[token("return")]
    Return,
    #[token("donate")]
    Donate,
    #[token("file")]
    File,
    #[token("dense")]
    Dense,
    #[token("sha256")]
    Sha256,
    #[token("tensor")]
    Tensor,
    #[token("true")]
    True,
    #[token("false")]
    False,
    #[token("{")]
    LBrace,
    #[token("}")]
    RBrace,
    #[token("(")]
    LParen,
    #[token(")")]
    RParen,
    #[token("[")]
    LBracket,
    #[token("]")]
    RBracket,
    #[token("<")]
    Lt,
    #[token(">")]
    Gt,
    #[token(",")]
    Comma,
    #[token(":")]
    Colon,
    #[token("=")]
    Eq,
    #[token("->")]
    Arrow,
    #[token("..=")]
    DotDotEq,
    #[regex(r"[A-Za-z_][A-Za-z0-9_]*")]
    Ident,
    #[regex(r"%[A-Za-z0-9_.$-]+")]
    #[regex(r#"%"([^"\\\n]|\\[^\n])*""#)]
    Value,
    #[regex(r"@[A-Za-z0-9_.$-]+")]
    #[regex(r#"@"([^"\\\n]|\\[^\n])*""#)]
    Global,
    #[regex(r#""([^"\\\n]|\\[^\n])*""#)]
    Str,
    #[regex(r"-?[0-9]+")]
    Int,
    #[regex(r"-?[0-9]+\.[0-9]+([eE][+-]?[0-9]+)?")]
    #[regex(r"-?[0-9]+[eE][+-]?[0-9]+")]
    #[token("inf")]
    #[token("-inf")]
    #[token("nan")]
    Float,
    #[regex(r"0x[0-9a-fA-F]*")]
    Hex,
}

#[derive(Logos, Clone, Copy, Debug, PartialEq)]
#[logos(skip(r"[ \t\r\f]+"))]
enum InType {
    #[regex(r"[0-9]+")]
    Int,
    #[token("x")]
    Times,
    #[regex(r"\[[^\]\n>]*\]")]
    Dim,
    // Element types and layouts; none begins with `x`.
    #[regex(r"[A-Za-wyz_][A-Za-z0-9_]*")]
    Ident,
    #[token(",")]
    Comma,
    #[token(">")]
    Gt,
    // A type lies on one line: what follows is not swallowed when `>` is missing.
    #[token("\n")]
    Newline,
}

fn main_tok(kind: Main, s: &str) -> Tok<'_> {
    match kind {
        Main::Module => Tok::Module,
        Main::Sym => Tok::Sym,
        Main::In => Tok::In,
        Main::Const => Tok::Const,
        Main::Func => Tok::Func,
        Main::Return => Tok::Return,
        Main::Donate => Tok::Donate,
        Main::File => Tok::File,
        Main::Dense => Tok::Dense,
        Main::Sha256 => Tok::Sha256,
        Main::Tensor => Tok::Tensor,
        Main::True => Tok::True,
        Main::False => Tok::False,
        Main::LBrace => Tok::LBrace,
        Main::RBrace => Tok::RBrace,
        Main::LParen => Tok::LParen,
        Main::RParen => Tok::RParen,
        Main::LBracket => Tok::LBracket,
        Main::RBracket => Tok::RBracket,
        Main::Lt => Tok::Lt,
        Main::Gt => Tok::Gt,
        Main::Comma => Tok::Comma,
        Main::Colon => Tok::Colon,
        Main::Eq => Tok::Eq,
        Main::Arrow => Tok::Arrow,
        Main::DotDotEq => Tok::DotDotEq,
        Main::Ident => Tok::Ident(s),
        Main::Value => Tok::Value(&s[1..]),
        Main::Global => Tok::Global(&s[1..]),
        Main::Str => Tok::Str(s),
        Main::Int => Tok::Int(s),
        Main::Float => Tok::Float(s),
        Main::Hex => Tok::Hex(s),
    }
}

/// A token between its byte offsets.
pub type Spanned<'s> = (usize, Tok<'s>, usize);

/// Most tokens of one text.
pub const MAX_TOKENS: usize = 4 << 20;

/// All tokens with the ends of statements marked, or the offset at which there were too many.
pub fn lex(src: &str) -> Result<Vec<Spanned<'_>>, usize> {
    let raw = lex_raw(src)?;
    Ok(mark_ends(src, &raw))
}

enum Mode<'s> {
    Main(Lexer<'s, Main>),
    InType(Lexer<'s, InType>),
}

fn lex_raw(src: &str) -> Result<Vec<Spanned<'_>>, usize> {
    let mut out: Vec<Spanned> = Vec::new();
    let mut mode = Mode::Main(Main::lexer(src));
    loop {
        let (tok, span) = match &mut mode {
            Mode::Main(lexer) => {
                let Some(kind) = lexer.next() else { break };
                let s = lexer.slice();
                (kind.map_or(Tok::Bad(s), |kind| main_tok(kind, s)), lexer.span())
            }
            Mode::InType(lexer) => {
                let Some(kind) = lexer.next() else { break };
                let s = lexer.slice();
                let tok = match kind {
                    Ok(InType::Int) => Tok::Int(s),
                    Ok(InType::Times) => Tok::Times,
                    Ok(InType::Dim) => Tok::Dim(s),
                    Ok(InType::Ident) => Tok::Ident(s),
                    Ok(InType::Comma) => Tok::Comma,
                    Ok(InType::Gt) => Tok::Gt,
                    // The line break itself is no token, but it ends the type.
                    Ok(InType::Newline) => Tok::End,
                    Err(()) => Tok::Bad(s),
                };
                (tok, lexer.span())
            }
        };
        let after_tensor = matches!(out.last(), Some((_, Tok::Tensor, _)));
        mode = match mode {
            Mode::Main(lexer) if tok == Tok::Lt && after_tensor => Mode::InType(lexer.morph()),
            Mode::InType(lexer) if matches!(tok, Tok::Gt | Tok::End) => Mode::Main(lexer.morph()),
            mode => mode,
        };
        if tok == Tok::End {
            continue;
        }
        if out.len() == MAX_TOKENS {
            return Err(span.start);
        }
        match (out.last_mut(), tok) {
            // Neighbouring characters that are no tokens make one.
            (Some((from, last @ Tok::Bad(_), to)), Tok::Bad(_)) if *to == span.start => {
                *to = span.end;
                *last = Tok::Bad(&src[*from..span.end]);
            }
            _ => out.push((span.start, tok, span.end)),
        }
    }
    Ok(out)
}

/// Inserts [`Tok::End`] where statements end.
fn mark_ends<'s>(src: &'s str, raw: &[Spanned<'s>]) -> Vec<Spanned<'s>> {
    let mut out: Vec<Spanned> = Vec::with_capacity(raw.len() + raw.len() / 8);
    // Of the statement that is being read: whether it has tokens, whether its `{` opens a body,
    // how many brackets are open.
    let (mut open, mut heads_body, mut depth) = (false, false, 0usize);
    for (i, &(start, tok, end)) in raw.iter().enumerate() {
        let previous = i.checked_sub(1).map(|p| raw[p]);
        let new_line = previous.is_none_or(|(_, _, to)| src[to..start].contains('\n'));
        let starts = match tok {
            Tok::Sym | Tok::Const | Tok::Func | Tok::Return | Tok::Module => true,
            Tok::Value(_) => new_line && defines(&raw[i..]),
            Tok::Bad(_) => new_line && depth == 0,
            Tok::Ident(_) => {
                let continued = matches!(
                    previous,
                    Some((_, Tok::Comma | Tok::Eq | Tok::Colon | Tok::Arrow, _))
                );
                new_line && depth == 0 && !continued
            }
            _ => false,
        };
        let closes_body = tok == Tok::RBrace && depth == 0;
        if open && (starts || closes_body) {
            let at = previous.map_or(start, |(_, _, to)| to);
            out.push((at, Tok::End, at));
            (open, heads_body, depth) = (false, false, 0);
        }
        out.push((start, tok, end));
        match tok {
            Tok::Module | Tok::Func if !open => heads_body = true,
            Tok::LBrace if heads_body => {
                (open, heads_body, depth) = (false, false, 0);
                continue;
            }
            Tok::LBrace | Tok::LParen | Tok::LBracket => depth += 1,
            Tok::RBrace | Tok::RParen | Tok::RBracket => depth = depth.saturating_sub(1),
            _ => {}
        }
        open = !closes_body;
    }
    if open {
        let at = raw.last().map_or(0, |(_, _, to)| *to);
        out.push((at, Tok::End, at));
    }
    out
}

/// Whether the tokens begin with `%a =` or `%a, %b =`.
fn defines(tokens: &[Spanned]) -> bool {
    // More results than any op has; without a bound, a long list would be walked again and again.
    const MOST: usize = 1024;
    let mut rest = &tokens[..tokens.len().min(2 * MOST)];
    loop {
        match rest {
            [(_, Tok::Value(_), _), (_, Tok::Eq, _), ..] => return true,
            [(_, Tok::Value(_), _), (_, Tok::Comma, _), tail @ ..] => rest = tail,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(src: &str) -> String {
        let tokens = lex(src).unwrap();
        for (start, tok, end) in &tokens {
            assert!(start <= end && *end <= src.len(), "{tok:?}");
        }
        let words = tokens.iter().map(|(_, t, _)| match t {
            Tok::End => ";".to_owned(),
            t => t.to_string().replace('`', ""),
        });
        words.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn types_have_their_own_tokens() {
        let table = [
            ("tensor<2x2xf32>", "tensor < 2 x 2 x f32 > ;"),
            ("tensor<[x+1]x32xq4_1, r16> x2", "tensor < [x+1] x 32 x q4_1 , r16 > x2 ;"),
            ("tensor<f32\nx", "tensor < f32 ; x ;"),
            ("%a-1 -> @\"a b\".c", "%a-1 -> @\"a b\" Bad ;"),
        ];
        for (src, want) in &table[..3] {
            assert_eq!(&shown(src), want);
        }
        assert_eq!(
            shown("%a-1 -> @\"a \\\" b\" -2 0x1f 1e-5 1..=2 §$ -inf"),
            "%a-1 -> @\"a \\\" b\" -2 0x1f 1e-5 1 ..= 2 §$ -inf ;"
        );
    }

    #[test]
    fn statements_end_at_the_next_one() {
        let src = "module @m {\n sym s in 1..=2 // c\n func @f(\n %x: T) -> () {\n%0 = add %x,\n \
                   %x {a = 1,\n b = [1]} : T\n call @g\n%1, %2 = foo ( {\n return\n }\n}";
        assert_eq!(
            shown(src),
            "module @m { sym s in 1 ..= 2 ; func @f ( %x : T ) -> ( ) { %0 = add %x , %x { a = 1 \
             , b = [ 1 ] } : T ; call @g ; %1 , %2 = foo ( { ; return ; } }"
        );
    }

    #[test]
    fn keywords() {
        assert!(is_keyword("in") && is_keyword("nan") && !is_keyword("inner"));
    }
}
