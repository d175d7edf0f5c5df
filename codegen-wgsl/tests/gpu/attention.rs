//! Attention in both forms against the meaning.

use aether_codegen_wgsl::templates::Site;
use aether_codegen_wgsl::templates::attention::Attention;
use aether_ir::tensor::ConcreteType;
use aether_ir::{Attrs, DType, Dim, Op, Symbol, Tensor};
use indexmap::IndexSet;

use crate::sample::{GPU, activations, adapters, assert_close, floats, meaning, operands};

fn check(a: &Attention, tokens: usize, past: i32, seed: u64) {
    let mut rng = fastrand::Rng::with_seed(seed);
    let q = activations(&mut rng, &[tokens, a.heads, a.d]);
    let mut cache = |d: usize| {
        let x = activations(&mut rng, &[a.context, a.kv_heads, d]);
        Tensor::from_f64(a.cache, x.shape(), &x.to_f64_vec().unwrap()).unwrap()
    };
    let (k, v) = (cache(a.d), cache(a.dv));
    let past = Tensor::scalar_i32(past);
    let attrs = Attrs::new()
        .with("scale", f64::from(a.scale))
        .with("causal", a.causal)
        .with("window", a.window as i64)
        .with("softcap", f64::from(a.softcap));
    let ty = ConcreteType::new(DType::F32, vec![tokens, a.heads, a.dv]);
    let want = meaning(Op::Attention, &[&q, &k, &v, &past], &attrs, &[ty]);
    let bytes: Vec<Vec<u8>> = [&q, &k, &v, &past].iter().map(|t| t.bytes().to_vec()).collect();
    let symbols: IndexSet<Symbol> = ["s0".into()].into();
    for adapter in adapters() {
        let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands(4) };
        let size = tokens * a.heads * a.dv * 4;
        let scratch = a.scratch_bytes(&adapter);
        let launches = a.launches(&site);
        if !GPU.can_run(&adapter, &launches) {
            continue;
        }
        let found = GPU.run(&launches, &bytes, &[size], scratch, &[tokens as u32]);
        let what = format!("{a:?} {tokens} after {past:?}");
        // Cooperative matrices take weights as f16.
        let tolerance = if adapter.cooperative_matrix { 4e-3 } else { 1e-3 };
        assert_close(&what, &floats(&found[0]), &want[0].to_f32_vec().unwrap(), tolerance);
    }
}

#[test]
fn few_and_many_tokens() {
    let base = Attention {
        heads: 6,
        kv_heads: 2,
        d: 32,
        dv: 32,
        tokens: Dim::symbol("s0"),
        most_tokens: 4,
        context: 300,
        cache: DType::F16,
        scale: 0.18,
        causal: true,
        window: 0,
        softcap: 0.0,
        slots: None,
    };
    let variants = [
        base.clone(),
        Attention { heads: 8, d: 64, dv: 128, ..base.clone() },
        Attention { window: 50, softcap: 2.0, d: 128, dv: 64, ..base.clone() },
        Attention { cache: DType::F32, heads: 8, ..base.clone() },
        Attention { window: 50, softcap: 2.0, ..base.clone() },
        Attention { causal: false, heads: 4, d: 40, dv: 24, ..base.clone() },
        Attention { d: 7, dv: 5, ..base.clone() },
        Attention { cache: DType::F32, d: 6, dv: 10, ..base.clone() },
    ];
    for (i, variant) in variants.iter().enumerate() {
        for (tokens, past) in [(1, 0), (1, 299), (3, 150)] {
            check(variant, tokens, past, i as u64);
        }
        let many = Attention { most_tokens: 70, ..variant.clone() };
        for (tokens, past) in [(1, 0), (70, 0), (37, 201)] {
            check(&many, tokens, past, i as u64);
        }
    }
}

/// Tokens of several sequences in one cache.
#[test]
fn slots() {
    let base = Attention {
        heads: 6,
        kv_heads: 2,
        d: 32,
        dv: 24,
        tokens: Dim::symbol("s0"),
        most_tokens: 12,
        context: 40,
        cache: DType::F16,
        scale: 0.18,
        causal: true,
        window: 0,
        softcap: 0.0,
        slots: Some(3),
    };
    let few = vec![(39, 2), (17, 1), (18, 1), (19, 1), (0, 0)];
    // Runs at rising positions and at falling ones, and tokens that go alone.
    let runs = [(2, 39..40), (1, 3..38), (0, 7..8), (4, 0..30), (3, 5..6)];
    let mut many: Vec<(i32, i32)> =
        runs.iter().flat_map(|(slot, at)| at.clone().map(|p| (p, *slot))).collect();
    many[37..67].reverse();
    let wide =
        Attention { slots: Some(5), most_tokens: 80, d: 64, dv: 32, heads: 8, ..base.clone() };
    let cases = [
        (base.clone(), &few),
        (Attention { window: 9, cache: DType::F32, most_tokens: 5, ..base }, &few),
        (wide.clone(), &many),
        (Attention { window: 9, most_tokens: 200, ..wide.clone() }, &many),
        (Attention { window: 9, ..wide }, &few),
    ];
    for (a, places) in cases {
        let mut rng = fastrand::Rng::with_seed(9);
        let q = activations(&mut rng, &[places.len(), a.heads, a.d]);
        let mut cache = |d: usize| {
            let x = activations(&mut rng, &[a.slots.unwrap(), a.context, a.kv_heads, d]);
            Tensor::from_f64(a.cache, x.shape(), &x.to_f64_vec().unwrap()).unwrap()
        };
        let (k, v) = (cache(a.d), cache(a.dv));
        let part = |of: fn(&(i32, i32)) -> i32| places.iter().map(of).collect::<Vec<i32>>();
        let [positions, slots] = [part(|p| p.0), part(|p| p.1)]
            .map(|values| Tensor::from_i32(&[places.len()], &values).unwrap());
        let attrs = Attrs::new().with("scale", f64::from(a.scale)).with("window", a.window as i64);
        let ty = ConcreteType::new(DType::F32, vec![places.len(), a.heads, a.dv]);
        let given = [&q, &k, &v, &positions, &slots];
        let want = meaning(Op::Attention, &given, &attrs, &[ty]);
        let bytes: Vec<Vec<u8>> = given.iter().map(|t| t.bytes().to_vec()).collect();
        let symbols: IndexSet<Symbol> = ["s0".into()].into();
        for adapter in adapters() {
            let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands(5) };
            let size = places.len() * a.heads * a.dv * 4;
            let scratch = a.scratch_bytes(&adapter);
            let tokens = [places.len() as u32];
            let launches = a.launches(&site);
            if !GPU.can_run(&adapter, &launches) {
                continue;
            }
            let found = GPU.run(&launches, &bytes, &[size], scratch, &tokens);
            let want = want[0].to_f32_vec().unwrap();
            let tolerance = if adapter.cooperative_matrix { 4e-3 } else { 1e-3 };
            assert_close(&format!("{a:?}"), &floats(&found[0]), &want, tolerance);
        }
    }
}

#[test]
fn large_heads() {
    let base = Attention {
        heads: 4,
        kv_heads: 1,
        d: 256,
        dv: 256,
        tokens: Dim::symbol("s0"),
        most_tokens: 20,
        context: 64,
        cache: DType::F16,
        scale: 0.06,
        causal: true,
        window: 0,
        softcap: 0.0,
        slots: None,
    };
    check(&base, 20, 30, 1);
    check(&Attention { most_tokens: 1, ..base }, 1, 63, 2);
}
