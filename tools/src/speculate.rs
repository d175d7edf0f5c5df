//! `--speculative` and what belongs to it.

use std::sync::Arc;

use aether_llm::engine::{
    DRAFT_P_MIN, DRAFT_TOKENS, LoadOptions, MOST_DRAFT_TOKENS, Model, Proposer, Speculation,
};
use anyhow::{Context as _, bail};
use clap::{Args, ValueEnum};

use crate::source::ModelArg;

/// Who proposes tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum SpeculateChoice {
    /// The text itself: what followed the last tokens where they stood earlier
    Ngram,
    /// The model of --draft-model
    Draft,
}

/// Options of every command that can decode speculatively: tokens are proposed, several are checked
/// in one step, and the text is the same as without.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Speculative decoding")]
pub struct SpeculateArgs {
    /// Propose tokens and check several in one step; the text stays the same
    #[arg(long, value_name = "HOW", value_enum, visible_alias = "spec-type")]
    pub speculative: Option<SpeculateChoice>,

    /// A smaller model with the same vocabulary that proposes tokens: a GGUF file, or a name [also: -md]
    #[arg(long, value_name = "FILE|NAME", visible_alias = "model-draft")]
    pub draft_model: Option<String>,

    /// Most tokens that are proposed at once [default: 16]
    #[arg(
        long,
        value_name = "N",
        visible_aliases = ["draft", "draft-max", "draft-n"],
        value_parser = clap::value_parser!(u8).range(1..=MOST_DRAFT_TOKENS as i64)
    )]
    pub draft_tokens: Option<u8>,

    /// A proposal ends before a token that the draft model gives less probability [default: 0.75]
    #[arg(long, value_name = "P")]
    pub draft_p_min: Option<f32>,
}

/// Turns llama.cpp's `-md MODEL` into an option of this command line, which has no short names of
/// two letters.
pub fn command_line() -> Vec<std::ffi::OsString> {
    let known = |arg: std::ffi::OsString| if arg == "-md" { "--draft-model".into() } else { arg };
    std::env::args_os().map(known).collect()
}

impl SpeculateArgs {
    fn choice(&self) -> anyhow::Result<Option<SpeculateChoice>> {
        match (self.speculative, &self.draft_model) {
            (Some(SpeculateChoice::Draft), None) => {
                bail!("--speculative draft needs a model: name one with --draft-model")
            }
            (Some(SpeculateChoice::Ngram), Some(_)) => {
                bail!("--speculative ngram takes no --draft-model: leave one of them out")
            }
            (None, None) if self.draft_tokens.is_some() || self.draft_p_min.is_some() => {
                bail!(
                    "nothing is drafted: say how with --speculative ngram, or name a model with \
                     --draft-model"
                )
            }
            (Some(SpeculateChoice::Ngram), None) if self.draft_p_min.is_some() => {
                bail!("--draft-p-min is of a draft model; --speculative ngram has none")
            }
            (_, Some(_)) => Ok(Some(SpeculateChoice::Draft)),
            (choice, None) => Ok(choice),
        }
    }

    fn tokens(&self) -> usize {
        self.draft_tokens.map_or(DRAFT_TOKENS, usize::from)
    }

    /// Rows of logits that a sequence needs, with `slots` for the form that the model must have, when
    /// tokens are drafted.
    ///
    /// # Errors
    /// When the options contradict one another.
    pub fn rows(&self) -> anyhow::Result<Option<usize>> {
        Ok(self.choice()?.map(|_| self.tokens() + 1))
    }

    /// How to draft for `target`, after its draft model was loaded.
    ///
    /// # Errors
    /// When the options contradict one another, or the draft model cannot be had.
    pub fn load(&self, target: &Model) -> anyhow::Result<Option<Speculation>> {
        let proposer = match self.choice()? {
            None => return Ok(None),
            Some(SpeculateChoice::Ngram) => Proposer::Ngram,
            Some(SpeculateChoice::Draft) => {
                let name = ModelArg { model: self.draft_model.clone(), verify: false };
                let slots = target.slots().unwrap_or(1);
                let options = LoadOptions {
                    context: target.context_len(),
                    rows: slots,
                    slots,
                    // As the target is.
                    detached: target.gguf().parts()[0].file().is_some(),
                    ..LoadOptions::default()
                };
                let model = Model::load_beside(name.path()?, &options, target);
                let model: Arc<Model> = model.context("the draft model")?;
                Proposer::Draft { model, p_min: self.draft_p_min.unwrap_or(DRAFT_P_MIN) }
            }
        };
        Ok(Some(Speculation { tokens: self.tokens(), proposer }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_agree_or_are_refused() {
        use SpeculateChoice::{Draft, Ngram};
        type Row =
            (Option<SpeculateChoice>, bool, Option<u8>, Option<f32>, Result<usize, &'static str>);
        let table: [Row; 9] = [
            (None, false, None, None, Ok(0)),
            (Some(Ngram), false, None, None, Ok(17)),
            (Some(Ngram), false, Some(4), None, Ok(5)),
            (None, true, Some(8), Some(0.5), Ok(9)),
            (Some(Draft), true, None, None, Ok(17)),
            (Some(Draft), false, None, None, Err("--draft-model")),
            (Some(Ngram), true, None, None, Err("leave one of them out")),
            (None, false, Some(3), None, Err("--speculative ngram")),
            (Some(Ngram), false, None, Some(0.5), Err("--draft-p-min")),
        ];
        for (speculative, model, draft_tokens, draft_p_min, want) in table {
            let draft_model = model.then(|| "x.gguf".to_owned());
            let args = SpeculateArgs { speculative, draft_model, draft_tokens, draft_p_min };
            match (args.rows(), want) {
                (Ok(rows), Ok(want)) => assert_eq!(rows.unwrap_or(0), want, "{args:?}"),
                (Err(error), Err(want)) => assert!(error.to_string().contains(want), "{error}"),
                (got, want) => panic!("{args:?}: {got:?}, not {want:?}"),
            }
        }
    }
}
