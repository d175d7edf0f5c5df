//! Text out of tokens, up to a stop text.

use crate::tokenizer::Utf8Stream;

/// Turns the bytes of tokens into text that is certain: characters are whole, and what may be the
/// beginning of a stop text is held back until it is known not to be.
pub(super) struct StopText {
    utf8: Utf8Stream,
    held: String,
    stops: Vec<String>,
}

impl StopText {
    /// Empty stop texts are left out.
    pub fn new(mut stops: Vec<String>) -> StopText {
        stops.retain(|s| !s.is_empty());
        StopText { utf8: Utf8Stream::new(), held: String::new(), stops }
    }

    /// Takes bytes; the text that is certain with them, and the stop text that came.
    pub fn push(&mut self, bytes: &[u8]) -> (String, Option<String>) {
        let new = self.utf8.push(bytes);
        if self.stops.is_empty() {
            return (new, None);
        }
        self.held += &new;
        // The one that begins first; of two that begin at one place the longer.
        let found = self
            .stops
            .iter()
            .filter_map(|stop| Some((self.held.find(stop.as_str())?, stop)))
            .min_by_key(|(at, stop)| (*at, std::cmp::Reverse(stop.len())));
        if let Some((at, stop)) = found {
            let stop = stop.clone();
            self.held.truncate(at);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// What waited, when nothing more comes.
    pub fn finish(&mut self) -> String {
        let mut text = std::mem::take(&mut self.held);
        text += &self.utf8.finish();
        text
    }
}

/// Bytes of the longest end of `text` that is a beginning of `stop`, but not all of it.
fn overlap(text: &str, stop: &str) -> usize {
    let most = text.len().min(stop.len() - 1);
    (1..=most)
        .rev()
        .find(|&n| {
            text.is_char_boundary(text.len() - n)
                && stop.as_bytes().starts_with(&text.as_bytes()[text.len() - n..])
        })
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_texts_end_the_text() {
        type Row = (
            &'static [&'static str],
            &'static [&'static str],
            &'static [&'static str],
            Option<&'static str>,
        );
        let table: [Row; 9] = [
            (&[], &["a", "b"], &["a", "b"], None),
            (&["xy"], &["ax", "yb"], &["a", ""], Some("xy")),
            (&["xy"], &["ax", "xb"], &["a", "xxb"], None),
            (&["xy"], &["ax"], &["a"], None),
            (&["aab"], &["aa", "aab"], &["", "aa"], Some("aab")),
            (&["b", "ab"], &["cab"], &["c"], Some("ab")),
            (&["é"], &["x", "yéz"], &["x", "y"], Some("é")),
            (&["", "q"], &["x", "q"], &["x", ""], Some("q")),
            (&["\n\n"], &["a\n", "b\n", "\n"], &["a", "\nb", ""], Some("\n\n")),
        ];
        for (stops, pieces, want, stop) in table {
            let mut text = StopText::new(stops.iter().map(|s| s.to_string()).collect());
            let mut got = Vec::new();
            let mut found = None;
            for piece in pieces {
                let (certain, stop) = text.push(piece.as_bytes());
                got.push(certain);
                found = found.or(stop);
            }
            assert_eq!(got, want, "{stops:?} {pieces:?}");
            assert_eq!(found.as_deref(), stop);
        }
    }

    #[test]
    fn what_waited_comes_in_the_end() {
        let mut text = StopText::new(vec!["stop".to_owned()]);
        assert_eq!(text.push(b"go st"), ("go ".to_owned(), None));
        assert_eq!(text.push(b"\xf0\x9f"), (String::new(), None));
        assert_eq!(text.finish(), "st\u{fffd}");
    }
}
