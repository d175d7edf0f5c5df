//! Conversions between element types.

use aether_codegen_cpu::kernels::convert;
use aether_codegen_cpu::kernels::isa::Isa;
use half::{bf16, f16};

use crate::support::{LENGTHS, random, sizes};

#[test]
fn conversions_match_the_half_crate() {
    let mut rng = fastrand::Rng::with_seed(4);
    let samples = sizes().samples;
    let every: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let every_b: Vec<bf16> = (0..=u16::MAX).map(bf16::from_bits).collect();
    let mut x: Vec<f32> = (0..2 * samples + 3).map(|_| f32::from_bits(rng.u32(..))).collect();
    x.extend(random(&mut rng, samples, 2.0));
    x.extend(random(&mut rng, samples / 10, 1e-6));
    // Ties between neighbours, and just about.
    for i in 0..2000u32 {
        let low = f16::from_bits(i as u16 * 15).to_f32();
        let high = f16::from_bits(i as u16 * 15 + 1).to_f32();
        let mid = (low + high) / 2.0;
        x.extend([mid, mid.next_up(), mid.next_down(), f32::from_bits(i << 20 | 0x8000)]);
    }
    x.extend([65504.0, 65519.9, 65520.0, 1e30, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -0.0]);
    for isa in Isa::available() {
        let mut wide = vec![0.0; every.len()];
        convert::f16_to_f32(isa, &every, &mut wide);
        for (h, w) in every.iter().zip(&wide) {
            assert!(w.to_bits() == h.to_f32().to_bits() || (w.is_nan() && h.is_nan()), "{h:?}");
        }
        convert::bf16_to_f32(isa, &every_b, &mut wide);
        for (h, w) in every_b.iter().zip(&wide) {
            assert!(w.to_bits() == h.to_f32().to_bits() || (w.is_nan() && h.is_nan()), "{h:?}");
        }
        let mut narrow = vec![f16::ZERO; x.len()];
        convert::f32_to_f16(isa, &x, &mut narrow);
        for (x, h) in x.iter().zip(&narrow) {
            let want = f16::from_f32(*x);
            assert!(*h == want || (h.is_nan() && want.is_nan()), "{x} to {h}, want {want}, {isa}");
        }
        for n in LENGTHS {
            let mut a = vec![f16::ONE; n + 1];
            convert::f32_to_f16(isa, &x[..n], &mut a[..n]);
            assert!(a[n] == f16::ONE && (0..n).all(|i| a[i].to_bits() == narrow[i].to_bits()));
        }
    }
    let mut b = vec![bf16::ZERO; x.len()];
    convert::f32_to_bf16(&x, &mut b);
    for (x, h) in x.iter().zip(&b) {
        let want = bf16::from_f32(*x);
        assert!(*h == want || (h.is_nan() && want.is_nan()), "{x} to {h}, want {want}");
    }
    let mut ints = [0i8; 6];
    convert::cast_from_f32(&[1.9, -1.9, 300.0, -300.0, f32::NAN, 0.0], &mut ints);
    assert_eq!(ints, [1, -1, 127, -128, 0, 0]);
    let mut floats = [0.0; 3];
    convert::cast_to_f32(&[i64::MAX, -3, 16_777_217], &mut floats);
    assert_eq!(floats, [9_223_372_036_854_775_807f32, -3.0, 16_777_216.0]);
}
