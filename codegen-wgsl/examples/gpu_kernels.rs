//! Speed of the kernel templates on the Vulkan adapter there is, each result checked against a
//! plain computation on the CPU at some places.
//!
//! `cargo run --release -p aether-codegen-wgsl --example gpu_kernels [-- --small] [--only PART]`
//! prints tables of: the device's copy, matvec by type, shape and variant, a decode chain shaped
//! like a 7B LLaMA, products of many tokens by tile, attention. `--small` takes sizes for a
//! software driver. Times are medians of the device's own timestamps around a pass in which every
//! dispatch waits for the one before; weights rotate so that no cache serves them.

#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../tests/gpu/harness.rs"]
mod harness;

use std::time::Instant;

use aether_codegen_wgsl::kernel::{Access, Bind, Launch};
use aether_codegen_wgsl::planes::{pack_rows, unpack_rows};
use aether_codegen_wgsl::templates::attention::Attention;
use aether_codegen_wgsl::templates::coop::{self, Tile};
use aether_codegen_wgsl::templates::matvec::{self, Variant};
use aether_codegen_wgsl::templates::pick::Pick;
use aether_codegen_wgsl::templates::product::{Addend, Product, Weight};
use aether_codegen_wgsl::templates::rope::{Positions, RotateAppend, Rotation, Rows};
use aether_codegen_wgsl::templates::{Operand, Site};
use aether_ir::{Attrs, DType, Dim, Layout, Symbol};
use harness::{Buffers, Gpu, groups};
use indexmap::IndexSet;

/// Distinct rows of a synthetic matrix: it repeats them.
const DISTINCT: usize = 64;

struct Bench {
    gpu: Gpu,
    small: bool,
    rng: fastrand::Rng,
}

/// A matrix on the device and what its distinct rows are.
struct Matrix {
    bytes: Vec<u8>,
    values: Vec<f32>,
    weight: Weight,
    k: usize,
}

/// A dispatch ready to be recorded.
struct Ready {
    pipeline: wgpu::ComputePipeline,
    group: wgpu::BindGroup,
    size: [u32; 3],
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let small = arguments.iter().any(|a| a == "--small");
    let only = arguments.iter().position(|a| a == "--only").and_then(|i| arguments.get(i + 1));
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(e) => return eprintln!("no adapter: {e}"),
    };
    println!("{}: {:?}", gpu.name, gpu.adapter);
    let mut bench = Bench { gpu, small, rng: fastrand::Rng::with_seed(1) };
    let start = Instant::now();
    type Part = (&'static str, fn(&mut Bench));
    let parts: [Part; 5] = [
        ("copy", Bench::copy),
        ("decode", Bench::decode),
        ("coop", Bench::coop),
        ("attention", Bench::attention),
        ("matvec", Bench::matvec),
    ];
    for (name, part) in parts {
        if only.is_none_or(|o| o == name) {
            println!("\n== {name}, after {:.0} s", start.elapsed().as_secs_f64());
            part(&mut bench);
        }
    }
}

impl Bench {
    /// A synthetic matrix of any type.
    fn matrix(&mut self, dtype: DType, rows: usize, k: usize) -> Matrix {
        let values: Vec<f32> = (0..DISTINCT * k).map(|_| (self.rng.f32() - 0.5) * 0.1).collect();
        let mut raw = vec![0; DISTINCT * dtype.row_bytes(k).expect("whole blocks")];
        aether_ir::quant::quantize(dtype, &values, &mut raw).expect("whole blocks");
        let mut values = vec![0.0; DISTINCT * k];
        let (layout, block) = match dtype.planes_row_bytes(k) {
            Some(row) => {
                let mut packed = vec![0; DISTINCT * row];
                pack_rows(dtype, k, &raw, &mut packed).expect("whole rows");
                unpack_rows(dtype, k, &packed, &mut values).expect("whole rows");
                (Layout::Planes, packed)
            }
            None => {
                aether_ir::quant::dequantize(dtype, &raw, &mut values).expect("whole rows");
                (Layout::RowMajor, raw)
            }
        };
        let total = block.len() / DISTINCT * rows;
        let bytes = block.iter().copied().cycle().take(total).collect();
        Matrix { bytes, values, weight: Weight { dtype, layout, rows }, k }
    }

    fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.rng.f32() - 0.5).collect()
    }

    fn ready(&self, launch: &Launch, buffers: &Buffers) -> Ready {
        let pipeline = self.gpu.pipeline(&launch.shader, false);
        let group = self.gpu.bind_group(&pipeline, launch, buffers);
        Ready { pipeline, group, size: groups(launch, &[]) }
    }

    /// The same pipeline for other buffers.
    fn again(&self, ready: &Ready, launch: &Launch, buffers: &Buffers) -> Ready {
        let group = self.gpu.bind_group(&ready.pipeline, launch, buffers);
        Ready { pipeline: ready.pipeline.clone(), group, size: ready.size }
    }

    /// Seconds of a pass, the median of five.
    fn time(&self, pass: &[&Ready]) -> f64 {
        let device = &self.gpu.device;
        let set = self.gpu.timestamps.then(|| {
            device.create_query_set(&wgpu::QuerySetDescriptor {
                label: None,
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            })
        });
        let resolved = device.create_buffer(&wgpu::BufferDescriptor {
            label: None,
            size: 256,
            usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: false,
        });
        let mut seconds = Vec::new();
        for _ in 0..if self.small { 2 } else { 6 } {
            let mut encoder = device.create_command_encoder(&Default::default());
            {
                let mut recorded = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: None,
                    timestamp_writes: set.as_ref().map(|set| wgpu::ComputePassTimestampWrites {
                        query_set: set,
                        beginning_of_pass_write_index: Some(0),
                        end_of_pass_write_index: Some(1),
                    }),
                });
                for ready in pass {
                    recorded.set_pipeline(&ready.pipeline);
                    recorded.set_bind_group(0, &ready.group, &[]);
                    let [x, y, z] = ready.size;
                    recorded.dispatch_workgroups(x, y, z);
                }
            }
            if let Some(set) = &set {
                encoder.resolve_query_set(set, 0..2, &resolved, 0);
            }
            let commands = encoder.finish();
            let start = Instant::now();
            self.gpu.queue.submit([commands]);
            self.gpu.finish();
            let wall = start.elapsed().as_secs_f64();
            seconds.push(match &set {
                Some(_) => {
                    let bytes = self.gpu.download(&resolved, 16);
                    let ticks: Vec<u64> =
                        bytes.as_chunks().0.iter().map(|b| u64::from_le_bytes(*b)).collect();
                    let period = f64::from(self.gpu.queue.get_timestamp_period());
                    ticks[1].saturating_sub(ticks[0]) as f64 * period * 1e-9
                }
                None => wall,
            });
        }
        seconds.remove(0);
        seconds.sort_by(f64::total_cmp);
        seconds[seconds.len() / 2]
    }

    fn copy(&mut self) {
        let bytes: u64 = if self.small { 64 << 20 } else { 1 << 30 };
        let (a, b) = (self.gpu.buffer(bytes), self.gpu.buffer(bytes));
        let mut best = 0f64;
        for _ in 0..4 {
            let times = 8;
            let mut encoder = self.gpu.device.create_command_encoder(&Default::default());
            for _ in 0..times {
                encoder.copy_buffer_to_buffer(&a, 0, &b, 0, bytes);
            }
            let start = Instant::now();
            self.gpu.queue.submit([encoder.finish()]);
            self.gpu.finish();
            let rate = (2 * times * bytes) as f64 / start.elapsed().as_secs_f64() * 1e-9;
            best = best.max(rate);
        }
        println!("copy {best:.0} GB/s read plus written");
    }

    fn operands(n: usize) -> Vec<Operand> {
        (0..n).map(|i| Operand { bind: Bind::Operand(i), access: Access::Read }).collect()
    }

    fn plain(&self, weights: &[&Matrix], tokens: usize, gated: bool) -> Product {
        Product {
            k: weights[0].k,
            tokens: Dim::from(tokens),
            most_tokens: tokens,
            weights: weights.iter().map(|m| m.weight).collect(),
            addends: Vec::new(),
            act: gated.then(|| "silu".to_owned()),
            gated,
            norm: None,
            part: None,
        }
    }

    /// The largest error at some places, as a share of the root mean square of the result.
    fn error(&self, p: &Product, m: &[&Matrix], x: &[f32], out: &wgpu::Buffer) -> f64 {
        let n = p.weights[0].rows;
        let tokens = x.len() / p.k;
        let found = floats_of(&self.gpu.download(out, tokens * n * 4));
        let (mut worst, mut squares, mut count) = (0f64, 0f64, 0);
        for i in 0..400 {
            let (t, r) = (i * 7 % tokens, i * 7919 % n);
            let sum = |m: &Matrix| -> f64 {
                let row = &m.values[r % DISTINCT * p.k..][..p.k];
                let x = &x[t * p.k..][..p.k];
                row.iter().zip(x).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
            };
            let mut want = sum(m[0]);
            if p.gated {
                want = want / (1.0 + (-want).exp()) * sum(m[1]);
            }
            let off = (want - f64::from(found[t * n + r])).abs();
            worst = if off.is_nan() { f64::INFINITY } else { worst.max(off) };
            squares += want * want;
            count += 1;
        }
        worst / (squares / f64::from(count)).sqrt()
    }

    fn variants(&self, many: bool) -> Vec<Variant> {
        let mut all = Vec::new();
        for subgroups in if many { vec![4, 8, 16] } else { vec![4, 8] } {
            for rows in if many { vec![1, 2, 4] } else { vec![1, 2] } {
                for steps in if many { vec![1, 2, 4] } else { vec![1, 2] } {
                    for (prefetch, passes, held) in
                        [(true, 1, true), (false, 1, true), (true, 1, false), (false, 2, true)]
                    {
                        let heavy = rows * steps > 8 || subgroups * rows * passes > 32;
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

    fn matvec(&mut self) {
        let scale = if self.small { 8 } else { 1 };
        let shapes = [
            (4096, 4096, false),
            (28672 / 2, 4096, true),
            (4096, 14336, false),
            (32000, 4096, false),
        ];
        let types = [DType::Q4K, DType::Q6K, DType::Q8_0, DType::Q4_0, DType::F16];
        for dtype in types {
            // Every shape of the most used type, two of the others.
            let shapes = if dtype == DType::Q4K { &shapes[..] } else { &shapes[1..3] };
            for &(rows, k, gated) in shapes {
                let (rows, k) = (rows / scale, k / scale / 256 * 256);
                let many = dtype == DType::Q4K && !self.small;
                self.matvec_case(dtype, rows, k.max(256), gated, many);
            }
        }
    }

    fn matvec_case(&mut self, dtype: DType, rows: usize, k: usize, gated: bool, many: bool) {
        let symbols: IndexSet<Symbol> = IndexSet::new();
        let pair = if gated { 2 } else { 1 };
        let matrices: Vec<Matrix> = (0..pair).map(|_| self.matrix(dtype, rows, k)).collect();
        let bytes: usize = matrices.iter().map(|m| m.bytes.len()).sum();
        let total = if self.small { 1 << 20 } else { 600 << 20 };
        let copies = (total / bytes).clamp(1, 64);
        let x = self.floats(k);
        let refs: Vec<&Matrix> = matrices.iter().collect();
        let product = self.plain(&refs, 1, gated);
        let mut sets = Vec::new();
        for _ in 0..copies {
            let mut operands = vec![self.gpu.upload(&bytes_of(&x))];
            operands.extend(matrices.iter().map(|m| self.gpu.upload(&m.bytes)));
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
            let operands = Self::operands(1 + pair);
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
        let what = format!("{dtype} {}x{k}", rows * pair);
        println!(
            "{what:20} default {:6.0} GB/s {:7.2} us {note}",
            bytes as f64 / time * 1e-9,
            time * 1e6
        );
        lines.sort_by(|a, b| a.0.total_cmp(&b.0));
        for (time, note) in lines.iter().take(if many { 8 } else { 3 }) {
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

    fn buffers(
        &self,
        operands: Vec<wgpu::Buffer>,
        results: &[&wgpu::Buffer],
        scratch: u64,
    ) -> Buffers {
        Buffers {
            operands,
            results: results.iter().map(|b| (*b).clone()).collect(),
            scratch: self.gpu.buffer(scratch),
            symbols: self.gpu.buffer(256),
        }
    }

    /// Steps of a 7B LLaMA: products alone, then with all else that a layer does.
    fn decode(&mut self) {
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
        let attrs =
            Attrs::new().with("mode", "norm").with("theta", 10000.0).with("n_dims", d as i64);
        let rotation = Some(Rotation::new(&attrs, &[]));
        let cache = Some((context, DType::F16));
        let rope = RotateAppend {
            tokens: Dim::new(1),
            most_tokens: 1,
            positions: Positions::First,
            rows: vec![
                Rows { heads, d, rotation: rotation.clone(), cache: None },
                Rows { heads: kv / d, d, rotation, cache },
                Rows { heads: kv / d, d, rotation: None, cache },
            ],
        };
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
        };
        let pick = Pick { rows: Dim::new(1), most_rows: 1, n: vocab, k: None };
        let site = |operands: &[Operand], f: &dyn Fn(&Site) -> Vec<Launch>| {
            f(&Site { adapter: &adapter, symbols: &symbols, operands })
        };
        let ops = Self::operands(6);
        let vector = |n: usize| self.gpu.buffer(n as u64 * 4);
        let (h, h2) = (self.gpu.upload(&bytes_of(&vec![0.1; width])), vector(width));
        let (q, k, v, qr, att, act) =
            (vector(width), vector(kv), vector(kv), vector(width), vector(width), vector(ff));
        let norm = self.gpu.upload(&bytes_of(&vec![1.0; width]));
        let past = self.gpu.upload(&(past as i32).to_le_bytes());
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
            let operands = of(&[&q, &k, &v, &past, &past]);
            let mut rope_ops = ops.clone();
            rope_ops[4] = rope_ops[3];
            add(
                self,
                false,
                site(&rope_ops, &|s| rope.launches(s)),
                self.buffers(operands, &[&qr, &kc, &vc], 0),
            );
            let scratch = attention.scratch_bytes(&adapter);
            let operands = of(&[&qr, &kc, &vc, &past]);
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
        for (what, chain) in [("products", products), ("whole step", all)] {
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

    fn coop(&mut self) {
        if !self.gpu.adapter.cooperative_matrix {
            println!("no cooperative matrices");
            return;
        }
        let mut tiles = Vec::new();
        tiles.push(Tile { tokens: 128, rows: 128, blocks: 1, across: (2, 2), wide: false });
        for (tokens, rows) in [(128, 128), (64, 128), (128, 64), (128, 256)] {
            for across in [(2, 2), (2, 4), (4, 2)] {
                for blocks in [1, 2] {
                    let tile = Tile { tokens, rows, blocks, across, wide: true };
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
        let buffers = self.buffers(operands, &[&out], coop::area(&product).bytes());
        let flops = 2.0 * (tokens * n * pair * k) as f64;
        let mut lines = Vec::new();
        for tile in tiles {
            let list = Self::operands(1 + pair);
            let site = Site { adapter: &adapter, symbols: &symbols, operands: &list };
            let ready: Vec<Ready> = coop::launches(&product, &site, tile)
                .iter()
                .map(|l| self.ready(l, &buffers))
                .collect();
            let pass: Vec<&Ready> = ready.iter().cycle().take(20).collect();
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

    fn attention(&mut self) {
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

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
