//! How far two tensors are apart, and whether that is near enough.
//!
//! Distances are absolute, relative to the greatest finite magnitude of what is expected (so that
//! a sum that nearly cancels is not judged by what is left of it), and in units in the last place
//! of the element type (the number of representable values between the two).

use std::fmt;

use aether_ir::{DType, Module, Tensor};

/// What is near enough: `abs + rel · greatest magnitude`, or `ulp` units in the last place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    pub abs: f64,
    pub rel: f64,
    pub ulp: Option<u64>,
}

/// The distance of two tensors of one type: the greatest over their elements.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Distance {
    pub abs: f64,
    pub rel: f64,
    /// `None` where the element type has no units in the last place.
    pub ulp: Option<u64>,
    /// The element with the greatest absolute distance.
    pub at: usize,
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "max abs {:.3e}, rel {:.3e}", self.abs, self.rel)?;
        if let Some(ulp) = self.ulp {
            write!(f, ", ulp {ulp}")?;
        }
        if self.abs > 0.0 {
            write!(f, " (element {})", self.at)?;
        }
        Ok(())
    }
}

impl Distance {
    /// Whether the tolerance covers it. A NaN that is not expected is at an infinite distance.
    pub fn within(&self, tolerance: &Tolerance) -> bool {
        let scale = if self.rel > 0.0 && self.rel.is_finite() { self.abs / self.rel } else { 0.0 };
        self.abs <= tolerance.abs + tolerance.rel * scale
            || self.ulp.zip(tolerance.ulp).is_some_and(|(found, allowed)| found <= allowed)
    }
}

/// The distance of `found` from `expected`.
///
/// # Errors
/// When the types differ, or memory for the values cannot be had.
pub fn distance(found: &Tensor, expected: &Tensor) -> anyhow::Result<Distance> {
    if found.ty() != expected.ty() {
        anyhow::bail!("the result is {}, expected {}", found.ty(), expected.ty());
    }
    let dtype = expected.dtype();
    let (f, e) = (found.to_f64_vec()?, expected.to_f64_vec()?);
    let scale = e.iter().filter(|v| v.is_finite()).fold(0.0f64, |m, v| m.max(v.abs()));
    let mut worst = Distance { ulp: ordered(dtype, 0.0).map(|_| 0), ..Distance::default() };
    for (i, (&f, &e)) in f.iter().zip(&e).enumerate() {
        if f == e || (f.is_nan() && e.is_nan()) {
            continue;
        }
        let abs = if (f - e).is_nan() { f64::INFINITY } else { (f - e).abs() };
        if abs > worst.abs {
            (worst.abs, worst.at) = (abs, i);
        }
        if let Some((a, b)) = ordered(dtype, f).zip(ordered(dtype, e)) {
            worst.ulp = worst.ulp.map(|u| u.max(a.abs_diff(b)));
        }
    }
    worst.rel = match worst.abs {
        0.0 => 0.0,
        abs if scale > 0.0 => abs / scale,
        _ => f64::INFINITY,
    };
    Ok(worst)
}

/// The position of a value among the values of its type, negative ones below zero.
fn ordered(dtype: DType, value: f64) -> Option<i64> {
    let (bits, width): (u64, u32) = match dtype {
        DType::F64 => (value.to_bits(), 64),
        DType::F32 => (u64::from((value as f32).to_bits()), 32),
        // The upper half of an f32, of the same order.
        DType::Bf16 => (u64::from((value as f32).to_bits() >> 16), 16),
        DType::F16 => {
            let tensor = Tensor::from_f64(DType::F16, &[], &[value]).ok()?;
            (u64::from(u16::from_le_bytes(tensor.bytes()[..].try_into().ok()?)), 16)
        }
        _ => return None,
    };
    let sign = 1u64 << (width - 1);
    let magnitude = (bits & (sign - 1)) as i64;
    Some(if bits & sign == 0 { magnitude } else { -magnitude })
}

/// The share of the greatest magnitude that kernels may be off for the types a module computes
/// with: activations are rounded to 8 bits beside quantised weights, narrow floats hold 8 to 11
/// bits.
pub fn usual_rtol(module: &Module) -> f64 {
    let values = module.funcs.values().flat_map(|f| &f.values);
    values.fold(1e-5, |rtol: f64, value| {
        rtol.max(match value.ty.dtype {
            dtype if dtype.is_quantized() => 2e-2,
            DType::Bf16 => 1e-2,
            DType::F16 => 2e-3,
            _ => 0.0,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(found: &[f32], expected: &[f32]) -> Distance {
        let tensor = |v: &[f32]| Tensor::from_f32(&[v.len()], v).unwrap();
        distance(&tensor(found), &tensor(expected)).unwrap()
    }

    #[test]
    fn distances_are_told_three_ways() {
        let next = f32::from_bits(8.0f32.to_bits() + 3);
        let d = of(&[1.0, next, f32::NAN], &[1.0, 8.0, f32::NAN]);
        assert_eq!((d.ulp, d.at), (Some(3), 1));
        assert!((d.rel - d.abs / 8.0).abs() < 1e-12);
        assert_eq!(of(&[-0.0], &[0.0]), Distance { ulp: Some(0), ..Distance::default() });
        // From the least negative to the least positive value there are two steps.
        let tiny = f32::from_bits(1);
        assert_eq!(of(&[tiny], &[-tiny]).ulp, Some(2));
    }

    #[test]
    fn tolerances() {
        let tolerance = |abs, rel, ulp| Tolerance { abs, rel, ulp };
        let d = of(&[1.0, 100.5], &[1.0, 100.0]);
        for (t, want) in [
            (tolerance(0.5, 0.0, None), true),
            (tolerance(0.4, 0.0, None), false),
            (tolerance(0.0, 0.005, None), true),
            (tolerance(0.0, 0.004, None), false),
            (tolerance(0.0, 0.0, Some(1 << 20)), true),
        ] {
            assert_eq!(d.within(&t), want, "{t:?}");
        }
        let loose = tolerance(1e9, 1.0, None);
        assert!(!of(&[f32::NAN, 1.0], &[1.0, 1.0]).within(&loose));
        assert!(!of(&[f32::INFINITY], &[1.0]).within(&loose));
        assert!(of(&[f32::INFINITY], &[f32::INFINITY]).within(&tolerance(0.0, 0.0, None)));
        let other = Tensor::from_f32(&[2], &[0.0; 2]).unwrap();
        assert!(distance(&other, &Tensor::from_f32(&[1], &[0.0]).unwrap()).is_err());
    }
}
