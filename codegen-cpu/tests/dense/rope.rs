//! Rotary embedding.

use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::rope::{self, RopeMode, RopeParams};

use crate::support::{assert_close, random};

#[test]
fn rope_turns_pairs() {
    let mut rng = fastrand::Rng::with_seed(6);
    for isa in Isa::available() {
        for (head_dim, n_dims) in [(2, 2), (8, 6), (64, 64), (80, 80), (128, 64), (96, 96)] {
            let plain = RopeParams::new(n_dims, 10_000.0);
            let factors: Vec<f32> = (0..n_dims / 2).map(|_| 1.0 + rng.f32() * 7.0).collect();
            let yarn = RopeParams {
                freq_scale: 0.25,
                ext_factor: 1.0,
                attn_factor: 1.1,
                original_context: 4096,
                ..plain
            };
            for (p, f) in [(plain, None), (plain, Some(&factors[..])), (yarn, None)] {
                let pairs = n_dims / 2;
                let position = 1234.0;
                let (mut cos, mut sin) = (vec![0.0; pairs], vec![0.0; pairs]);
                p.fill_table(position, f, &mut cos, &mut sin);
                for mode in [RopeMode::Norm, RopeMode::Neox] {
                    let x = random(&mut rng, 3 * head_dim, 2.0);
                    let mut want: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
                    for head in want.chunks_exact_mut(head_dim) {
                        for i in 0..pairs {
                            let mut angle = position * 1e4f64.powf(-2.0 * i as f64 / n_dims as f64);
                            angle /= f.map_or(1.0, |f| f64::from(f[i]));
                            let mut m = 1.0;
                            if p == yarn {
                                // The paper's ramp, over the turns of the pair, linear in the
                                // pair's number between the rounded bounds.
                                let pair = |turns: f64| {
                                    n_dims as f64 * (4096.0 / (turns * std::f64::consts::TAU)).ln()
                                        / (2.0 * 1e4f64.ln())
                                };
                                let low = pair(32.0).floor().max(0.0);
                                let high = pair(1.0).ceil().min(n_dims as f64 - 1.0);
                                let t =
                                    ((i as f64 - low) / (high - low).max(0.001)).clamp(0.0, 1.0);
                                angle = angle * (1.0 - t) + angle / 4.0 * t;
                                m = f64::from(1.1f32) * (1.0 + 0.1 * 4f64.ln());
                            }
                            let (a, b) = match mode {
                                RopeMode::Norm => (2 * i, 2 * i + 1),
                                RopeMode::Neox => (i, i + pairs),
                            };
                            let (u, v) = (head[a], head[b]);
                            head[a] = m * (u * angle.cos() - v * angle.sin());
                            head[b] = m * (u * angle.sin() + v * angle.cos());
                        }
                    }
                    let mut got = x.clone();
                    rope::rope(isa, mode, &mut got, head_dim, &cos, &sin);
                    assert_close(&got, &want, 1e-6, &format!("{mode:?} {head_dim} {isa}"));
                    let mut copy = vec![0.0; x.len()];
                    // SAFETY: shapes as above.
                    unsafe {
                        let (c, s) = (cos.as_ptr(), sin.as_ptr());
                        let (x, o) = (x.as_ptr(), copy.as_mut_ptr());
                        rope::rope_raw(isa, mode, x, o, (3, head_dim), (c, s, pairs));
                    }
                    assert_eq!(copy, got);
                }
            }
        }
    }
}
