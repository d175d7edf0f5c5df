//! The chain of samplers against distributions made by `scripts/oracles/sampling.py` with NumPy.

use aether_llm::sample::{
    DryOptions, MirostatOptions, MirostatVersion, Need, SampleError, Sampler, SamplerOptions,
    Scores,
};
use serde_json::Value;

fn options(settings: &Value) -> SamplerOptions {
    let float = |name: &str, or: f32| settings[name].as_f64().map_or(or, |v| v as f32);
    let count = |name: &str, or: usize| settings[name].as_u64().map_or(or, |v| v as usize);
    let version = match count("mirostat", 0) {
        1 => Some(MirostatVersion::V1),
        2 => Some(MirostatVersion::V2),
        _ => None,
    };
    let tau = float("mirostat_tau", 5.0);
    let bias = settings["logit_bias"].as_array().into_iter().flatten();
    SamplerOptions {
        temperature: float("temperature", 1.0),
        dynatemp_range: float("dynatemp_range", 0.0),
        dynatemp_exponent: float("dynatemp_exponent", 1.0),
        top_k: count("top_k", 0),
        top_p: float("top_p", 1.0),
        min_p: float("min_p", 0.0),
        typical_p: float("typical_p", 1.0),
        top_n_sigma: float("top_n_sigma", -1.0),
        xtc_probability: float("xtc_probability", 0.0),
        xtc_threshold: float("xtc_threshold", 0.1),
        repeat_penalty: float("repeat_penalty", 1.0),
        frequency_penalty: float("frequency_penalty", 0.0),
        presence_penalty: float("presence_penalty", 0.0),
        repeat_last_n: count("repeat_last_n", 64),
        dry: DryOptions {
            multiplier: float("dry_multiplier", 0.0),
            base: float("dry_base", 1.75),
            allowed_length: count("dry_allowed_length", 2),
            last_n: count("dry_last_n", usize::MAX),
            ..DryOptions::default()
        },
        mirostat: version.map(|version| MirostatOptions { version, tau, eta: 0.1 }),
        logit_bias: bias
            .map(|pair| (pair[0].as_u64().unwrap() as u32, pair[1].as_f64().unwrap() as f32))
            .collect(),
        seed: 1,
    }
}

#[test]
fn distributions_equal_the_oracle() {
    let cases: Vec<Value> = serde_json::from_str(include_str!("data/sampling.json")).unwrap();
    assert!(cases.len() > 50);
    for case in cases {
        let logits: Vec<f32> =
            case["logits"].as_array().unwrap().iter().map(|v| v.as_f64().unwrap() as f32).collect();
        let mut sampler = Sampler::new(options(&case["settings"])).unwrap();
        for token in case["history"].as_array().unwrap() {
            sampler.accept(token.as_u64().unwrap() as u32);
        }
        let mut got: Vec<(u32, f32)> =
            sampler.distribution(&logits).unwrap().iter().map(|c| (c.token, c.p)).collect();
        got.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        let want: Vec<(u32, f64)> = case["want"]
            .as_array()
            .unwrap()
            .iter()
            .map(|pair| (pair[0].as_u64().unwrap() as u32, pair[1].as_f64().unwrap()))
            .collect();
        let tokens = |all: &[u32]| {
            let mut all = all.to_vec();
            all.sort_unstable();
            all
        };
        assert_eq!(
            tokens(&got.iter().map(|g| g.0).collect::<Vec<_>>()),
            tokens(&want.iter().map(|w| w.0).collect::<Vec<_>>()),
            "{}",
            case["settings"]
        );
        for (g, w) in got.iter().zip(&want) {
            assert!((f64::from(g.1) - w.1).abs() < 1e-5, "{}: {g:?} {w:?}", case["settings"]);
        }
        // What is drawn is in it.
        for _ in 0..50 {
            let token = sampler.clone().sample(&logits).unwrap();
            assert!(want.iter().any(|w| w.0 == token), "{}: {token}", case["settings"]);
        }
    }
}

/// The fast road for plain top-k gives what the chain gives.
#[test]
fn shortcuts_change_no_draw() {
    let mut rng = fastrand::Rng::with_seed(3);
    let logits: Vec<f32> = (0..2000).map(|_| (rng.f32() * 40.0).floor() / 4.0).collect();
    for seed in 0..40 {
        let plain = SamplerOptions { seed, ..SamplerOptions::default() };
        // A bias of nothing takes the long road.
        let long = SamplerOptions { logit_bias: vec![(7, 0.0)], ..plain.clone() };
        let draw = |opts| Sampler::new(opts).unwrap().sample(&logits).unwrap();
        assert_eq!(draw(plain), draw(long));
    }
}

/// The greatest `k` in falling order, the lower token first among equals.
fn greatest(logits: &[f32], k: usize) -> (Vec<f32>, Vec<u32>) {
    let mut tokens: Vec<u32> = (0..logits.len() as u32).collect();
    tokens.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap());
    tokens.truncate(k);
    (tokens.iter().map(|&t| logits[t as usize]).collect(), tokens)
}

/// What a sampler says it needs is enough to choose as from all logits, whatever the chain is.
#[test]
fn the_greatest_decide_where_a_sampler_says_so() {
    let mut rng = fastrand::Rng::with_seed(11);
    let (mut best, mut all) = (0, 0);
    for round in 0..600 {
        let n = [20, 300, 3000][rng.usize(..3)];
        let mut logits: Vec<f32> = (0..n)
            .map(|_| match rng.u8(..20) {
                0 => f32::NEG_INFINITY,
                1 => -0.0,
                2 => 0.0,
                // Few distinct values: many are equal.
                _ => (rng.f32() * 60.0).floor() / 4.0 - 5.0,
            })
            .collect();
        logits[rng.usize(..n)] = 12.0;
        let some = |rng: &mut fastrand::Rng, off: f32, on: f32| if rng.bool() { off } else { on };
        let opts = SamplerOptions {
            temperature: [0.0, 0.3, 1.0, 2.5][rng.usize(..4)],
            dynatemp_range: some(&mut rng, 0.0, 0.2),
            top_k: [0, 1, 2, 7, 15][rng.usize(..5)],
            top_p: some(&mut rng, 1.0, 0.8),
            min_p: some(&mut rng, 0.0, 0.1),
            typical_p: some(&mut rng, 1.0, 0.7),
            xtc_probability: some(&mut rng, 0.0, 0.5),
            top_n_sigma: if rng.u8(..8) == 0 { 1.0 } else { -1.0 },
            repeat_penalty: if rng.u8(..8) == 0 { 1.2 } else { 1.0 },
            mirostat: (rng.u8(..10) == 0).then_some(MirostatOptions {
                version: MirostatVersion::V2,
                tau: 3.0,
                eta: 0.1,
            }),
            logit_bias: (0..rng.usize(..4))
                .map(|_| {
                    let bias = [-1.0, -3.0, f32::NEG_INFINITY, 2.0][rng.usize(..4)];
                    (rng.u32(..n as u32), bias)
                })
                .collect(),
            seed: round,
            ..SamplerOptions::default()
        };
        let mut sampler = Sampler::new(opts.clone()).unwrap();
        (0..rng.usize(..3)).for_each(|_| sampler.accept(rng.u32(..n as u32)));
        let k = match sampler.need() {
            Need::All => {
                all += 1;
                continue;
            }
            Need::Best(k) if k >= n => continue,
            Need::Best(k) => k,
        };
        best += 1;
        // More than is needed does no harm.
        let (values, tokens) = greatest(&logits, k + rng.usize(..n - k));
        let mut other = sampler.clone();
        for draw in 0..20 {
            let want = sampler.sample(&logits);
            let got = other.choose(Scores::Best { logits: &values, tokens: &tokens }, None);
            assert_eq!(got, want, "draw {draw} of {n}: {opts:?}");
            assert_eq!(other.choices(), sampler.choices());
        }
        let (values, tokens) = greatest(&logits, k - 1);
        let too_few = other.choose(Scores::Best { logits: &values, tokens: &tokens }, None);
        let want = match k {
            1 => SampleError::Empty,
            _ => SampleError::Unseen { found: k - 1 },
        };
        assert_eq!(too_few, Err(want));
    }
    assert!(best > 200 && all > 100, "{best} {all}");
}

#[test]
fn broken_logits_are_seen_in_the_greatest_too() {
    let mut sampler = Sampler::new(SamplerOptions::greedy()).unwrap();
    let table = [
        (f32::NAN, SampleError::NotANumber { token: 7 }),
        (f32::INFINITY, SampleError::NotFinite(f32::INFINITY)),
        (f32::NEG_INFINITY, SampleError::NotFinite(f32::NEG_INFINITY)),
    ];
    for (logit, want) in table {
        let scores = Scores::Best { logits: &[logit], tokens: &[7] };
        assert_eq!(sampler.choose(scores, None), Err(want));
    }
}
