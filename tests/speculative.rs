//! A real model goes on as without speculation, to the bit.

#[path = "../llm/tests/common/mod.rs"]
mod common;

use std::ops::ControlFlow;

use aether_llm::engine::{
    Context, GenOptions, LoadOptions, Model, Proposer, Speculation, generate,
};
use aether_llm::sample::SamplerOptions;
use aether_llm::tokenizer::EncodeOptions;

const PROMPT: &str = "def area(width, height):\n    return width * height\n\n\
    def volume(width, height, depth):\n    return width * height * depth\n\n\
    # The same again, with comments:\ndef area(width, height):\n";

#[test]
fn the_default_model_drafts_from_its_text_and_for_itself() {
    let path = common::default_model();
    let load = |slots, rows| {
        let options = LoadOptions { context: 512, slots, rows, ..LoadOptions::default() };
        Model::load(&path, &options).unwrap()
    };
    let (plain, slotted) = (load(0, 1), load(1, 17));
    let prompt = plain.tokenizer().encode(PROMPT.as_bytes(), EncodeOptions::PROMPT).unwrap();
    let warm = SamplerOptions { temperature: 0.7, seed: 11, ..SamplerOptions::default() };
    for (sampler, accepted) in [(SamplerOptions::greedy(), 8), (warm, 1)] {
        let options =
            GenOptions { n: 40, sampler, logprobs: 1, ignore_eos: true, ..GenOptions::default() };
        let run = |context: &mut Context| {
            generate(context, &prompt, &options, &mut |_| ControlFlow::Continue(())).unwrap()
        };
        let want = run(&mut Context::new(&plain).unwrap());
        let itself = Proposer::Draft { model: slotted.clone(), p_min: 0.3 };
        for proposer in [Proposer::Ngram, itself] {
            let by_lookup = matches!(proposer, Proposer::Ngram);
            let mut context = Context::new(&slotted).unwrap();
            context.speculate(&Speculation { tokens: 16, proposer }).unwrap();
            let got = run(&mut context);
            assert_eq!(got.tokens, want.tokens);
            assert!(got.logprobs == want.logprobs, "the same bits");
            let drafted = got.timings.drafted;
            // How often a text repeats itself depends on the rounding of its kernels.
            let least = if by_lookup { 1 } else { accepted };
            assert!(drafted.accepted >= least, "{drafted:?}");
        }
    }
}
