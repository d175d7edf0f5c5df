//! Pre-tokenizers that cut a text in stages, each within the pieces of the one before: DeepSeek's,
//! Falcon's. A stage looks for its expression from left to right; what lies between is a piece too.

use super::pretokenize::{gpt2, is_line_end, is_other, run, space_run};
use super::unicode::{Classes, LETTER, MARK, NUMBER, PUNCT, SPACE, SYMBOL, char_len, code};

/// What a stage sees at the start of a text: how many bytes, and whether they match. Bytes that do
/// not may be more than one character, where none of them begins a match.
type Seen = (usize, bool);

/// One stage.
type Stage<'s> = &'s dyn Fn(&[u8]) -> Seen;

/// Cuts `text` by the stages.
fn through<'t>(mut text: &'t [u8], stages: &[Stage], emit: &mut dyn FnMut(&'t [u8])) {
    let Some((stage, later)) = stages.split_first() else {
        return emit(text);
    };
    let mut at = 0;
    while at < text.len() {
        let (len, matches) = stage(&text[at..]);
        if !matches {
            at += len;
            continue;
        }
        let (before, rest) = text.split_at(at);
        let (piece, rest) = rest.split_at(len);
        if !before.is_empty() {
            through(before, later, emit);
        }
        through(piece, later, emit);
        (text, at) = (rest, 0);
    }
    if !text.is_empty() {
        through(text, later, emit);
    }
}

/// A match of this length; none when it is 0.
fn seen(text: &[u8], len: usize) -> Seen {
    if len > 0 { (len, true) } else { (char_len(text), false) }
}

/// `[\r\n]`.
fn line_end(text: &[u8]) -> Seen {
    (char_len(text), is_line_end(&text[0]))
}

/// `\s?X+` for the characters X that `want` takes, by class and number.
fn spaced(classes: &Classes, text: &[u8], want: impl Fn(u8, u32) -> bool) -> Seen {
    let (class, first) = classes.first(text);
    let start = if class & SPACE != 0 { first } else { 0 };
    let end = coded_run(classes, text, start, want);
    if end > start { (end, true) } else { (first, false) }
}

/// End of the longest run from `at` of characters that `want` takes.
fn coded_run(
    classes: &Classes,
    text: &[u8],
    mut at: usize,
    want: impl Fn(u8, u32) -> bool,
) -> usize {
    while at < text.len() {
        let (class, len) = classes.first(&text[at..]);
        if !want(class, code(&text[at..])) {
            break;
        }
        at += len;
    }
    at
}

/// `\s+$`.
fn last_spaces(classes: &Classes, text: &[u8]) -> Seen {
    let end = run(classes, text, 0, |c| c & SPACE != 0);
    if end == 0 { (char_len(text), false) } else { (end, end == text.len()) }
}

/// `[一-龥ࠀ-一가-퟿]+`.
fn east_asian(classes: &Classes, text: &[u8]) -> Seen {
    let takes =
        |class: u8, c: u32| class & SPACE == 0 && matches!(c, 0x800..=0x9fa5 | 0xac00..=0xd7ff);
    seen(text, coded_run(classes, text, 0, takes))
}

/// In turn: `[\r\n]`, `\s?\p{L}+`, `\s?\p{P}+`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}`.
pub(super) fn deepseek_coder<'t>(
    classes: &Classes,
    text: &'t [u8],
    emit: &mut dyn FnMut(&'t [u8]),
) {
    let stages: [Stage; 5] = [
        &line_end,
        &|t| spaced(classes, t, |class, _| class == LETTER),
        &|t| spaced(classes, t, |class, _| class & PUNCT != 0),
        &|t| east_asian(classes, t),
        &|t| {
            let (class, len) = classes.first(t);
            (len, class == NUMBER)
        },
    ];
    through(text, &stages, emit);
}

/// In turn: `[\r\n]`, `\s?X+` with the letters X of [`CASED`], `\s?[!-/:-~！-／：-～‘-‟　-。]+`,
/// `\s+$`, `[一-龥ࠀ-一가-퟿]+`, `\p{N}+`.
pub(super) fn deepseek_llm<'t>(classes: &Classes, text: &'t [u8], emit: &mut dyn FnMut(&'t [u8])) {
    let mark = |class: u8, c: u32| {
        class & SPACE == 0
            && matches!(
                c,
                0x21..=0x2f
                    | 0x3a..=0x7e
                    | 0xff01..=0xff0f
                    | 0xff1a..=0xff5e
                    | 0x2018..=0x201f
                    | 0x3000..=0x3002
            )
    };
    let stages: [Stage; 6] = [
        &line_end,
        &|t| spaced(classes, t, |class, c| class == LETTER && is_cased(c)),
        &|t| spaced(classes, t, mark),
        &|t| last_spaces(classes, t),
        &|t| east_asian(classes, t),
        &|t| seen(t, run(classes, t, 0, |c| c == NUMBER)),
    ];
    through(text, &stages, emit);
}

/// In turn: `\p{N}{1,3}`, `[一-龥぀-ゟ゠-ヿ]+`, and DeepSeek-V3's expression ([`deepseek3_piece`]).
pub(super) fn deepseek3<'t>(classes: &Classes, text: &'t [u8], emit: &mut dyn FnMut(&'t [u8])) {
    let stages: [Stage; 3] = [
        &|t| {
            let mut end = 0;
            for _ in 0..3 {
                if end < t.len() && classes.first(&t[end..]).0 == NUMBER {
                    end += char_len(&t[end..]);
                }
            }
            seen(t, end)
        },
        &|t| {
            let takes = |_, c| matches!(c, 0x4e00..=0x9fa5 | 0x3040..=0x30ff);
            seen(t, coded_run(classes, t, 0, takes))
        },
        &|t| deepseek3_piece(classes, t),
    ];
    through(text, &stages, emit);
}

/// ``[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|``
/// ` ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn deepseek3_piece(classes: &Classes, text: &[u8]) -> Seen {
    let (class, len) = classes.first(text);
    if text[0].is_ascii_punctuation() {
        let letters = text[1..].iter().take_while(|b| b.is_ascii_alphabetic()).count();
        if letters > 0 {
            return (1 + letters, true);
        }
    }
    let wordy = |c: u8| c & (LETTER | MARK) != 0;
    if wordy(class) {
        return (run(classes, text, len, wordy), true);
    }
    let leads = class & (PUNCT | SYMBOL) == 0 && !is_line_end(&text[0]);
    let end = run(classes, text, len, wordy);
    if leads && end > len {
        return (end, true);
    }
    let sign = |c: u8| c & (PUNCT | SYMBOL) != 0;
    let start = usize::from(text[0] == b' ');
    let end = run(classes, text, start, sign);
    if end > start {
        return (end + text[end..].iter().take_while(|b| is_line_end(b)).count(), true);
    }
    if class & SPACE == 0 {
        return (len, false);
    }
    let end = run(classes, text, 0, |c| c & SPACE != 0);
    match text[..end].iter().rposition(is_line_end) {
        Some(last) => (last + 1, true),
        None => (space_run(classes, text), true),
    }
}

/// In turn: ``[\p{P}\$\+<=>\^~\|`]+``, GPT-2's expression, `[0-9][0-9][0-9]`.
pub(super) fn falcon<'t>(classes: &Classes, text: &'t [u8], emit: &mut dyn FnMut(&'t [u8])) {
    let mark = |class: u8, c: u32| {
        let extra = matches!(c, 0x24 | 0x2b | 0x3c..=0x3e | 0x5e | 0x60 | 0x7c | 0x7e);
        class & PUNCT != 0 || extra
    };
    let marks: [Stage; 1] = [&|t| seen(t, coded_run(classes, t, 0, mark))];
    let threes: [Stage; 1] = [&|t| match t {
        [a, b, c, ..] if [a, b, c].iter().all(|d| d.is_ascii_digit()) => (3, true),
        _ => (char_len(t), false),
    }];
    through(text, &marks, &mut |part| {
        gpt2(classes, part, &mut |word| through(word, &threes, emit));
    });
}

/// ``[^\r\n\p{L}\p{N}]?U*W+|[^\r\n\p{L}\p{N}]?U+W*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|``
/// `\s*[\r\n]+|\s+(?!\S)|\s+`, where U are letters but a to z, and W letters but A to Z.
pub(super) fn tekken<'t>(classes: &Classes, mut text: &'t [u8], emit: &mut dyn FnMut(&'t [u8])) {
    while !text.is_empty() {
        let (piece, rest) = text.split_at(tekken_piece(classes, text));
        emit(piece);
        text = rest;
    }
}

fn tekken_piece(classes: &Classes, text: &[u8]) -> usize {
    let (class, len) = classes.first(text);
    if class == LETTER {
        return tekken_word(classes, text, 0);
    }
    if class == NUMBER {
        return len;
    }
    if !is_line_end(&text[0]) && len < text.len() && classes.first(&text[len..]).0 == LETTER {
        return tekken_word(classes, text, len);
    }
    let start = usize::from(text[0] == b' ');
    let end = run(classes, text, start, is_other);
    if end > start {
        let tail = |b: &&u8| is_line_end(b) || **b == b'/';
        return end + text[end..].iter().take_while(tail).count();
    }
    let end = run(classes, text, 0, |c| c & SPACE != 0);
    match text[..end].iter().rposition(is_line_end) {
        Some(last) => last + 1,
        None => space_run(classes, text),
    }
}

/// End of `U*W+|U+W*` at `at`, where a letter stands.
fn tekken_word(classes: &Classes, text: &[u8], at: usize) -> usize {
    let upper = |class: u8, c: u32| class == LETTER && !matches!(c, 0x61..=0x7a);
    let lower = |class: u8, c: u32| class == LETTER && !matches!(c, 0x41..=0x5a);
    let end = coded_run(classes, text, at, upper);
    let more = coded_run(classes, text, end, lower);
    if more > end {
        return more;
    }
    // The last letter of U that is one of W too ends the word, if there is one.
    let ascii = text[at..end].iter().rev().take_while(|b| b.is_ascii()).count();
    if end - ascii > at { end - ascii } else { end }
}

/// Whether a letter has a case, as DeepSeek's expression lists them.
fn is_cased(c: u32) -> bool {
    let found = CASED.partition_point(|&(_, last)| last < c);
    CASED.get(found).is_some_and(|&(first, _)| first <= c)
}

/// Letters that have a case in an older version of Unicode, without some blocks: first and last of
/// every stretch.
const CASED: &[(u32, u32)] = &[
    (0x41, 0x5a),
    (0x61, 0x7a),
    (0xb5, 0xb5),
    (0xc0, 0xd6),
    (0xd8, 0xf6),
    (0xf8, 0x1ba),
    (0x1bc, 0x1bf),
    (0x1c4, 0x293),
    (0x295, 0x2af),
    (0x370, 0x373),
    (0x376, 0x377),
    (0x37b, 0x37d),
    (0x37f, 0x37f),
    (0x386, 0x386),
    (0x388, 0x38a),
    (0x38c, 0x38c),
    (0x38e, 0x3a1),
    (0x3a3, 0x3f5),
    (0x3f7, 0x481),
    (0x48a, 0x52f),
    (0x531, 0x556),
    (0x10a0, 0x10c5),
    (0x13a0, 0x13f5),
    (0x13f8, 0x13fd),
    (0x1c90, 0x1cba),
    (0x1cbd, 0x1cbf),
    (0x1d00, 0x1d2b),
    (0x1d6b, 0x1d77),
    (0x1d79, 0x1d9a),
    (0x1e00, 0x1f15),
    (0x1f18, 0x1f1d),
    (0x1f20, 0x1f45),
    (0x1f48, 0x1f4d),
    (0x1f50, 0x1f57),
    (0x1f59, 0x1f59),
    (0x1f5b, 0x1f5b),
    (0x1f5d, 0x1f5d),
    (0x1f5f, 0x1f7d),
    (0x1f80, 0x1fb4),
    (0x1fb6, 0x1fbc),
    (0x1fbe, 0x1fbe),
    (0x1fc2, 0x1fc4),
    (0x1fc6, 0x1fcc),
    (0x1fd0, 0x1fd3),
    (0x1fd6, 0x1fdb),
    (0x1fe0, 0x1fec),
    (0x1ff2, 0x1ff4),
    (0x1ff6, 0x1ffc),
    (0x2102, 0x2102),
    (0x2107, 0x2107),
    (0x210a, 0x2113),
    (0x2115, 0x2115),
    (0x2119, 0x211d),
    (0x2124, 0x2124),
    (0x2126, 0x2126),
    (0x2128, 0x2128),
    (0x212a, 0x212d),
    (0x212f, 0x2134),
    (0x2139, 0x2139),
    (0x213c, 0x213f),
    (0x2145, 0x2149),
    (0x214e, 0x214e),
    (0x2183, 0x2184),
    (0x2c00, 0x2c7b),
    (0x2c7e, 0x2ce4),
    (0x2ceb, 0x2cee),
    (0x2cf2, 0x2cf3),
    (0xa640, 0xa66d),
    (0xa680, 0xa69b),
    (0xa722, 0xa76f),
    (0xa771, 0xa787),
    (0xa78b, 0xa78e),
    (0xab70, 0xabbf),
    (0xfb00, 0xfb06),
    (0xfb13, 0xfb17),
    (0xff21, 0xff3a),
    (0xff41, 0xff5a),
    (0x10400, 0x1044f),
    (0x104b0, 0x104d3),
    (0x104d8, 0x104fb),
    (0x10c80, 0x10cb2),
    (0x10cc0, 0x10cf2),
    (0x118a0, 0x118df),
    (0x1e900, 0x1e943),
];
