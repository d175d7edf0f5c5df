//! Speed of the kernel templates on the Vulkan adapter there is, each result checked against a
//! plain computation on the CPU at some places.
//!
//! `cargo run --release -p aether-codegen-wgsl --example gpu_kernels [-- --small] [--only PART]`
//! prints tables of: the device's copy, matvec by type, shape and variant, a decode chain shaped
//! like a 7B LLaMA, products of many tokens by tile, attention. `--small` takes sizes for a
//! software driver. Times are medians of the device's own timestamps around a pass in which every
//! dispatch waits for the one before; weights rotate so that no cache serves them.

#[path = "../../tests/gpu/emulate.rs"]
mod emulate;
#[expect(dead_code, reason = "the tests use the rest")]
#[path = "../../tests/gpu/harness.rs"]
mod harness;

mod attention;
mod decode;
mod dense;
mod many;
mod matvec;

use std::time::Instant;

use aether_codegen_wgsl::kernel::{Access, Bind, Launch};
use aether_codegen_wgsl::planes::{pack_rows, unpack_rows};
use aether_codegen_wgsl::templates::Operand;
use aether_codegen_wgsl::templates::product::{Product, Weight};
use aether_ir::{DType, Dim, Layout};
use harness::{Buffers, Gpu, groups};

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

fn main() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let small = arguments.iter().any(|a| a == "--small");
    let only = arguments.iter().position(|a| a == "--only").and_then(|i| arguments.get(i + 1));
    let gpu = Gpu::open().map_err(|e| format!("no adapter: {e}"))?;
    println!("{}: {:?}", gpu.name, gpu.adapter);
    let mut bench = Bench { gpu, small, rng: fastrand::Rng::with_seed(1) };
    let start = Instant::now();
    type Part = (&'static str, fn(&mut Bench));
    let parts: [Part; 8] = [
        ("copy", Bench::copy),
        ("decode", Bench::decode),
        ("coop", Bench::coop),
        ("few", Bench::coop_few),
        ("halves", Bench::halves),
        ("attention", Bench::attention),
        ("floats", Bench::floats_tiled),
        ("matvec", Bench::matvec),
    ];
    for (name, part) in parts {
        if only.is_none_or(|o| o == name) {
            println!("\n== {name}, after {:.0} s", start.elapsed().as_secs_f64());
            part(&mut bench);
        }
    }
    Ok(())
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

    /// Seconds of a pass, the median of five, after others that bring the device's clocks up.
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
        let begun = Instant::now();
        let warm = std::time::Duration::from_millis(if self.small { 0 } else { 60 });
        let mut turns = 0;
        while turns < if self.small { 2 } else { 6 } {
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
            if begun.elapsed() < warm {
                continue;
            }
            turns += 1;
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
            status: self.gpu.buffer(8),
        }
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

fn floats_of(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}
