//! The block formats against values made by `scripts/oracles/dequant.py`, bit for bit.

use std::path::Path;

use aether_ir::DType;
use aether_ir::quant::{QuantError, dequantize, quantize};

/// The file `NAME.KIND`: the number of blocks and what follows.
fn load(name: &str, kind: &str) -> (usize, Vec<u8>) {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/dequant");
    let data = std::fs::read(dir.join(format!("{name}.{kind}"))).unwrap();
    let n = u32::from_le_bytes(data[..4].try_into().unwrap()) as usize;
    (n, data[4..].to_vec())
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn decoding_equals_the_oracle() {
    let types = [DType::F16, DType::Bf16].into_iter().chain(DType::quantized());
    for dtype in types {
        let (n, data) = load(dtype.name(), "decode");
        let (bytes, expected) = data.split_at(n * dtype.block_bytes());
        let expected = floats(expected);
        assert_eq!(expected.len(), n * dtype.block_len());
        let mut out = vec![0.0; expected.len()];
        dequantize(dtype, bytes, &mut out).unwrap();
        let mut nans = 0;
        for (i, (got, want)) in out.iter().zip(&expected).enumerate() {
            // The payload of a NaN is the processor's choice, except where nothing is computed.
            if want.is_nan() && dtype != DType::Bf16 {
                assert!(got.is_nan(), "{dtype} value {i}: {got} is not NaN");
                nans += 1;
            } else {
                assert_eq!(got.to_bits(), want.to_bits(), "{dtype} value {i}: {got} {want}");
            }
        }
        assert!(nans < out.len() / 2, "{dtype}: {nans} of {} are NaN", out.len());
    }
}

#[test]
fn encoding_equals_the_oracle() {
    use DType::*;
    for dtype in [F16, Bf16, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0] {
        let (n, data) = load(dtype.name(), "encode");
        let (values, expected) = data.split_at(n * dtype.block_len() * 4);
        let mut out = vec![0xaa; expected.len()];
        quantize(dtype, &floats(values), &mut out).unwrap();
        let size = dtype.block_bytes();
        for (i, (got, want)) in out.chunks(size).zip(expected.chunks(size)).enumerate() {
            assert_eq!(got, want, "{dtype} block {i}");
        }
    }
}

/// The largest error of one round trip relative to the largest magnitude, per type: half a step
/// of the numbers, a whole one where they reach further down than up, and what rounding the
/// scales of a k-quant adds.
#[test]
fn a_round_trip_stays_within_the_step() {
    let bounds = [
        (DType::F32, 0.0),
        (DType::F16, 0.0005),
        (DType::Bf16, 0.004),
        (DType::F64, 0.0),
        (DType::Q4_0, 0.13),
        (DType::Q4_1, 0.07),
        (DType::Q5_0, 0.065),
        (DType::Q5_1, 0.035),
        (DType::Q8_0, 0.005),
        (DType::Q8_1, 0.005),
        (DType::Q2K, 0.40),
        (DType::Q3K, 0.28),
        (DType::Q4K, 0.09),
        (DType::Q5K, 0.05),
        (DType::Q6K, 0.045),
        (DType::Q8K, 0.005),
    ];
    for (dtype, bound) in bounds {
        let mut rng = fastrand::Rng::with_seed(7);
        for scale in [1.0, 0.05, 300.0] {
            let values: Vec<f32> = (0..2048).map(|_| (rng.f32() * 2.0 - 1.0) * scale).collect();
            let mut bytes = vec![0; dtype.row_bytes(values.len()).unwrap()];
            quantize(dtype, &values, &mut bytes).unwrap();
            let mut back = vec![f32::NAN; values.len()];
            dequantize(dtype, &bytes, &mut back).unwrap();
            let worst = values.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= bound * scale, "{dtype} at {scale}: {}", worst / scale);
        }
        // Zero is a value every format holds exactly.
        let mut bytes = vec![0xff; dtype.row_bytes(256).unwrap()];
        quantize(dtype, &[0.0; 256], &mut bytes).unwrap();
        let mut back = [f32::NAN; 256];
        dequantize(dtype, &bytes, &mut back).unwrap();
        assert_eq!(back, [0.0; 256], "{dtype}");
    }
}

#[test]
fn sums_kept_for_dot_products_are_right() {
    let values: Vec<f32> = (0..256).map(|i| ((i * 37) % 101) as f32 - 40.0).collect();
    let mut bytes = vec![0; 292];
    quantize(DType::Q8K, &values, &mut bytes).unwrap();
    for g in 0..16 {
        let sum: i16 = bytes[4 + 16 * g..20 + 16 * g].iter().map(|q| i16::from(*q as i8)).sum();
        let kept = i16::from_le_bytes([bytes[260 + 2 * g], bytes[261 + 2 * g]]);
        assert_eq!(kept, sum, "group {g}");
    }
    // The scale is 1: the numbers are the values themselves.
    let values: Vec<f32> = (0..32).map(|i| if i == 0 { 127.0 } else { -(i as f32) }).collect();
    let mut bytes = vec![0; 36];
    quantize(DType::Q8_1, &values, &mut bytes).unwrap();
    let sum: f32 = values.iter().sum();
    assert_eq!(half::f16::from_le_bytes([bytes[2], bytes[3]]).to_f32(), sum);
}

#[test]
fn plain_types_convert_as_a_cast_does() {
    let f = |dtype: DType, bytes: &[u8]| {
        let mut out = vec![0.0; bytes.len() / dtype.block_bytes()];
        dequantize(dtype, bytes, &mut out).unwrap();
        out
    };
    assert_eq!(f(DType::F32, &0x7f80_0001u32.to_le_bytes())[0].to_bits(), 0x7f80_0001);
    assert_eq!(f(DType::F64, &0.1f64.to_le_bytes()), [0.1]);
    assert_eq!(f(DType::F64, &1e300f64.to_le_bytes()), [f32::INFINITY]);
    assert_eq!(f(DType::I8, &[0x80, 5]), [-128.0, 5.0]);
    assert_eq!(f(DType::I16, &(-300i16).to_le_bytes()), [-300.0]);
    assert_eq!(f(DType::I32, &16_777_217i32.to_le_bytes()), [16_777_216.0]);
    assert_eq!(f(DType::I64, &i64::MIN.to_le_bytes()), [-9_223_372_036_854_775_808.0]);
    assert_eq!(f(DType::U8, &[200]), [200.0]);
    assert_eq!(f(DType::U32, &u32::MAX.to_le_bytes()), [4_294_967_296.0]);
    assert_eq!(f(DType::Bool, &[0, 1, 2]), [0.0, 1.0, 1.0]);

    for (dtype, values, back) in [
        (DType::I8, [-200.0, 1.9, f32::NAN], [-128.0, 1.0, 0.0]),
        (DType::I16, [-200.7, 1.9, 1e9], [-200.0, 1.0, 32767.0]),
        (DType::I32, [-1.5, 7.0, 0.0], [-1.0, 7.0, 0.0]),
        (DType::I64, [-1.5, 7.0, 0.0], [-1.0, 7.0, 0.0]),
        (DType::U8, [-1.0, 300.0, 3.0], [0.0, 255.0, 3.0]),
        (DType::U32, [-1.0, 300.0, 3.0], [0.0, 300.0, 3.0]),
        (DType::Bool, [0.0, -0.5, 3.0], [0.0, 1.0, 1.0]),
    ] {
        let mut bytes = vec![0; 3 * dtype.block_bytes()];
        quantize(dtype, &values, &mut bytes).unwrap();
        assert_eq!(f(dtype, &bytes), back, "{dtype}");
    }
}

#[test]
fn lengths_that_do_not_fit_are_errors() {
    let mut out = [0.0; 64];
    assert_eq!(
        dequantize(DType::Q4_0, &[0; 35], &mut out),
        Err(QuantError::PartialBytes { dtype: DType::Q4_0, bytes: 35, block: 18 })
    );
    assert_eq!(
        dequantize(DType::Q4_0, &[0; 18], &mut out[..31]),
        Err(QuantError::PartialValues { dtype: DType::Q4_0, values: 31, block: 32 })
    );
    let error = dequantize(DType::Q4_0, &[0; 18], &mut out).unwrap_err();
    assert_eq!(error.to_string(), "18 bytes hold 32 values of q4_0, not 64");
    assert!(quantize(DType::Q6K, &[0.0; 256], &mut [0; 209]).is_err());
}
