//! Tokens known by their text: ends of turns, fill-in-the-middle marks, ends of generation.
//!
//! GGUF files often leave out which token ends a turn, or mark such a token as ordinary
//! text; the lists of names, and what follows from a name, are llama.cpp's.

use super::vocab::{SpecialIds, attr};

const EOT: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "<|end_of_text|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "<｜end▁of▁sentence｜>",
    "<end_of_utterance>",
];

const EOM: &[&str] = &["<|eom_id|>"];

const FIM_PRE: &[&str] = &[
    "<|fim_prefix|>",
    "<fim-prefix>",
    "<fim_prefix>",
    "<｜fim▁begin｜>",
    "<PRE>",
    "▁<PRE>",
    "<|code_prefix|>",
    "<|prefix|>",
];

const FIM_SUF: &[&str] = &[
    "<|fim_suffix|>",
    "<fim-suffix>",
    "<fim_suffix>",
    "<｜fim▁hole｜>",
    "<SUF>",
    "▁<SUF>",
    "<|code_suffix|>",
    "<|suffix|>",
];

const FIM_MID: &[&str] = &[
    "<|fim_middle|>",
    "<fim-middle>",
    "<fim_middle>",
    "<｜fim▁end｜>",
    "<MID>",
    "▁<MID>",
    "<|code_middle|>",
    "<|middle|>",
];

const FIM_PAD: &[&str] = &["<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]"];

const FIM_REP: &[&str] = &["<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"];

const FIM_SEP: &[&str] = &["<|file_sep|>"];

/// Names that end a generation whatever the keys say.
const EOG: &[&str] = &[
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "[e~[",
];

/// Tokens of the harmony format that are always shown.
const ALWAYS_SHOWN: &[&str] = &["<|channel|>", "<|message|>", "<|start|>", "<|constrain|>"];

/// Fills roles that no key names from the first name of each list that is in the
/// vocabulary, and marks those tokens as control tokens.
pub(super) fn resolve(ids: &mut SpecialIds, attrs: &mut [u8], find: impl Fn(&[u8]) -> Option<u32>) {
    let roles = [
        (&mut ids.eot, EOT),
        (&mut ids.eom, EOM),
        (&mut ids.fim_pre, FIM_PRE),
        (&mut ids.fim_suf, FIM_SUF),
        (&mut ids.fim_mid, FIM_MID),
        (&mut ids.fim_pad, FIM_PAD),
        (&mut ids.fim_rep, FIM_REP),
        (&mut ids.fim_sep, FIM_SEP),
    ];
    for (role, names) in roles {
        if role.is_none() {
            *role = names.iter().find_map(|name| find(name.as_bytes()));
            if let Some(id) = *role {
                attrs[id as usize] |= attr::CONTROL;
            }
        }
    }
}

/// The tokens that end a generation, in order; marks those known by name as control tokens.
pub(super) fn end_of_generation(
    ids: &SpecialIds,
    attrs: &mut [u8],
    find: impl Fn(&[u8]) -> Option<u32>,
) -> Vec<u32> {
    let find = |name: &str| find(name.as_bytes());
    let mut eog: Vec<u32> = [ids.fim_pad, ids.fim_rep, ids.fim_sep].into_iter().flatten().collect();
    for id in EOG.iter().filter_map(|name| find(name)) {
        attrs[id as usize] |= attr::CONTROL;
        eog.push(id);
    }
    for id in ALWAYS_SHOWN.iter().filter_map(|name| find(name)) {
        attrs[id as usize] = attr::USER;
    }
    eog.extend([ids.eos, ids.eot, ids.eom].into_iter().flatten());

    let ends = |name: &str| find(name).filter(|id| eog.contains(id));
    let calls = ends("<|call|>").or(ends("<|calls|>"));
    // Where a call or a return ends a generation, "<|end|>" only separates messages.
    let separator = ends("<|end|>").filter(|_| {
        calls.is_some() && (ends("<|return|>").is_some() || ends("<|flush|>").is_some())
    });
    // Where another token ends the turn, "</s>" is text.
    let text =
        ends("</s>").filter(|_| ends("<|tool_response>").or(ends("<|plamo:eos|>")).is_some());
    for (id, becomes) in [(separator, attr::USER), (text, attr::NORMAL)] {
        if let Some(id) = id {
            eog.retain(|e| *e != id);
            attrs[id as usize] = becomes;
        }
    }
    eog.sort_unstable();
    eog.dedup();
    eog
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ids that end a generation, and the attributes after, for a vocabulary of these texts.
    fn eog(tokens: &[&str], ids: SpecialIds) -> (Vec<u32>, Vec<u8>) {
        let find = |text: &[u8]| tokens.iter().position(|t| t.as_bytes() == text).map(|i| i as u32);
        let (mut ids, mut attrs) = (ids, vec![attr::NORMAL; tokens.len()]);
        resolve(&mut ids, &mut attrs, find);
        let eog = end_of_generation(&ids, &mut attrs, find);
        (eog, attrs)
    }

    #[test]
    fn names_and_keys_end_a_generation() {
        let eos = SpecialIds { eos: Some(0), ..SpecialIds::default() };
        let table: &[(&[&str], &[u32])] = &[
            (&["x", "y"], &[0]),
            (&["x", "<|im_end|>", "<|endoftext|>", "y"], &[0, 1, 2]),
            (&["x", "<reponame>", "<file_sep>", "<|file_sep|>"], &[0, 1, 3]),
            (&["x", "<|end|>", "<|return|>"], &[0, 1, 2]),
            (&["x", "<|end|>", "<|return|>", "<|call|>"], &[0, 2, 3]),
            (&["x", "<|end|>", "<|calls|>", "<|flush|>"], &[0, 2, 3]),
            (&["x", "</s>"], &[0, 1]),
            (&["x", "</s>", "<|tool_response>"], &[0, 2]),
        ];
        for (tokens, expected) in table {
            assert_eq!(eog(tokens, eos).0, *expected, "{tokens:?}");
        }
    }

    #[test]
    fn names_change_what_a_token_is() {
        let control = attr::NORMAL | attr::CONTROL;
        let (_, attrs) = eog(
            &["a", "<|im_end|>", "<fim_prefix>", "<|channel|>", "<end_of_turn>"],
            SpecialIds::default(),
        );
        assert_eq!(attrs, [attr::NORMAL, control, control, attr::USER, control]);
        // A role that a key fills is not looked for by name.
        let given = SpecialIds { fim_pre: Some(0), ..SpecialIds::default() };
        assert_eq!(eog(&["a", "<fim_prefix>"], given).1, [attr::NORMAL, attr::NORMAL]);
    }
}
