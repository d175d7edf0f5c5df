//! A decode step shaped like a 7B LLaMA.

use aether_codegen_wgsl::kernel::Launch;
use aether_codegen_wgsl::templates::attention::Attention;
use aether_codegen_wgsl::templates::pick::Pick;
use aether_codegen_wgsl::templates::product::{Addend, Product};
use aether_codegen_wgsl::templates::{Operand, Site};
use aether_ir::{DType, Dim, Symbol};
use indexmap::IndexSet;

use crate::harness::{Buffers, groups};
use crate::{Bench, Matrix, Ready, bytes_of};

impl Bench {
    /// Steps of a 7B LLaMA: products alone, then with attention and the choice of a token.
    pub fn decode(&mut self) {
        let (layers, width, ff, kv, vocab, past) = if self.small {
            (2, 512, 1024, 128, 1000, 40)
        } else {
            (32, 4096, 14336, 1024, 32000, 512)
        };
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let adapter = self.gpu.adapter;
        let (d, context) = (if self.small { 64 } else { 128 }, 1024);
        let heads = width / d;
        let dtype = DType::Q4K;
        let shapes = [
            (width, width),
            (kv, width),
            (kv, width),
            (width, width),
            (ff, width),
            (ff, width),
            (width, ff),
        ];
        let matrices: Vec<Matrix> =
            shapes.iter().map(|(n, k)| self.matrix(dtype, *n, *k)).collect();
        let head = self.matrix(dtype, vocab, width);
        let templates: Vec<wgpu::Buffer> =
            matrices.iter().map(|m| self.gpu.upload(&m.bytes)).collect();
        let eps = Some(1e-5f32.to_bits());
        let qkv = Product {
            norm: eps,
            ..self.plain(&[&matrices[0], &matrices[1], &matrices[2]], 1, false)
        };
        let addends = vec![Addend { weight: 0, row: false }];
        let o = Product { addends: addends.clone(), ..self.plain(&[&matrices[3]], 1, false) };
        let up = Product { norm: eps, ..self.plain(&[&matrices[4], &matrices[5]], 1, true) };
        let down = Product { addends, ..self.plain(&[&matrices[6]], 1, false) };
        let logits = Product { norm: eps, ..self.plain(&[&head], 1, false) };
        let attention = Attention {
            heads,
            kv_heads: kv / d,
            d,
            dv: d,
            tokens: Dim::new(1),
            most_tokens: 1,
            context,
            cache: DType::F16,
            scale: 0.088,
            causal: true,
            window: 0,
            softcap: 0.0,
            slots: None,
        };
        let pick = Pick { rows: Dim::new(1), most_rows: 1, n: vocab, k: None };
        let site = |operands: &[Operand], f: &dyn Fn(&Site) -> Vec<Launch>| {
            f(&Site { adapter: &adapter, symbols: &symbols, operands })
        };
        let ops = Self::operands(6);
        let vector = |n: usize| self.gpu.buffer(n as u64 * 4);
        let (h, h2) = (self.gpu.upload(&bytes_of(&vec![0.1; width])), vector(width));
        let (q, k, v, att, act) =
            (vector(width), vector(kv), vector(kv), vector(width), vector(ff));
        let norm = self.gpu.upload(&bytes_of(&vec![1.0; width]));
        let past = self.gpu.upload(&i32::to_le_bytes(past));
        let (out, token) = (vector(vocab), vector(1));
        // Pipelines are made once for each kind.
        let mut kinds: Vec<(Launch, wgpu::ComputePipeline)> = Vec::new();
        let mut pass: Vec<(bool, Ready)> = Vec::new();
        let mut add = |bench: &Bench, product: bool, launches: Vec<Launch>, buffers: Buffers| {
            for launch in launches {
                let known = kinds.iter().find(|k| k.0.shader == launch.shader);
                let pipeline = match known {
                    Some((_, pipeline)) => pipeline.clone(),
                    None => {
                        let pipeline = bench.gpu.pipeline(&launch.shader, false);
                        kinds.push((launch.clone(), pipeline.clone()));
                        pipeline
                    }
                };
                let group = bench.gpu.bind_group(&pipeline, &launch, &buffers);
                pass.push((product, Ready { pipeline, group, size: groups(&launch, &[]) }));
            }
        };
        let mut weight_bytes = head.bytes.len();
        let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
        for _ in 0..layers {
            let w: Vec<wgpu::Buffer> = matrices
                .iter()
                .zip(&templates)
                .map(|(m, t)| {
                    let b = self.gpu.buffer(m.bytes.len() as u64);
                    encoder.copy_buffer_to_buffer(t, 0, &b, 0, m.bytes.len() as u64);
                    weight_bytes += m.bytes.len();
                    b
                })
                .collect();
            let cache = || self.gpu.buffer((context * kv * 2) as u64);
            let (kc, vc) = (cache(), cache());
            let of = |list: &[&wgpu::Buffer]| -> Vec<wgpu::Buffer> {
                list.iter().map(|b| (*b).clone()).collect()
            };
            let operands = of(&[&h, &w[0], &w[1], &w[2], &norm]);
            add(
                self,
                true,
                site(&ops, &|s| qkv.launches(s)),
                self.buffers(operands, &[&q, &k, &v], 0),
            );
            let scratch = attention.scratch_bytes(&adapter);
            let operands = of(&[&q, &kc, &vc, &past]);
            add(
                self,
                false,
                site(&ops, &|s| attention.launches(s)),
                self.buffers(operands, &[&att], scratch),
            );
            add(
                self,
                true,
                site(&ops, &|s| o.launches(s)),
                self.buffers(of(&[&att, &w[3], &h]), &[&h2], 0),
            );
            add(
                self,
                true,
                site(&ops, &|s| up.launches(s)),
                self.buffers(of(&[&h2, &w[4], &w[5], &norm]), &[&act], 0),
            );
            add(
                self,
                true,
                site(&ops, &|s| down.launches(s)),
                self.buffers(of(&[&act, &w[6], &h2]), &[&h], 0),
            );
        }
        self.gpu.queue.submit([encoder.finish()]);
        let operands = vec![h.clone(), self.gpu.upload(&head.bytes), norm.clone()];
        add(self, true, site(&ops, &|s| logits.launches(s)), self.buffers(operands, &[&out], 0));
        let buffers = self.buffers(vec![out.clone()], &[&token], pick.scratch_bytes());
        add(self, false, site(&ops, &|s| pick.launches(s)), buffers);
        let all: Vec<&Ready> = pass.iter().map(|p| &p.1).collect();
        let products: Vec<&Ready> = pass.iter().filter(|p| p.0).map(|p| &p.1).collect();
        for (what, chain) in [("products", products), ("with attention", all)] {
            let seconds = self.time(&chain);
            println!(
                "{what}: {} dispatches, {:.3} ms, {:.0} steps/s, {:.0} GB/s of weights",
                chain.len(),
                seconds * 1e3,
                1.0 / seconds,
                weight_bytes as f64 / seconds * 1e-9
            );
        }
    }
}
