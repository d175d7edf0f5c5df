//! Attention over a cache, of one token and of many.

use aether_codegen_wgsl::templates::Site;
use aether_codegen_wgsl::templates::attention::Attention;
use aether_ir::{DType, Dim, Symbol};
use indexmap::IndexSet;

use crate::{Bench, Ready, bytes_of, floats_of};

impl Bench {
    pub fn attention(&mut self) {
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let adapter = self.gpu.adapter;
        let (heads, kv_heads, d): (usize, usize, usize) =
            if self.small { (4, 2, 64) } else { (32, 8, 128) };
        let cases: Vec<(usize, usize)> = if self.small {
            vec![(1, 200), (100, 0)]
        } else {
            vec![(1, 512), (1, 4095), (8, 512), (512, 0), (512, 3584), (2048, 0)]
        };
        for (tokens, past) in cases {
            let context =
                (past + tokens).next_multiple_of(256).max(if tokens == 1 { 4352 } else { 0 });
            let attention = Attention {
                heads,
                kv_heads,
                d,
                dv: d,
                tokens: Dim::from(tokens),
                most_tokens: tokens,
                context,
                cache: DType::F16,
                scale: 0.088,
                causal: true,
                window: 0,
                softcap: 0.0,
                slots: None,
            };
            let q = self.floats(tokens * heads * d);
            let half = |v: &[f32]| -> Vec<u8> {
                let mut bytes = vec![0; v.len() * 2];
                aether_ir::quant::quantize(DType::F16, v, &mut bytes).expect("whole");
                bytes
            };
            let k = self.floats(context * kv_heads * d);
            let v = self.floats(context * kv_heads * d);
            let operands = vec![
                self.gpu.upload(&bytes_of(&q)),
                self.gpu.upload(&half(&k)),
                self.gpu.upload(&half(&v)),
                self.gpu.upload(&(past as i32).to_le_bytes()),
            ];
            let out = self.gpu.buffer((tokens * heads * d * 4) as u64);
            let buffers = self.buffers(operands, &[&out], attention.scratch_bytes(&adapter));
            let list = Self::operands(4);
            let site = Site { adapter: &adapter, symbols: &symbols, operands: &list };
            let ready: Vec<Ready> =
                attention.launches(&site).iter().map(|l| self.ready(l, &buffers)).collect();
            let times = if self.small { 1 } else { 20 };
            let pass: Vec<&Ready> = ready.iter().cycle().take(times * ready.len()).collect();
            let seconds = self.time(&pass) / times as f64;
            let found = floats_of(&self.gpu.download(&out, tokens * heads * d * 4));
            let mut worst = 0f64;
            for i in 0..20 {
                let (t, h) = (i * 31 % tokens, i * 5 % heads);
                let g = h / (heads / kv_heads);
                let row = |x: &[f32], at: usize| -> Vec<f64> {
                    x[at * d..(at + 1) * d].iter().map(|v| f64::from(*v)).collect()
                };
                let query = row(&q, t * heads + h);
                let weights: Vec<f64> = (0..past + t + 1)
                    .map(|j| {
                        let key = row(&k, j * kv_heads + g);
                        (query.iter().zip(&key).map(|(a, b)| a * b).sum::<f64>() * 0.088).exp()
                    })
                    .collect();
                let total: f64 = weights.iter().sum();
                for e in 0..d {
                    let sum: f64 = weights
                        .iter()
                        .enumerate()
                        .map(|(j, w)| w * f64::from(v[(j * kv_heads + g) * d + e]))
                        .sum();
                    let off = (sum / total - f64::from(found[(t * heads + h) * d + e])).abs();
                    worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
                }
            }
            let check = if worst < 2e-3 { "" } else { " WRONG" };
            let flops = 4.0 * (heads * d * tokens) as f64 * (past as f64 + tokens as f64 / 2.0);
            let bytes = (2 * (past + tokens) * kv_heads * d * 2) as f64;
            println!(
                "attention {tokens} tokens after {past}: {} dispatches {:.1} us, {:.1} TFLOP/s, {:.0} GB/s of cache, error {worst:.5}{check}",
                ready.len(),
                seconds * 1e6,
                flops / seconds * 1e-12,
                bytes / seconds * 1e-9
            );
        }
    }
}
