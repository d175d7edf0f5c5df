//! f16 products of plain matrices, by tile.

use aether_codegen_wgsl::templates::Site;
use aether_codegen_wgsl::templates::dense::Dense;
use aether_codegen_wgsl::templates::dense::halves::{self, Tile};
use aether_ir::{DType, Dim, Symbol, Tensor};
use indexmap::IndexSet;

use crate::{Bench, Ready};

impl Bench {
    pub fn halves(&mut self) {
        if !self.gpu.adapter.cooperative_matrix {
            println!("no cooperative matrices");
            return;
        }
        let mut tiles = Vec::new();
        for (rows, columns) in [(64, 64), (64, 128), (128, 128), (32, 64), (32, 128), (128, 256)] {
            for step in [32, 64, 128] {
                for subgroups in [(2, 2), (2, 4), (1, 4), (1, 2)] {
                    for halves in [1, 2] {
                        let tile = Tile { rows, columns, step, subgroups, halves };
                        let fragments = rows * columns / 256 / subgroups.0 / subgroups.1;
                        let each = columns / 16 / subgroups.1;
                        if tile.bytes(false) <= 48 << 10
                            && (2..=16).contains(&fragments)
                            && each >= 2
                        {
                            tiles.push(tile);
                        }
                    }
                }
            }
        }
        for n in [1024usize, 2048] {
            self.halves_of(n, &tiles);
        }
    }

    fn halves_of(&mut self, n: usize, tiles: &[Tile]) {
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let adapter = self.gpu.adapter;
        let values: Vec<f64> = self.floats(n * n).into_iter().map(f64::from).collect();
        let x = Tensor::from_f64(DType::F16, &[n, n], &values).expect("a matrix");
        let values = x.to_f32_vec().expect("numbers");
        let dense = Dense {
            dtype: DType::F16,
            stack: Dim::new(1),
            rows: Dim::new(n as u64),
            most_rows: n,
            columns: n,
            depth: n,
            transposed: false,
            shared: false,
            addend: None,
            act: None,
        };
        let operands = vec![self.gpu.upload(x.bytes()), self.gpu.upload(x.bytes())];
        let out = self.gpu.buffer((n * n * 2) as u64);
        let buffers = self.buffers(operands, &[&out], 0);
        let list = Self::operands(2);
        let site = Site { adapter: &adapter, symbols: &symbols, operands: &list };
        let mut lines = Vec::new();
        for tile in tiles {
            let ready: Ready = self.ready(&halves::launch(&dense, &site, tile), &buffers);
            let pass = vec![&ready; 20];
            let seconds = self.time(&pass) / 20.0;
            let bytes = self.gpu.download(&out, n * n * 2);
            let found: Vec<f32> = bytes
                .chunks_exact(2)
                .map(|b| half::f16::from_le_bytes([b[0], b[1]]).to_f32())
                .collect();
            let wrong = (0..300).any(|i| {
                let (r, c) = (i * 7 % n, i * 7919 % n);
                let want: f32 = (0..n).map(|j| values[r * n + j] * values[j * n + c]).sum();
                let off = (found[r * n + c] - want).abs();
                off.is_nan() || off > 0.005 * (n as f32).sqrt()
            });
            lines.push((seconds, format!("{tile:?}{}", if wrong { " WRONG" } else { "" })));
        }
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        println!("f16 {n}, chosen {:?}", Tile::choose(&dense, &adapter));
        let flops = 2.0 * (n as f64).powi(3);
        for (seconds, note) in
            lines.iter().take(12).chain(lines.iter().filter(|l| l.1.ends_with('G')))
        {
            println!("    {:6.1} TFLOP/s {:8.1} us {note}", flops / seconds * 1e-12, seconds * 1e6);
        }
    }
}
