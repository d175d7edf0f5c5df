//! Proposals from the text itself: where the last tokens stood before, what followed them there.

/// Least tokens that must be the same.
const LEAST: usize = 2;
/// Most tokens that are compared: a longer match says little more.
const MOST: usize = 12;

/// Up to `most` tokens that may follow `tokens`: those behind the place whose end is the longest
/// one that `tokens` ends with too, the last such place. Where the text ends, the proposal itself
/// is read on, so that a period goes on.
pub(super) fn propose(tokens: &[u32], most: usize) -> Vec<u32> {
    let n = tokens.len();
    let (mut best, mut at) = (LEAST - 1, None);
    // The last token of a place and of the text must be the same for any match.
    for end in (1..n).rev() {
        if tokens[end - 1] != tokens[n - 1] {
            continue;
        }
        let pairs = tokens[..end].iter().rev().zip(tokens.iter().rev());
        let same = pairs.take(MOST).take_while(|(a, b)| a == b).count();
        if same > best {
            (best, at) = (same, Some(end));
            if same == MOST {
                break;
            }
        }
    }
    let Some(at) = at else { return Vec::new() };
    let mut draft = Vec::with_capacity(most);
    for i in at..at + most {
        let token = if i < n { tokens[i] } else { draft[i - n] };
        draft.push(token);
    }
    draft
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_followed_is_proposed() {
        let table: [(&[u32], usize, &[u32]); 10] = [
            (&[], 4, &[]),
            (&[1], 4, &[]),
            (&[1, 2, 3], 4, &[]),
            // One token alone is no match.
            (&[7, 5, 9, 7], 4, &[]),
            (&[1, 2, 3, 4, 9, 1, 2], 2, &[3, 4]),
            // The last of equal places.
            (&[1, 2, 3, 1, 2, 4, 1, 2], 1, &[4]),
            // A longer match before a nearer one.
            (&[8, 1, 2, 3, 9, 1, 2, 4, 8, 1, 2], 2, &[3, 9]),
            // A period goes on past the end.
            (&[1, 2, 3, 1, 2, 3], 7, &[1, 2, 3, 1, 2, 3, 1]),
            (&[5, 5, 5], 3, &[5, 5, 5]),
            (&[1, 2, 9, 1, 2], 0, &[]),
        ];
        for (tokens, most, want) in table {
            assert_eq!(propose(tokens, most), want, "{tokens:?}");
        }
    }

    #[test]
    fn long_matches_end_the_search() {
        let block: Vec<u32> = (0..20).collect();
        let tokens = [&block[..], &[99], &block[..], &[77], &block[..]].concat();
        assert_eq!(propose(&tokens, 2), [77, 0], "the last place");
    }
}
