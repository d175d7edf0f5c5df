//! Products of one token, by type, shape and variant.

use aether_codegen_wgsl::templates::Site;
use aether_codegen_wgsl::templates::matvec::{self, Variant};
use aether_codegen_wgsl::templates::product::Product;
use aether_ir::{DType, Symbol};
use indexmap::IndexSet;

use crate::harness::Buffers;
use crate::{Bench, Matrix, Ready, bytes_of};

impl Bench {
    fn variants(&self, many: bool) -> Vec<Variant> {
        let mut all = Vec::new();
        for subgroups in if many { vec![4, 8, 16] } else { vec![4, 8] } {
            for rows in if many { vec![1, 2, 3, 4] } else { vec![1, 2] } {
                for steps in [1, 2] {
                    for (prefetch, passes, held) in
                        [(true, 1, true), (true, 1, false), (false, 2, true), (false, 4, true)]
                    {
                        let heavy = rows * steps > 8 || subgroups * rows * passes > 64;
                        if heavy || (!many && (passes > 1 || !held)) {
                            continue;
                        }
                        all.push(Variant {
                            subgroups,
                            rows,
                            steps,
                            passes,
                            prefetch,
                            held,
                            tokens: 1,
                        });
                    }
                }
            }
        }
        all
    }

    pub fn matvec(&mut self) {
        let scale = if self.small { 8 } else { 1 };
        // Rows, length, whether a gated pair, whether after a norm.
        let shapes = [
            (28672 / 2, 4096, true, true),
            (4096, 14336, false, false),
            (6144, 4096, false, true),
            (4096, 4096, false, false),
            (32000, 4096, false, true),
        ];
        let types = [DType::Q4K, DType::Q6K, DType::Q8_0, DType::Q4_0, DType::F16];
        for dtype in types {
            // Every shape of the most used type, two of the others.
            let shapes = if dtype == DType::Q4K { &shapes[..] } else { &shapes[..2] };
            for &(rows, k, gated, norm) in shapes {
                let (rows, k) = (rows / scale, k / scale / 256 * 256);
                let many = dtype == DType::Q4K && !self.small;
                self.matvec_case(dtype, [rows, k.max(256)], gated, norm, many);
            }
        }
    }

    fn matvec_case(&mut self, dtype: DType, size: [usize; 2], gated: bool, norm: bool, many: bool) {
        let [rows, k] = size;
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let pair = if gated { 2 } else { 1 };
        let matrices: Vec<Matrix> = (0..pair).map(|_| self.matrix(dtype, rows, k)).collect();
        let bytes: usize = matrices.iter().map(|m| m.bytes.len()).sum();
        let total = if self.small { 1 << 20 } else { 600 << 20 };
        let copies = (total / bytes).clamp(1, 64);
        let mut x = self.floats(k);
        if norm {
            // The norm of these is what they are.
            let square = x.iter().map(|v| v * v).sum::<f32>() / k as f32;
            x.iter_mut().for_each(|v| *v /= square.sqrt());
        }
        let refs: Vec<&Matrix> = matrices.iter().collect();
        let product =
            Product { norm: norm.then_some(0f32.to_bits()), ..self.plain(&refs, 1, gated) };
        let mut sets = Vec::new();
        for _ in 0..copies {
            let mut operands = vec![self.gpu.upload(&bytes_of(&x))];
            operands.extend(matrices.iter().map(|m| self.gpu.upload(&m.bytes)));
            if norm {
                operands.push(self.gpu.upload(&bytes_of(&vec![1.0; k])));
            }
            sets.push(operands);
        }
        let out = self.gpu.buffer(rows as u64 * 4);
        let buffers: Vec<Buffers> =
            sets.into_iter().map(|operands| self.buffers(operands, &[&out], 0)).collect();
        let adapter = self.gpu.adapter;
        let default = Variant::choose(&product, &adapter);
        let mut lines = Vec::new();
        let mut variants = vec![default];
        variants.extend(if self.small { Vec::new() } else { self.variants(many) });
        for variant in variants {
            let operands = Self::operands(1 + pair + usize::from(norm));
            let site = Site { adapter: &adapter, symbols: &symbols, operands: &operands };
            let launch = matvec::launch(&product, &site, &variant);
            let first = self.ready(&launch, &buffers[0]);
            let rest: Vec<Ready> = buffers.iter().map(|b| self.again(&first, &launch, b)).collect();
            let pass: Vec<&Ready> = rest.iter().cycle().take(rest.len().max(50)).collect();
            let seconds = self.time(&pass) / pass.len() as f64;
            let error = self.error(&product, &refs, &x, &out);
            let check = if error < 0.08 { "" } else { " WRONG" };
            lines.push((seconds, format!("{variant:?} error {error:.4}{check}")));
        }
        let (time, note) = &lines[0];
        let what = format!("{dtype} {}x{k}{}", rows * pair, if norm { " norm" } else { "" });
        println!(
            "{what:20} default {:6.0} GB/s {:7.2} us {note}",
            bytes as f64 / time * 1e-9,
            time * 1e6
        );
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (time, note) in lines.iter().take(3) {
            println!(
                "{:20}         {:6.0} GB/s {:7.2} us {note}",
                "",
                bytes as f64 / time * 1e-9,
                time * 1e6
            );
        }
        if let Some((time, note)) = lines.last() {
            println!(
                "{:20} slowest {:6.0} GB/s {:7.2} us {note}",
                "",
                bytes as f64 / time * 1e-9,
                time * 1e6
            );
        }
    }
}
