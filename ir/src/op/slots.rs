//! Many sequences in one call: which tokens belong together.

use std::ops::Range;

/// Consecutive tokens of one slot, at positions that rise by one: what the form for one sequence
/// takes in a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Which tokens of the call.
    pub tokens: Range<usize>,
    /// Which cache.
    pub slot: usize,
    /// The position of the first of them.
    pub past: usize,
}

/// The segments of a call: runs of tokens with the same slot and positions that rise by one. A slot
/// may come in several of them, but no two tokens may stand at one place, so that no order of work
/// matters: all rows are appended before a query looks, and a query sees what stands up to its own
/// position. So tokens whose positions fall go alone, one segment each. Every slot must be one of
/// `slots`, every position below `context`. The first that breaks a rule is an error, and the last
/// item. Allocates for errors only: kernels use it too.
pub fn segments(
    positions: &[i32],
    slot_ids: &[i32],
    slots: usize,
    context: usize,
) -> impl Iterator<Item = Result<Segment, String>> {
    let n = positions.len().min(slot_ids.len());
    let mut next = 0;
    std::iter::from_fn(move || {
        let start = next;
        if start >= n {
            return None;
        }
        let (slot, past) = (slot_ids[start], positions[start]);
        let mut end = start + 1;
        while end < n
            && slot_ids[end] == slot
            && positions[end] as i64 == past as i64 + (end - start) as i64
        {
            end += 1;
        }
        next = end;
        let found = (usize::try_from(slot).ok().filter(|&s| s < slots), usize::try_from(past));
        let bad = |message: String| Some(Err(message));
        let (slot, past) = match found {
            (None, _) => {
                next = n;
                return bad(format!("token {start} names slot {slot}, but there are {slots}"));
            }
            (_, Err(_)) => {
                next = n;
                return bad(format!("the position {past} of token {start} is negative"));
            }
            (Some(slot), Ok(past)) => (slot, past),
        };
        let tokens = end - start;
        if past.checked_add(tokens).is_none_or(|end| end > context) {
            next = n;
            return bad(format!(
                "{past} past and {tokens} new tokens are more than the context of {context}"
            ));
        }
        let taken = |i: &usize| {
            slot_ids[*i] == slot_ids[start]
                && usize::try_from(positions[*i]).is_ok_and(|p| (past..past + tokens).contains(&p))
        };
        if let Some(other) = (0..start).find(taken) {
            next = n;
            let position = positions[other];
            return bad(format!(
                "tokens {other} and {} both stand at position {position} of slot {slot}",
                start + position as usize - past
            ));
        }
        Some(Ok(Segment { tokens: start..end, slot, past }))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_of_a_slot_stand_apart_or_in_runs() {
        type Row<'a> = (&'a [i32], &'a [i32], Result<&'a [(usize, usize, usize, usize)], &'a str>);
        let table: [Row; 11] = [
            (&[], &[], Ok(&[])),
            (&[5], &[1], Ok(&[(0, 1, 1, 5)])),
            (
                &[0, 1, 2, 7, 3, 4],
                &[0, 0, 0, 1, 2, 2],
                Ok(&[(0, 3, 0, 0), (3, 4, 1, 7), (4, 6, 2, 3)]),
            ),
            (&[2, 1, 0], &[1; 3], Ok(&[(0, 1, 1, 2), (1, 2, 1, 1), (2, 3, 1, 0)])),
            (&[0, 5, 1], &[0, 1, 0], Ok(&[(0, 1, 0, 0), (1, 2, 1, 5), (2, 3, 0, 1)])),
            (&[0, 2], &[0, 0], Ok(&[(0, 1, 0, 0), (1, 2, 0, 2)])),
            (&[0, 0], &[0, 0], Err("tokens 0 and 1 both stand at position 0 of slot 0")),
            (&[2, 1, 2], &[1; 3], Err("tokens 0 and 2 both stand at position 2 of slot 1")),
            (&[0, 0], &[0, 3], Err("token 1 names slot 3, but there are 3")),
            (&[0, -1], &[0, 1], Err("the position -1 of token 1 is negative")),
            (&[6, 7, 8], &[0, 0, 0], Err("6 past and 3 new tokens are more than the context of 8")),
        ];
        for (positions, slots, want) in table {
            let got: Result<Vec<Segment>, String> = segments(positions, slots, 3, 8).collect();
            match (got, want) {
                (Ok(got), Ok(want)) => {
                    let got: Vec<_> = got
                        .iter()
                        .map(|s| (s.tokens.start, s.tokens.end, s.slot, s.past))
                        .collect();
                    assert_eq!(got, want);
                }
                (Err(got), Err(want)) => assert!(got.contains(want), "{got}"),
                (got, want) => panic!("{positions:?} {slots:?}: {got:?}, not {want:?}"),
            }
        }
    }

    #[test]
    fn an_error_ends_the_list() {
        assert_eq!(segments(&[-1, 0, 0], &[0, 1, 2], 3, 8).count(), 1);
        assert_eq!(segments(&[i32::MAX; 2], &[0, 1], 3, 8).count(), 1);
    }
}
