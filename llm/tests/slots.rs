//! Sequences in slots against the same sequences one by one.

#[path = "common/tiny.rs"]
mod tiny;

use std::sync::Arc;

use aether_llm::engine::{Context, EngineError, LoadOptions, Model, Piece, Slots};
use tiny::{FLOATS, QUANTIZED, SMALL_BLOCKS, Tiny};

fn load(tiny: &Tiny, slots: usize, threads: usize) -> Arc<Model> {
    let options =
        LoadOptions { batch: 16, rows: 12, slots, threads, verify: true, ..LoadOptions::default() };
    Model::from_memory(tiny.gguf(), &options).unwrap()
}

fn text(seed: u64, n: usize) -> Vec<u32> {
    let mut rng = fastrand::Rng::with_seed(seed);
    (0..n).map(|_| rng.u32(0..256)).collect()
}

/// The greatest difference, relative to the root mean square.
fn distance(got: &[f32], want: &[f32]) -> f32 {
    assert_eq!(got.len(), want.len());
    let rms = (want.iter().map(|w| w * w).sum::<f32>() / want.len() as f32).sqrt();
    assert!(rms > 0.1, "logits say something: {rms}");
    got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, f32::max) / rms
}

#[test]
fn sequences_do_not_see_each_other() {
    for (tiny, threads, tolerance) in
        [(Tiny::llama(FLOATS), 1, 0.01), (Tiny::qwen2(QUANTIZED), 3, 0.15)]
    {
        let texts = [text(1, 20), text(2, 9), text(3, 14)];
        let alone: Vec<Vec<Vec<f32>>> = texts
            .iter()
            .map(|tokens| {
                let model = load(&tiny, 0, 1);
                let mut context = Context::new(&model).unwrap();
                let rows: Vec<u32> = (0..tokens.len() as u32).collect();
                let mut out = Vec::new();
                context.logits_rows(tokens, &rows, |_, l| out.push(l.to_vec())).unwrap();
                out
            })
            .collect();
        let mut slots = Slots::new(&load(&tiny, 4, threads)).unwrap();
        // In each step some tokens of some texts: slot, text, tokens, rows.
        let steps: [&[(usize, usize, usize, usize)]; 5] = [
            &[(3, 0, 7, 3)],
            &[(0, 1, 5, 5), (3, 0, 1, 1), (1, 2, 9, 0)],
            &[(1, 2, 1, 1), (0, 1, 1, 1), (3, 0, 1, 1)],
            &[(3, 0, 9, 4), (0, 1, 1, 1), (1, 2, 3, 2)],
            &[(0, 1, 2, 1), (1, 2, 1, 1), (3, 0, 2, 2)],
        ];
        let mut done = [0; 3];
        for step in steps {
            let pieces: Vec<Piece<'_>> = step
                .iter()
                .map(|&(slot, i, n, rows)| Piece {
                    slot,
                    tokens: &texts[i][done[i]..][..n],
                    rows,
                    alone: false,
                })
                .collect();
            slots.run(&pieces).unwrap();
            let mut row = 0;
            for &(slot, i, n, rows) in step {
                done[i] += n;
                assert_eq!(slots.len(slot), done[i]);
                for want in &alone[i][done[i] - rows..done[i]] {
                    let d = distance(slots.logits(row), want);
                    assert!(d < tolerance, "{} text {i}, {} tokens: {d}", tiny.arch, done[i]);
                    row += 1;
                }
            }
        }
        assert_eq!(done, [20, 9, 14], "all of every text went through");
    }
}

#[test]
fn a_copy_goes_on_as_the_original() {
    let mut slots = Slots::new(&load(&Tiny::llama(FLOATS), 3, 1)).unwrap();
    let tokens = text(4, 12);
    slots.run(&[Piece { slot: 1, tokens: &tokens, rows: 0, alone: false }]).unwrap();
    slots.copy(1, 2, 8).unwrap();
    slots.truncate(1, 8);
    assert_eq!((slots.len(0), slots.len(1), slots.len(2)), (0, 8, 8));
    let next = |slot| Piece { slot, tokens: &tokens[8..], rows: 1, alone: false };
    slots.run(&[next(1), next(2)]).unwrap();
    assert_eq!(slots.logits(0), slots.logits(1));
    assert!(slots.logits(2).is_empty());
}

#[test]
fn wrong_pieces_are_refused() {
    let model = load(&Tiny::llama(FLOATS), 2, 1);
    let mut slots = Slots::new(&model).unwrap();
    let piece = |slot, tokens, rows| Piece { slot, tokens, rows, alone: false };
    let long = [1; 17];
    type Row<'a> = (&'a [Piece<'a>], fn(&EngineError) -> bool);
    let table: [Row; 8] = [
        (&[], |e| matches!(e, EngineError::EmptyPrompt)),
        (&[piece(0, &[], 0)], |e| matches!(e, EngineError::EmptyPrompt)),
        (&[piece(2, &[1], 0)], |e| matches!(e, EngineError::Slot { slot: 2, slots: 2 })),
        (&[piece(0, &[1], 0), piece(0, &[1], 0)], |e| matches!(e, EngineError::Slot { .. })),
        (&[piece(0, &[258], 0)], |e| matches!(e, EngineError::Token { token: 258, .. })),
        (&[piece(0, &[1], 2)], |e| matches!(e, EngineError::Row { .. })),
        (&[piece(0, &long, 0)], |e| matches!(e, EngineError::Batch { tokens: 17, .. })),
        (&[piece(0, &long[..13], 13)], |e| matches!(e, EngineError::Batch { rows: 13, .. })),
    ];
    for (pieces, fits) in table {
        let error = slots.run(pieces).unwrap_err();
        assert!(fits(&error), "{pieces:?}: {error}");
    }
    for _ in 0..6 {
        slots.run(&[piece(1, &long[..16], 1)]).unwrap();
    }
    let full = slots.run(&[piece(0, &[1], 1), piece(1, &[1], 1)]).unwrap_err();
    assert!(matches!(full, EngineError::ContextFull { past: 96, new: 1, context: 96 }), "{full}");
    assert_eq!((slots.len(0), slots.len(1)), (0, 96), "refused tokens leave nothing behind");
    assert!(matches!(Context::new(&model).err(), Some(EngineError::Form { .. })));
    let plain = load(&Tiny::llama(FLOATS), 0, 1);
    assert!(matches!(Slots::new(&plain).err(), Some(EngineError::Form { .. })));
}

/// A row has the same bits whoever else is in the call, and however the prompt was cut into pieces
/// of two tokens or more.
#[test]
fn company_changes_no_bit() {
    for (tiny, threads) in
        [(Tiny::llama(SMALL_BLOCKS), 2), (Tiny::llama(FLOATS), 1), (Tiny::qwen2(FLOATS), 3)]
    {
        let model = load(&tiny, 12, threads);
        let tokens = text(5, 12);
        let run = |chunk: usize, others: usize| -> Vec<Vec<f32>> {
            let mut slots = Slots::new(&model).unwrap();
            for piece in tokens.chunks(chunk) {
                slots.run(&[Piece { slot: 5, tokens: piece, rows: 1, alone: false }]).unwrap();
            }
            let mut out = vec![slots.logits(0).to_vec()];
            for step in 0..3u32 {
                let own = [40 + step];
                let mut pieces = vec![Piece { slot: 5, tokens: &own, rows: 1, alone: false }];
                let of_others = (0..12).filter(|&s| s != 5).take(others);
                pieces.extend(of_others.map(|slot| Piece {
                    slot,
                    tokens: &own,
                    rows: 1,
                    alone: false,
                }));
                pieces.rotate_left(others / 2);
                let at = pieces.iter().position(|p| p.slot == 5).unwrap();
                slots.run(&pieces).unwrap();
                out.push(slots.logits(at).to_vec());
            }
            out
        };
        let alone = run(12, 0);
        for (chunk, others) in [(6, 1), (2, 2), (4, 3), (12, 5), (3, 11)] {
            assert!(run(chunk, others) == alone, "{} by {chunk} with {others}", tiny.arch);
        }
    }
}
