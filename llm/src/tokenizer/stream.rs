//! From tokens to text piece by piece, without ever cutting a character in two.

/// Turns a stream of bytes into text: holds back the start of a character until it is
/// whole, and puts U+FFFD for bytes that cannot become one.
#[derive(Clone, Debug, Default)]
pub struct Utf8Stream {
    /// The start of a character, at most three bytes.
    held: Vec<u8>,
}

impl Utf8Stream {
    /// A stream that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes; returns the text that is whole with them, which may be empty.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let mut text = String::with_capacity(self.held.len());
        let mut kept = 0;
        for chunk in self.held.utf8_chunks() {
            text.push_str(chunk.valid());
            let rest = chunk.invalid();
            kept += chunk.valid().len() + rest.len();
            if rest.is_empty() {
                continue;
            }
            if kept == self.held.len() && may_grow(rest) {
                kept -= rest.len();
            } else {
                text.push(char::REPLACEMENT_CHARACTER);
            }
        }
        self.held.drain(..kept);
        text
    }

    /// Ends the stream: U+FFFD if a character was left incomplete, else nothing.
    pub fn finish(&mut self) -> String {
        let text = if self.held.is_empty() { "" } else { "\u{fffd}" };
        self.held.clear();
        text.to_owned()
    }
}

/// Whether an invalid sequence at the end of the bytes is the start of a valid character.
fn may_grow(rest: &[u8]) -> bool {
    std::str::from_utf8(rest).is_err_and(|e| e.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use super::Utf8Stream;

    #[test]
    fn incomplete_characters_are_held_back() {
        let mut stream = Utf8Stream::new();
        let table: &[(&[u8], &str)] = &[
            (b"a\xf0", "a"),
            (b"\x9f", ""),
            (b"\x98", ""),
            (b"\x80b", "😀b"),
            (b"\xe2\x82", ""),
            (b"x", "\u{fffd}x"),
            (b"\xff\xc3", "\u{fffd}"),
            (b"\xa9\x80", "é\u{fffd}"),
            (b"", ""),
            (b"\xf0\x90", ""),
        ];
        for (bytes, expected) in table {
            assert_eq!(stream.push(bytes), *expected, "{bytes:x?}");
        }
        assert_eq!(stream.finish(), "\u{fffd}");
        assert_eq!(stream.finish(), "");
    }

    #[test]
    fn any_cut_gives_the_text_of_the_whole() {
        let mut rng = fastrand::Rng::with_seed(5);
        for round in 0..2000 {
            let bytes: Vec<u8> = match round % 2 {
                0 => (0..12).map(|_| rng.u8(..)).collect(),
                _ => (0..6).map(|_| rng.char(..)).collect::<String>().into_bytes(),
            };
            let mut stream = Utf8Stream::new();
            let mut text = String::new();
            let mut rest = bytes.as_slice();
            while !rest.is_empty() {
                let (now, later) = rest.split_at(rng.usize(1..=rest.len()));
                text += &stream.push(now);
                rest = later;
            }
            text += &stream.finish();
            assert_eq!(text, String::from_utf8_lossy(&bytes), "{bytes:x?}");
        }
    }
}
