//! Products of many tokens, by tile.

use aether_codegen_wgsl::templates::coop::{self, Tile};
use aether_codegen_wgsl::templates::{Site, tiled};
use aether_ir::{DType, Symbol};
use indexmap::IndexSet;

use crate::{Bench, Matrix, Ready, bytes_of};

impl Bench {
    pub fn coop(&mut self) {
        if !self.gpu.adapter.cooperative_matrix {
            println!("no cooperative matrices");
            return;
        }
        let mut tiles = Vec::new();
        tiles.push(Tile {
            tokens: 128,
            rows: 128,
            blocks: 1,
            across: (2, 2),
            splits: 1,
            wide: false,
        });
        for (tokens, rows) in [(128, 128), (64, 128), (128, 64), (128, 256)] {
            for across in [(2, 2), (2, 4), (4, 2)] {
                for blocks in [1, 2] {
                    let tile = Tile { tokens, rows, blocks, across, splits: 1, wide: true };
                    let memory = (tokens + rows) * (8 * blocks + 2) * 8
                        + across.0 * across.1 * 64 * (rows / across.1 + 4);
                    if memory <= 48 << 10 && tokens * rows / across.0 / across.1 <= 4096 {
                        tiles.push(tile);
                    }
                }
            }
        }
        for (dtype, n, k, tokens, gated) in [
            (DType::Q4K, 14336, 4096, 512, true),
            (DType::Q4K, 4096, 4096, 512, false),
            (DType::Q4K, 4096, 14336, 512, false),
            (DType::F16, 14336, 4096, 512, false),
            (DType::Q6K, 14336, 4096, 512, false),
            (DType::F16, 4096, 4096, 4096, false),
        ] {
            self.coop_case(dtype, n, k, tokens, gated, &tiles);
        }
    }

    /// Few tokens: subgroups share the steps.
    pub fn coop_few(&mut self) {
        if !self.gpu.adapter.cooperative_matrix {
            println!("no cooperative matrices");
            return;
        }
        for tokens in [16u32, 32, 64, 512] {
            let mut tiles = Vec::new();
            for splits in [1, 2, 4, 8, 16] {
                for across in [(1, 4), (2, 2)] {
                    if tokens.is_multiple_of(16 * across.0) {
                        tiles.push(Tile {
                            tokens: tokens.min(128),
                            rows: 128,
                            blocks: 1,
                            across,
                            wide: true,
                            splits,
                        });
                    }
                }
            }
            for (dtype, n, k, gated) in [
                (DType::Q4K, 14336, 4096, true),
                (DType::Q4K, 4096, 4096, false),
                (DType::Q4K, 4096, 14336, false),
            ] {
                self.coop_case(dtype, n, k, tokens as usize, gated, &tiles);
            }
        }
    }

    fn coop_case(
        &mut self,
        dtype: DType,
        n: usize,
        k: usize,
        tokens: usize,
        gated: bool,
        tiles: &[Tile],
    ) {
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let adapter = self.gpu.adapter;
        let pair = if gated { 2 } else { 1 };
        let matrices: Vec<Matrix> = (0..pair).map(|_| self.matrix(dtype, n, k)).collect();
        let refs: Vec<&Matrix> = matrices.iter().collect();
        let x = self.floats(tokens * k);
        let product = self.plain(&refs, tokens, gated);
        let mut operands = vec![self.gpu.upload(&bytes_of(&x))];
        operands.extend(matrices.iter().map(|m| self.gpu.upload(&m.bytes)));
        let out = self.gpu.buffer((tokens * n * 4) as u64);
        let partial = tiles.iter().map(|t| coop::partial_bytes(&product, t)).max().unwrap_or(0);
        let buffers = self.buffers(operands, &[&out], coop::area(&product).bytes() + partial);
        let flops = 2.0 * (tokens * n * pair * k) as f64;
        let mut lines = Vec::new();
        for tile in tiles {
            let list = Self::operands(1 + pair);
            let site = Site { adapter: &adapter, symbols: &symbols, operands: &list };
            let ready: Vec<Ready> = coop::launches(&product, &site, tile)
                .iter()
                .map(|l| self.ready(l, &buffers))
                .collect();
            let pass: Vec<&Ready> = ready.iter().cycle().take(10 * ready.len()).collect();
            let seconds = self.time(&pass) / 10.0;
            let error = self.error(&product, &refs, &x, &out);
            let check = if error < 0.02 { "" } else { " WRONG" };
            lines.push((seconds, format!("{tile:?} error {error:.5}{check}")));
        }
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!(
            "{dtype} {tokens}x{}x{k}, chosen {:?}",
            n * pair,
            Tile::choose(&product, &adapter)
        );
        for (seconds, note) in &lines {
            println!("    {:6.1} TFLOP/s {:8.1} us {note}", flops / seconds * 1e-12, seconds * 1e6);
        }
    }

    /// f32 products with relu in tiles, both ways to store the weights.
    pub fn floats_tiled(&mut self) {
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let adapter = self.gpu.adapter;
        for n in if self.small { vec![128] } else { vec![1024, 2048, 4096] } {
            let matrix = self.matrix(DType::F32, n, n);
            let x = self.floats(n * n);
            let product = self.plain(&[&matrix], n, false);
            let operands = vec![self.gpu.upload(&bytes_of(&x)), self.gpu.upload(&matrix.bytes)];
            let out = self.gpu.buffer((n * n * 4) as u64);
            let buffers = self.buffers(operands, &[&out], 0);
            let list = Self::operands(2);
            let site = Site { adapter: &adapter, symbols: &symbols, operands: &list };
            for transposed in [false, true] {
                let ready =
                    self.ready(&tiled::launch(&product, &site, None, 0, transposed), &buffers);
                let pass = vec![&ready; 10];
                let seconds = self.time(&pass) / 10.0;
                let rate = 2.0 * (n as f64).powi(3) / seconds * 1e-12;
                println!(
                    "f32 {n}, transposed {transposed}: {rate:.1} TFLOP/s {:.1} us",
                    seconds * 1e6
                );
            }
            // The last were those stored as rows.
            let error = self.error(&product, &[&matrix], &x, &out);
            println!("    error {error:.6}{}", if error < 1e-4 { "" } else { " WRONG" });
        }
    }
}
