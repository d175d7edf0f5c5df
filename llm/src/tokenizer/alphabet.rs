//! The byte alphabet of byte-level BPE: each byte is written as one printable character.
//!
//! Printable Latin-1 stands for itself, the 68 other bytes for U+0100 and up, in order
//! (the scheme of GPT-2's tokenizer). Token texts in a GGUF file are in this alphabet;
//! inside the tokenizer only the bytes themselves are used.

/// Whether a byte is its own character.
const fn is_plain(byte: u8) -> bool {
    matches!(byte, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff)
}

/// The character of each byte.
const CHARS: [char; 256] = {
    let mut table = ['\0'; 256];
    let (mut byte, mut next) = (0, 0x100);
    while byte < 256 {
        table[byte] = if is_plain(byte as u8) {
            byte as u8 as char
        } else {
            next += 1;
            match char::from_u32(next - 1) {
                Some(c) => c,
                None => panic!("below the surrogates"),
            }
        };
        byte += 1;
    }
    table
};

/// The byte of each character below U+0144, or -1.
const BYTES: [i16; 0x144] = {
    let mut table = [-1; 0x144];
    let mut byte = 0;
    while byte < 256 {
        table[CHARS[byte] as usize] = byte as i16;
        byte += 1;
    }
    table
};

/// The character that stands for `byte`.
pub(super) fn char_of(byte: u8) -> char {
    CHARS[usize::from(byte)]
}

/// Appends the bytes that `text` stands for; `false` (and an unchanged `out`) when `text`
/// is not wholly in the alphabet.
pub(super) fn decode(text: &[u8], out: &mut Vec<u8>) -> bool {
    let start = out.len();
    let bytes = std::str::from_utf8(text).ok().and_then(|text| {
        text.chars().try_for_each(|c| {
            let byte = BYTES.get(c as usize).copied().and_then(|b| u8::try_from(b).ok())?;
            out.push(byte);
            Some(())
        })
    });
    if bytes.is_none() {
        out.truncate(start);
    }
    bytes.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_alphabet_is_a_bijection() {
        let mut seen = std::collections::HashSet::new();
        for byte in 0..=255u8 {
            let c = char_of(byte);
            assert!(seen.insert(c) && !c.is_whitespace() && !c.is_control(), "{byte} {c:?}");
            let mut out = vec![7];
            assert!(decode(c.to_string().as_bytes(), &mut out));
            assert_eq!(out, [7, byte]);
        }
        assert_eq!((char_of(b' '), char_of(b'\n'), char_of(b'a')), ('Ġ', 'Ċ', 'a'));
    }

    #[test]
    fn what_is_not_in_the_alphabet_is_refused_whole() {
        for text in ["a b", "a▁", "\u{ad}", "ń\u{144}"] {
            let mut out = vec![1];
            assert!(!decode(text.as_bytes(), &mut out), "{text:?}");
            assert_eq!(out, [1]);
        }
        assert!(!decode(b"\xff", &mut Vec::new()));
    }
}
