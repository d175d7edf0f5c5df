//! Pre-tokenizers: where a text is cut before byte-pair merges run inside the pieces.
//!
//! Each is a regular expression (given with each function; the facts are llama.cpp's, by
//! `tokenizer.ggml.pre`), written out as a scanner that passes over the text once. The
//! tests hold each scanner against its expression on random text. Pieces cover the text:
//! what an expression does not match is a piece of its own.

use super::stages::{deepseek_coder, deepseek_llm, deepseek3, falcon, tekken};
use super::unicode::{Classes, LETTER, NUMBER, PUNCT, SPACE};

/// A way to cut text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PreTokenizer {
    /// GPT-2's expression.
    Gpt2,
    /// Single digits first, then GPT-2's expression (SmolLM, StarCoder and others).
    Smollm,
    /// Llama 3: numbers in groups of up to three.
    Llama3,
    /// Qwen 2: single digits, else as Llama 3.
    Qwen2,
    /// DeepSeek-Coder: line ends, words, punctuation, East Asian text, digits, in turn.
    DeepSeekCoder,
    /// DeepSeek-LLM and V2: as the coder's, words of cased letters alone.
    DeepSeekLlm,
    /// DeepSeek-V3 and R1: numbers in groups of up to three, East Asian text, then words.
    DeepSeek3,
    /// Falcon: punctuation first, then GPT-2's expression, then digits in threes.
    Falcon,
    /// Mistral's Tekken: words end where a lower-case letter meets an upper-case one.
    Tekken,
    /// What llama.cpp does for files that name no pre-tokenizer: punctuation first, then
    /// GPT-2's expression, then digits in threes.
    Default,
}

/// What goes with a name in `tokenizer.ggml.pre`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    name: &'static str,
    pub(super) kind: PreTokenizer,
    /// A piece that is itself a token is taken whole, whatever the merges say.
    pub(super) whole_words: bool,
    /// Default of `tokenizer.ggml.add_bos_token`.
    pub(super) add_bos: bool,
    /// Whether a file that names no BOS has the convention's default one.
    pub(super) default_bos: bool,
}

const fn known(name: &'static str, kind: PreTokenizer) -> Known {
    let llama3 = matches!(kind, PreTokenizer::Llama3);
    Known { name, kind, whole_words: llama3, add_bos: llama3, default_bos: true }
}

const KNOWN: &[Known] = &[
    known("default", PreTokenizer::Default),
    known("gpt-2", PreTokenizer::Gpt2),
    known("phi-2", PreTokenizer::Gpt2),
    known("mpt", PreTokenizer::Gpt2),
    known("olmo", PreTokenizer::Gpt2),
    known("jais", PreTokenizer::Gpt2),
    known("gigachat", PreTokenizer::Gpt2),
    known("a.x-4.0", PreTokenizer::Gpt2),
    known("mellum", PreTokenizer::Gpt2),
    known("exaone4", PreTokenizer::Gpt2),
    known("trillion", PreTokenizer::Gpt2),
    known("granite-docling", PreTokenizer::Gpt2),
    known("smollm", PreTokenizer::Smollm),
    known("starcoder", PreTokenizer::Smollm),
    known("refact", PreTokenizer::Smollm),
    known("command-r", PreTokenizer::Smollm),
    known("codeshell", PreTokenizer::Smollm),
    known("exaone", PreTokenizer::Smollm),
    known("minerva-7b", PreTokenizer::Smollm),
    known("mellum2", PreTokenizer::Smollm),
    known("llama-bpe", PreTokenizer::Llama3),
    known("llama3", PreTokenizer::Llama3),
    known("llama-v3", PreTokenizer::Llama3),
    known("falcon3", PreTokenizer::Llama3),
    known("falcon-h1", PreTokenizer::Llama3),
    known("pixtral", PreTokenizer::Llama3),
    known("midm-2.0", PreTokenizer::Llama3),
    known("lfm2", PreTokenizer::Llama3),
    Known { whole_words: false, add_bos: false, ..known("dbrx", PreTokenizer::Llama3) },
    Known { whole_words: false, add_bos: false, ..known("smaug-bpe", PreTokenizer::Llama3) },
    Known {
        whole_words: false,
        add_bos: false,
        default_bos: false,
        ..known("chatglm-bpe", PreTokenizer::Llama3)
    },
    Known { add_bos: false, default_bos: false, ..known("glm4", PreTokenizer::Llama3) },
    known("qwen2", PreTokenizer::Qwen2),
    known("deepseek-r1-qwen", PreTokenizer::Qwen2),
    known("stablelm2", PreTokenizer::Qwen2),
    known("megrez", PreTokenizer::Qwen2),
    known("hunyuan", PreTokenizer::Qwen2),
    known("grok-2", PreTokenizer::Qwen2),
    known("solar-open", PreTokenizer::Qwen2),
    known("deepseek-coder", PreTokenizer::DeepSeekCoder),
    known("deepseek-llm", PreTokenizer::DeepSeekLlm),
    known("deepseek-v3", PreTokenizer::DeepSeek3),
    known("hunyuan-dense", PreTokenizer::DeepSeek3),
    known("falcon", PreTokenizer::Falcon),
    Known { whole_words: true, add_bos: true, ..known("tekken", PreTokenizer::Tekken) },
];

/// The names that `tokenizer.ggml.pre` may have.
pub fn supported_names() -> Vec<&'static str> {
    KNOWN.iter().map(|k| k.name).collect()
}

/// What goes with a name.
pub(super) fn lookup(name: &str) -> Option<Known> {
    KNOWN.iter().find(|k| k.name == name).copied()
}

impl PreTokenizer {
    /// Calls `emit` with each piece of `text` in order; together they are the text.
    pub fn split<'t>(self, text: &'t [u8], mut emit: impl FnMut(&'t [u8])) {
        let classes = Classes::get();
        match self {
            Self::Gpt2 => gpt2(classes, text, &mut emit),
            Self::Smollm => smollm(classes, text, &mut emit),
            Self::Llama3 => llama3(classes, text, 3, &mut emit),
            Self::Qwen2 => llama3(classes, text, 1, &mut emit),
            Self::DeepSeekCoder => deepseek_coder(classes, text, &mut emit),
            Self::DeepSeekLlm => deepseek_llm(classes, text, &mut emit),
            Self::DeepSeek3 => deepseek3(classes, text, &mut emit),
            Self::Falcon => falcon(classes, text, &mut emit),
            Self::Tekken => tekken(classes, text, &mut emit),
            Self::Default => default(classes, text, &mut emit),
        }
    }
}

/// End of the longest run from `at` of characters whose class satisfies `want`.
#[inline]
pub(super) fn run(
    classes: &Classes,
    text: &[u8],
    mut at: usize,
    want: impl Fn(u8) -> bool,
) -> usize {
    while at < text.len() {
        let (class, len) = classes.first(&text[at..]);
        if !want(class) {
            break;
        }
        at += len;
    }
    at
}

/// `[\r\n]`.
pub(super) fn is_line_end(byte: &u8) -> bool {
    matches!(byte, b'\r' | b'\n')
}

/// `[^\s\p{L}\p{N}]`.
pub(super) fn is_other(class: u8) -> bool {
    class & (LETTER | NUMBER | SPACE) == 0
}

/// `\s+(?!\S)|\s+` at the start of `text`, which begins with white space: all of the run if
/// it ends the text or is one character, else all but its last character.
pub(super) fn space_run(classes: &Classes, text: &[u8]) -> usize {
    let (mut end, mut last) = (0, 0);
    while end < text.len() {
        let (class, len) = classes.first(&text[end..]);
        if class & SPACE == 0 {
            break;
        }
        last = end;
        end += len;
    }
    if end == text.len() || last == 0 { end } else { last }
}

/// Length of an English contraction (`'s 't 'm 'd 're 've 'll`) at the start of `text`.
fn contraction(text: &[u8], any_case: bool) -> Option<usize> {
    let letter =
        |i: usize| text.get(i).map_or(0, |&b| if any_case { b.to_ascii_lowercase() } else { b });
    if text[0] != b'\'' {
        return None;
    }
    match (letter(1), letter(2)) {
        (b's' | b't' | b'm' | b'd', _) => Some(2),
        (b'r' | b'v', b'e') | (b'l', b'l') => Some(3),
        _ => None,
    }
}

/// `'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+`
pub(super) fn gpt2<'t>(classes: &Classes, mut text: &'t [u8], emit: &mut impl FnMut(&'t [u8])) {
    while !text.is_empty() {
        let end = contraction(text, false).unwrap_or_else(|| {
            let body = usize::from(text[0] == b' ' && text.len() > 1);
            match classes.first(&text[body..]).0 {
                LETTER => run(classes, text, body, |c| c == LETTER),
                NUMBER => run(classes, text, body, |c| c == NUMBER),
                class if is_other(class) => run(classes, text, body, is_other),
                _ => space_run(classes, text),
            }
        });
        let (piece, rest) = text.split_at(end);
        emit(piece);
        text = rest;
    }
}

/// `\p{N}` first, then GPT-2's expression on what lies between.
fn smollm<'t>(classes: &Classes, mut text: &'t [u8], emit: &mut impl FnMut(&'t [u8])) {
    while !text.is_empty() {
        let (piece, rest) = text.split_at(run(classes, text, 0, |c| c != NUMBER));
        gpt2(classes, piece, emit);
        text = rest;
        while !text.is_empty() {
            let (class, len) = classes.first(text);
            if class != NUMBER {
                break;
            }
            let (digit, rest) = text.split_at(len);
            emit(digit);
            text = rest;
        }
    }
}

/// `(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|`
/// `\p{N}{1,DIGITS}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+`
fn llama3<'t>(
    classes: &Classes,
    mut text: &'t [u8],
    digits: usize,
    emit: &mut impl FnMut(&'t [u8]),
) {
    while !text.is_empty() {
        let end = contraction(text, true).unwrap_or_else(|| llama3_piece(classes, text, digits));
        let (piece, rest) = text.split_at(end);
        emit(piece);
        text = rest;
    }
}

fn llama3_piece(classes: &Classes, text: &[u8], digits: usize) -> usize {
    let (class, len) = classes.first(text);
    if class == LETTER {
        return run(classes, text, len, |c| c == LETTER);
    }
    if class == NUMBER {
        let mut left = digits - 1;
        let mut end = len;
        while left > 0 && end < text.len() {
            let (class, len) = classes.first(&text[end..]);
            if class != NUMBER {
                break;
            }
            end += len;
            left -= 1;
        }
        return end;
    }
    let second = (len < text.len()).then(|| classes.first(&text[len..]).0);
    if second == Some(LETTER) && !is_line_end(&text[0]) {
        return run(classes, text, len, |c| c == LETTER);
    }
    let other = if text[0] == b' ' { second.is_some_and(is_other) } else { is_other(class) };
    if other {
        let end = run(classes, text, len, is_other);
        return end + text[end..].iter().take_while(|b| is_line_end(b)).count();
    }
    // White space: up to the last line end of the run, if it has one.
    let end = run(classes, text, 0, |c| c & SPACE != 0);
    match text[..end].iter().rposition(is_line_end) {
        Some(last) => last + 1,
        None => space_run(classes, text),
    }
}

/// In turn, each on the pieces of the one before: ``[\p{P}\$\+<=>\^~\|]+``, GPT-2's
/// expression, `\p{N}+`, `[0-9][0-9][0-9]`.
fn default<'t>(classes: &Classes, text: &'t [u8], emit: &mut impl FnMut(&'t [u8])) {
    let is_mark = |text: &[u8], class: u8| {
        class & PUNCT != 0 || matches!(text[0], b'$' | b'+' | b'<'..=b'>' | b'^' | b'~' | b'|')
    };
    let mut runs = |piece: &'t [u8]| {
        alternate(piece, |t| flag(classes, t, |_, c| c == NUMBER), &mut |part, number| {
            if number { threes(classes, part, emit) } else { emit(part) }
        });
    };
    let mut words = |part: &'t [u8], _: bool| gpt2(classes, part, &mut runs);
    alternate(text, |t| flag(classes, t, is_mark), &mut words);
}

/// Whether the character at the start of `text` satisfies `test`, and its length.
fn flag(classes: &Classes, text: &[u8], test: impl Fn(&[u8], u8) -> bool) -> (bool, usize) {
    let (class, len) = classes.first(text);
    (test(text, class), len)
}

/// Cuts `text` into runs of characters that satisfy `test` and runs that do not.
fn alternate<'t>(
    mut text: &'t [u8],
    test: impl Fn(&[u8]) -> (bool, usize),
    emit: &mut impl FnMut(&'t [u8], bool),
) {
    while !text.is_empty() {
        let (inside, mut end) = test(text);
        while end < text.len() {
            let (next, len) = test(&text[end..]);
            if next != inside {
                break;
            }
            end += len;
        }
        let (piece, rest) = text.split_at(end);
        emit(piece, inside);
        text = rest;
    }
}

/// Cuts a run of numbers at `[0-9][0-9][0-9]`.
fn threes<'t>(classes: &Classes, mut text: &'t [u8], emit: &mut impl FnMut(&'t [u8])) {
    let mut gap = 0;
    while gap < text.len() {
        if text.len() - gap >= 3 && text[gap..gap + 3].iter().all(u8::is_ascii_digit) {
            let (before, rest) = text.split_at(gap);
            if gap > 0 {
                emit(before);
            }
            let (three, rest) = rest.split_at(3);
            emit(three);
            (text, gap) = (rest, 0);
        } else {
            gap += classes.first(&text[gap..]).1;
        }
    }
    if !text.is_empty() {
        emit(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use fancy_regex::Regex;

    const GPT2: &str =
        r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
    const QWEN2: &str = r"(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?((?=\p{L})([^a-z]))*((?=\p{L})([^A-Z]))+|[^\r\n\p{L}\p{N}]?((?=\p{L})([^a-z]))+((?=\p{L})([^A-Z]))*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";
    const DEEPSEEK3: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"##;
    // White space beyond ASCII is no member of a class here: llama.cpp sees a tabulator there.
    const EAST_ASIAN: &str = r"[一-龥\u{800}-一가-\u{d7ff}&&\S]+";
    const DEEPSEEK_LETTERS: &str = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+";

    /// The expressions of a pre-tokenizer, the classes as of the Unicode version in use.
    fn expressions(kind: PreTokenizer) -> Vec<Regex> {
        let llama3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|");
        let list: &[&str] = match kind {
            PreTokenizer::Gpt2 => &[GPT2],
            PreTokenizer::Smollm => &[r"\p{N}", GPT2],
            PreTokenizer::Llama3 => &[&llama3],
            PreTokenizer::Qwen2 => &[QWEN2],
            PreTokenizer::DeepSeekCoder => {
                &["[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", EAST_ASIAN, r"\p{N}"]
            }
            PreTokenizer::DeepSeekLlm => &[
                "[\r\n]",
                DEEPSEEK_LETTERS,
                r"\s?[!-/:-~！-／：-～‘-‟　-。&&\S]+",
                r"\s+$",
                EAST_ASIAN,
                r"\p{N}+",
            ],
            PreTokenizer::DeepSeek3 => &[r"\p{N}{1,3}", r"[一-龥\u{3040}-ゟ゠-ヿ]+", DEEPSEEK3],
            PreTokenizer::Falcon => &[r"[\p{P}\$\+<=>\^~\|`]+", GPT2, "[0-9][0-9][0-9]"],
            PreTokenizer::Tekken => &[TEKKEN],
            PreTokenizer::Default => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
        };
        list.iter()
            .map(|text| {
                let mut text = (*text).to_owned();
                for class in [r"\p{L}", r"\p{N}", r"\p{P}", r"\p{M}", r"\p{S}"] {
                    text = text.replace(class, &format!(r"[{class}&&\p{{age=15.1}}]"));
                }
                Regex::new(&text).unwrap()
            })
            .collect()
    }

    fn by_expressions<'t>(list: &[Regex], text: &'t str) -> Vec<&'t str> {
        let mut pieces = vec![text];
        for regex in list {
            let mut next = Vec::new();
            for piece in pieces {
                let mut done = 0;
                for found in regex.find_iter(piece) {
                    let found = found.unwrap();
                    next.push(&piece[done..found.start()]);
                    next.push(found.as_str());
                    done = found.end();
                }
                next.push(&piece[done..]);
            }
            next.retain(|p| !p.is_empty());
            pieces = next;
        }
        pieces
    }

    const KINDS: [PreTokenizer; 10] = [
        PreTokenizer::Gpt2,
        PreTokenizer::Smollm,
        PreTokenizer::Llama3,
        PreTokenizer::Qwen2,
        PreTokenizer::DeepSeekCoder,
        PreTokenizer::DeepSeekLlm,
        PreTokenizer::DeepSeek3,
        PreTokenizer::Falcon,
        PreTokenizer::Tekken,
        PreTokenizer::Default,
    ];

    /// Characters that the expressions treat apart, and some of each class.
    const ALPHABET: &str = " \t\n\r\u{b}\u{85}\u{a0}\u{2003}\u{3000}''sStTrReEvVmMlLdDaZß漢か각ไ९٣½²Ⅷ0159.,!-_$+<=>^~|`(]\u{301}\u{200d}😀€\u{e000}\u{a7cb}\u{10d40}\u{0}\u{1c}µǅ一！～‘。/AZé\u{800}\u{d7ff}";

    #[test]
    fn scanners_cut_as_their_expressions_do() {
        let alphabet: Vec<char> = ALPHABET.chars().collect();
        let mut rng = fastrand::Rng::with_seed(7);
        for kind in KINDS {
            let list = expressions(kind);
            for round in 0..4000 {
                let text: String = (0..rng.usize(..24))
                    .map(|_| match round % 4 {
                        0 => rng.char(..),
                        1 => alphabet[rng.usize(..12)],
                        _ => alphabet[rng.usize(..alphabet.len())],
                    })
                    .collect();
                let mut pieces = Vec::new();
                kind.split(text.as_bytes(), |p| pieces.push(std::str::from_utf8(p).unwrap()));
                assert_eq!(pieces, by_expressions(&list, &text), "{kind:?} {text:?}");
            }
        }
    }

    #[test]
    fn pieces_cover_any_bytes() {
        let mut rng = fastrand::Rng::with_seed(8);
        for round in 0..4000 {
            let most = if round % 2 == 0 { 255 } else { 0x30 };
            let text: Vec<u8> = (0..rng.usize(..40)).map(|_| rng.u8(..=most)).collect();
            for kind in KINDS {
                let mut joined = Vec::new();
                kind.split(&text, |p| {
                    assert!(!p.is_empty());
                    joined.extend_from_slice(p);
                });
                assert_eq!(joined, text, "{kind:?}");
            }
        }
    }

    #[test]
    fn names_are_found_and_unique() {
        let names = supported_names();
        for name in ["default", "gpt-2", "smollm", "llama-bpe", "qwen2"] {
            assert!(lookup(name).is_some(), "{name}");
        }
        assert!(lookup("no-such").is_none());
        let unique: std::collections::HashSet<_> = names.iter().collect();
        assert_eq!(unique.len(), names.len());
    }
}
