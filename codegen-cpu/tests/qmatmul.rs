//! Quantised products of every type on every instruction set of the machine, against products of
//! the values that `aether_ir::quant` decodes, in `f64`.

use aether_codegen_cpu::kernels::act_quant::{QActs, QActsMut, Scaling, act_bytes};
use aether_codegen_cpu::kernels::isa::Isa;
use aether_codegen_cpu::kernels::packed::{PackError, PackedMatrix, pack_rows, packed_bytes};
use aether_codegen_cpu::kernels::qmatmul::{
    Epilogue, Gate, OutPtr, QMatmulError, qmatmul, qmatmul_gated, qmatmul_into, scaling, supports,
};
use aether_ir::{DType, quant};
use half::f16;

/// Offsets of the `f16` scales in a block.
fn scale_offsets(dtype: DType) -> &'static [usize] {
    match dtype {
        DType::Q4_0 | DType::Q5_0 | DType::Q8_0 => &[0],
        DType::Q4_1 | DType::Q5_1 | DType::Q8_1 | DType::Q4K | DType::Q5K => &[0, 2],
        DType::Q2K => &[80, 82],
        DType::Q3K => &[108],
        DType::Q6K => &[208],
        _ => &[],
    }
}

/// Random blocks of a matrix. Some blocks have all code and sub-scale bits set or clear, and some
/// a zero scale, a negative one, or the smallest subnormal.
fn random_blocks(dtype: DType, rows: usize, cols: usize, rng: &mut fastrand::Rng) -> Vec<u8> {
    let mut data = vec![0; dtype.row_bytes(cols).unwrap() * rows];
    for block in data.chunks_exact_mut(dtype.block_bytes()) {
        match rng.u8(..8) {
            0 => block.fill(0xff),
            1 => block.fill(0x00),
            2 => block.fill(0x80),
            _ => block.iter_mut().for_each(|b| *b = rng.u8(..)),
        }
        for &at in scale_offsets(dtype) {
            let scale = match rng.u8(..16) {
                0 => f16::ZERO,
                1 => f16::from_bits(1),
                _ => f16::from_f32((rng.f32() - 0.3) * 0.05),
            };
            block[at..at + 2].copy_from_slice(&scale.to_le_bytes());
        }
        if dtype == DType::Q8K {
            block[..4].copy_from_slice(&((rng.f32() - 0.3) * 0.05).to_le_bytes());
        }
    }
    data
}

/// A matrix in the file's form, in the packed form, and decoded.
struct Weights {
    dtype: DType,
    rows: usize,
    cols: usize,
    packed: Vec<u8>,
    values: Vec<f32>,
}

impl Weights {
    fn random(dtype: DType, rows: usize, cols: usize, rng: &mut fastrand::Rng) -> Weights {
        let blocks = random_blocks(dtype, rows, cols, rng);
        let mut values = vec![0.0; rows * cols];
        quant::dequantize(dtype, &blocks, &mut values).unwrap();
        let mut packed = vec![0; packed_bytes(dtype, rows, cols).unwrap()];
        let groups = rows.div_ceil(16);
        // In two parts, as two threads would do it.
        let (half, len) = (groups / 2, packed.len() / groups);
        let (a, b) = packed.split_at_mut(half * len);
        pack_rows(dtype, rows, cols, &blocks, 0..half, a).unwrap();
        pack_rows(dtype, rows, cols, &blocks, half..groups, b).unwrap();
        Weights { dtype, rows, cols, packed, values }
    }

    fn view(&self) -> PackedMatrix<'_> {
        PackedMatrix::new(self.dtype, self.rows, self.cols, &self.packed).unwrap()
    }
}

fn random_rows(tokens: usize, k: usize, rng: &mut fastrand::Rng) -> Vec<f32> {
    let mut x: Vec<f32> = (0..tokens * k).map(|_| (rng.f32() - 0.5) * 4.0).collect();
    // Blocks of equal values have the largest sums of codes there can be.
    for block in x.chunks_exact_mut(32) {
        match rng.u8(..6) {
            0 => block.fill(3.0),
            1 => block.fill(-2.0),
            2 => block.fill(0.0),
            _ => {}
        }
    }
    x
}

fn quantize(x: &[f32], tokens: usize, k: usize, scaling: Scaling) -> Vec<u8> {
    let mut data = vec![0; act_bytes(tokens, k).unwrap()];
    let mut acts = QActsMut::new(&mut data, tokens, k, scaling).unwrap();
    for (t, row) in x.chunks_exact(k).enumerate() {
        acts.quantize_row(t, row);
    }
    data
}

/// What 8-bit activations stand for, computed apart from the kernels: scale and rounded values.
fn rounded(x: &[f32], run: usize) -> Vec<f64> {
    let mut out = Vec::with_capacity(x.len());
    for block in x.chunks_exact(run) {
        let amax = block.iter().fold(0.0f32, |a, v| a.max(v.abs()));
        let inverse = if amax > 0.0 { 127.0 / amax } else { 0.0 };
        let d = f64::from(amax / 127.0);
        out.extend(block.iter().map(|v| f64::from((v * inverse).round_ties_even()) * d));
    }
    out
}

/// `f32` rounding of the scales and sums. The kernels subtract minima and offsets apart from the
/// codes, so the terms can be some times larger than the products.
const TOLERANCE: f64 = 1e-5;

/// What a product must give for one token and row.
struct Want {
    /// With the rounded activations, and how far off `f32` arithmetic may be.
    rounded: (f64, f64),
    /// With the activations as given, and how far off their rounding may be besides.
    exact: (f64, f64),
}

fn wants(w: &Weights, x: &[f32], tokens: usize) -> Vec<Want> {
    let mut wants = Vec::with_capacity(tokens * w.rows);
    let run = scaling(w.dtype).run();
    for x in x.chunks_exact(w.cols) {
        let codes = rounded(x, run);
        // Each activation is off by at most half a step of its run.
        let steps: Vec<f64> = x
            .chunks_exact(run)
            .map(|x| f64::from(x.iter().fold(0.0f32, |a, v| a.max(v.abs()))) / 127.0)
            .collect();
        for row in w.values.chunks_exact(w.cols) {
            let (mut sum, mut size, mut exact, mut off) = (0.0, 0.0, 0.0, 0.0);
            for (b, step) in steps.iter().enumerate() {
                let mut weight = 0.0;
                for i in run * b..run * (b + 1) {
                    let w = f64::from(row[i]);
                    sum += w * codes[i];
                    size += (w * codes[i]).abs();
                    exact += w * f64::from(x[i]);
                    weight += w.abs();
                }
                off += weight * step * 0.50001;
            }
            let bound = TOLERANCE * size + 1e-9;
            wants.push(Want { rounded: (sum, bound), exact: (exact, off + bound) });
        }
    }
    wants
}

fn shapes(dtype: DType) -> Vec<(usize, usize, usize)> {
    let block = dtype.block_len();
    let mut shapes: Vec<_> =
        (1..=20).map(|tokens| (23, block * (1 + tokens % 3), tokens)).collect();
    shapes.extend([(1, block, 1), (16, 256, 5), (40, 2304, 2), (33, 256, 35), (17, 512, 85)]);
    shapes
}

#[test]
fn every_type_on_every_instruction_set() {
    let mut rng = fastrand::Rng::with_seed(1);
    for dtype in DType::quantized() {
        assert!(supports(dtype));
        for (rows, cols, tokens) in shapes(dtype) {
            let w = Weights::random(dtype, rows, cols, &mut rng);
            let x = random_rows(tokens, cols, &mut rng);
            let data = quantize(&x, tokens, cols, scaling(dtype));
            let acts = QActs::new(&data, tokens, cols, scaling(dtype)).unwrap();
            let wants = wants(&w, &x, tokens);
            for isa in Isa::available() {
                let mut out = vec![f32::NAN; tokens * rows];
                qmatmul_into(isa, &w.view(), &acts, &mut out).unwrap();
                for (i, (got, want)) in out.iter().zip(&wants).enumerate() {
                    for (value, bound) in [want.rounded, want.exact] {
                        assert!(
                            (f64::from(*got) - value).abs() <= bound,
                            "{dtype} {isa} {rows}x{cols}, {tokens} tokens, [{}, {}]: {got}, not \
                             {value} within {bound}",
                            i / rows,
                            i % rows,
                        );
                    }
                }
            }
        }
    }
    assert!(!supports(DType::F32));
}

#[test]
fn a_token_has_the_same_bits_in_any_company() {
    let mut rng = fastrand::Rng::with_seed(4);
    let (rows, cols, tokens) = (40, 768, 85);
    for dtype in DType::quantized() {
        let w = Weights::random(dtype, rows, cols, &mut rng);
        let x = random_rows(tokens, cols, &mut rng);
        for isa in Isa::available() {
            let product = |x: &[f32], tokens: usize| {
                let data = quantize(x, tokens, cols, scaling(dtype));
                let acts = QActs::new(&data, tokens, cols, scaling(dtype)).unwrap();
                let mut out = vec![f32::NAN; tokens * rows];
                qmatmul_into(isa, &w.view(), &acts, &mut out).unwrap();
                out
            };
            let whole = product(&x, tokens);
            for n in [1, 2, 3, 4, 5, 7, 8, 16, 33] {
                let part = product(&x[..n * cols], n);
                let same = part.iter().zip(&whole).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{dtype} {isa}: {n} tokens alone and with {tokens}");
            }
        }
    }
}

#[test]
fn packed_rows_decode_to_the_same_bits() {
    let mut rng = fastrand::Rng::with_seed(2);
    for dtype in DType::quantized() {
        let w = Weights::random(dtype, 37, 512, &mut rng);
        let mut row = vec![0.0; 512];
        for r in 0..37 {
            w.view().dequantize_row(r, &mut row);
            let want = &w.values[r * 512..][..512];
            assert!(row.iter().zip(want).all(|(a, b)| a.to_bits() == b.to_bits()), "{dtype} {r}");
        }
        // The packed form is no larger than the file's, but for rows added to fill a group.
        let file = dtype.row_bytes(512).unwrap() * 48;
        assert!(w.packed.len() <= file, "{dtype}");
    }
}

#[test]
fn epilogues_and_strided_outputs_from_two_threads() {
    let mut rng = fastrand::Rng::with_seed(3);
    let (rows, cols, tokens, stride) = (72, 256, 19, 80);
    let w = Weights::random(DType::Q4K, rows, cols, &mut rng);
    let x = random_rows(tokens, cols, &mut rng);
    let data = quantize(&x, tokens, cols, Scaling::PerSuper);
    let acts = QActs::new(&data, tokens, cols, Scaling::PerSuper).unwrap();
    let bias: Vec<f32> = (0..rows).map(|_| rng.f32()).collect();
    for isa in Isa::available() {
        let mut plain = vec![0.0; tokens * rows];
        qmatmul_into(isa, &w.view(), &acts, &mut plain).unwrap();
        // The residual is the output itself.
        let before: Vec<f32> = (0..tokens * stride).map(|_| rng.f32()).collect();
        let mut out = before.clone();
        let shared = out.as_mut_ptr() as usize;
        std::thread::scope(|scope| {
            for range in [0..2, 2..5] {
                let (acts, bias, w) = (&acts, &bias, w.view());
                scope.spawn(move || {
                    let ptr = shared as *mut f32;
                    let epilogue = Epilogue {
                        bias: Some(bias),
                        residual: Some((ptr.cast_const(), stride)),
                        act: None,
                    };
                    // SAFETY: `out` holds all tokens and rows; the ranges are disjoint.
                    unsafe { qmatmul(isa, &w, acts, range, OutPtr { ptr, stride }, &epilogue) }
                        .unwrap();
                });
            }
        });
        for (i, got) in out.iter().enumerate() {
            let (t, r) = (i / stride, i % stride);
            let want = if r < rows { plain[t * rows + r] + bias[r] + before[i] } else { before[i] };
            assert_eq!(*got, want, "{isa} [{t}, {r}]");
        }
    }
}

#[test]
fn gated_products_equal_two_products() {
    let mut rng = fastrand::Rng::with_seed(4);
    let (rows, cols, tokens) = (40, 512, 21);
    let gate = Weights::random(DType::Q4K, rows, cols, &mut rng);
    let up = Weights::random(DType::Q6K, rows, cols, &mut rng);
    let x: Vec<f32> = random_rows(tokens, cols, &mut rng).iter().map(|v| v * 0.1).collect();
    let data = quantize(&x, tokens, cols, Scaling::PerSuper);
    let acts = QActs::new(&data, tokens, cols, Scaling::PerSuper).unwrap();
    for isa in Isa::available() {
        let (mut a, mut b) = (vec![0.0; tokens * rows], vec![0.0; tokens * rows]);
        qmatmul_into(isa, &gate.view(), &acts, &mut a).unwrap();
        qmatmul_into(isa, &up.view(), &acts, &mut b).unwrap();
        for kind in [Gate::Silu, Gate::GeluTanh] {
            let mut out = vec![0.0; tokens * rows];
            let ptr = OutPtr { ptr: out.as_mut_ptr(), stride: rows };
            // SAFETY: `out` holds all tokens and rows.
            unsafe { qmatmul_gated(isa, kind, &gate.view(), &up.view(), &acts, 0..3, ptr) }
                .unwrap();
            for ((got, &a), &b) in out.iter().zip(&a).zip(&b) {
                let (x, b) = (f64::from(a), f64::from(b));
                let want = match kind {
                    Gate::Silu => x / (1.0 + (-x).exp()) * b,
                    Gate::GeluTanh => {
                        let z = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                        x / 2.0 * (1.0 + z.tanh()) * b
                    }
                };
                let bound = 2e-6 * (want.abs() + b.abs()) + 1e-9;
                assert!((f64::from(*got) - want).abs() <= bound, "{isa} {kind:?} {got} {want}");
            }
        }
    }
}

#[test]
fn a_fault_in_a_token_shows_in_that_token_alone() {
    let mut rng = fastrand::Rng::with_seed(5);
    let w = Weights::random(DType::Q8_0, 17, 64, &mut rng);
    let mut x = random_rows(3, 64, &mut rng);
    x[64 + 40] = f32::NAN;
    let data = quantize(&x, 3, 64, Scaling::PerBlock);
    let acts = QActs::new(&data, 3, 64, Scaling::PerBlock).unwrap();
    for isa in Isa::available() {
        let mut out = vec![0.0; 3 * 17];
        qmatmul_into(isa, &w.view(), &acts, &mut out).unwrap();
        for (i, v) in out.iter().enumerate() {
            assert_eq!(v.is_nan(), i / 17 == 1, "{isa} {i}");
        }
    }
}

#[test]
fn misfits_are_refused_with_a_reason() {
    let mut rng = fastrand::Rng::with_seed(6);
    let w = Weights::random(DType::Q4_0, 20, 64, &mut rng);
    let other = Weights::random(DType::Q4_0, 21, 64, &mut rng);
    let data = vec![0; act_bytes(2, 64).unwrap()];
    let acts = QActs::new(&data, 2, 64, Scaling::PerBlock).unwrap();
    let short = QActs::new(&data[..128], 2, 32, Scaling::PerSuper).unwrap();
    let k = Weights::random(DType::Q4K, 20, 256, &mut rng);
    let zeros = vec![0; act_bytes(1, 256).unwrap()];
    let per_block = QActs::new(&zeros, 1, 256, Scaling::PerBlock).unwrap();
    let mut out = [0.0; 42];
    let isa = Isa::Scalar;
    let scaling = qmatmul_into(isa, &k.view(), &per_block, &mut out[..20]);
    assert_eq!(scaling, Err(QMatmulError::Scaling(DType::Q4K)));
    let ptr = OutPtr { ptr: out.as_mut_ptr(), stride: 20 };
    let none = Epilogue::default();
    let bias = Epilogue { bias: Some(&[0.0; 3]), ..Epilogue::default() };
    // SAFETY: `out` holds two tokens of up to 21 rows.
    let (length, range, operand, gated) = unsafe {
        (
            qmatmul(isa, &w.view(), &short, 0..2, ptr, &none),
            qmatmul(isa, &w.view(), &acts, 1..3, ptr, &none),
            qmatmul(isa, &w.view(), &acts, 0..2, ptr, &bias),
            qmatmul_gated(isa, Gate::Silu, &w.view(), &other.view(), &acts, 0..2, ptr),
        )
    };
    assert_eq!(length, Err(QMatmulError::Length { acts: 32, cols: 64 }));
    assert_eq!(range, Err(QMatmulError::Range { start: 1, end: 3, groups: 2 }));
    let what = "the bias";
    assert_eq!(operand, Err(QMatmulError::Operand { what, expected: 20, found: 3 }));
    assert_eq!(gated, Err(QMatmulError::GateShape { gate: (20, 64), up: (21, 64) }));
    let absent = Isa::ALL.into_iter().find(|i| !i.is_available()).unwrap();
    let refused = qmatmul_into(absent, &w.view(), &acts, &mut out[..40]);
    assert_eq!(refused, Err(QMatmulError::Isa(absent)));
    assert!(qmatmul_into(isa, &w.view(), &acts, &mut out[..39]).is_err());

    assert_eq!(packed_bytes(DType::F32, 1, 32), Err(PackError::NotQuantized(DType::F32)));
    let partial = PackError::PartialBlock { dtype: DType::Q4K, cols: 32 };
    assert_eq!(packed_bytes(DType::Q4K, 1, 32), Err(partial));
    let huge = packed_bytes(DType::Q4_0, usize::MAX, 1 << 40);
    assert!(matches!(huge, Err(PackError::Overflow { .. })));
    assert!(matches!(
        PackedMatrix::new(DType::Q4_0, 20, 64, &w.packed[1..]),
        Err(PackError::Size { .. })
    ));
    let src = vec![0; DType::Q4_0.row_bytes(64).unwrap() * 20];
    let mut dst = vec![0; w.packed.len()];
    let mut packed = |src, range, len| pack_rows(DType::Q4_0, 20, 64, src, range, &mut dst[..len]);
    let full = w.packed.len();
    assert!(matches!(packed(&src[1..], 0..2, full), Err(PackError::Size { .. })));
    assert!(matches!(packed(&src, 0..1, full), Err(PackError::Size { .. })));
    assert!(matches!(packed(&src, 1..3, full), Err(PackError::Range { .. })));
}
