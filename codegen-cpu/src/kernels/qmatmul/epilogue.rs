//! What happens to the sums of a product before they are stored.

use crate::kernels::elementwise::{self, Unary};

use super::{GROUP, Isa, OutPtr, QMatmulError};

/// What is added to a product on its way to memory.
#[derive(Clone, Copy, Debug, Default)]
pub struct Epilogue<'a> {
    /// One number per row of the matrix.
    pub bias: Option<&'a [f32]>,
    /// A tensor of the output's shape, `[token][row]`: element `[0, 0]` and the elements from one
    /// token to the next. It may be the output itself.
    pub residual: Option<(*const f32, usize)>,
    /// What is done to the sums at last, and the instruction set to do it with.
    pub act: Option<(Isa, Unary)>,
}

impl Epilogue<'_> {
    pub(super) fn check(&self, rows: usize) -> Result<(), QMatmulError> {
        match self.bias {
            Some(bias) if bias.len() != rows => {
                Err(QMatmulError::Operand { what: "the bias", expected: rows, found: bias.len() })
            }
            _ => Ok(()),
        }
    }

    /// Stores the sums of some tokens from `first` on, 16 per token, for `lanes` rows from `row` on.
    ///
    /// # Safety
    /// As [`qmatmul`](super::qmatmul), for these tokens and rows.
    #[inline]
    pub(super) unsafe fn store(
        &self,
        sums: &[f32],
        row: usize,
        lanes: usize,
        first: usize,
        out: OutPtr,
    ) {
        let bias = self.bias.map(|bias| &bias[row..row + lanes]);
        for (t, sums) in sums.as_chunks::<GROUP>().0.iter().enumerate() {
            let mut values = *sums;
            if let Some(bias) = bias {
                for (v, b) in values.iter_mut().zip(bias) {
                    *v += b;
                }
            }
            // SAFETY: the caller vouches for these tokens and rows. Reads come before the writes
            // of the same token, so residual and output may be one.
            unsafe {
                if let Some((residual, stride)) = self.residual {
                    let residual = residual.add((first + t) * stride + row);
                    for (i, v) in values.iter_mut().enumerate().take(lanes) {
                        *v += residual.add(i).read();
                    }
                }
                if let Some((isa, act)) = self.act {
                    let values = values.as_mut_ptr();
                    elementwise::unary_raw(isa, act, values, values, GROUP);
                }
                let to = out.ptr.add((first + t) * out.stride + row);
                if lanes == GROUP {
                    to.cast::<[f32; GROUP]>().write_unaligned(values);
                } else {
                    std::ptr::copy_nonoverlapping(values.as_ptr(), to, lanes);
                }
            }
        }
    }
}

/// The activation of a gated product.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// `x / (1 + exp(−x))`.
    Silu,
    /// `x / 2 · (1 + tanh(√(2/π) · (x + 0.044715 · x³)))`.
    GeluTanh,
}

impl Gate {
    /// Replaces each `a` by `gate(a) · b`.
    pub(super) fn apply(self, isa: Isa, a: &mut [f32], b: &[f32]) {
        match isa {
            // SAFETY: a kernel of this level was found before, so the machine has it.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512Vnni => unsafe { apply_avx512(self, a, b) },
            // SAFETY: as above.
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => unsafe { apply_avx2(self, a, b) },
            _ => apply(self, a, b),
        }
    }
}

/// [`apply`] compiled for AVX-512: same steps, wider vectors.
///
/// # Safety
/// The machine has these features.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn apply_avx512(gate: Gate, a: &mut [f32], b: &[f32]) {
    apply(gate, a, b);
}

/// [`apply`] compiled for AVX2: same steps, wider vectors.
///
/// # Safety
/// The machine has AVX2.
#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
unsafe fn apply_avx2(gate: Gate, a: &mut [f32], b: &[f32]) {
    apply(gate, a, b);
}

#[inline(always)]
fn apply(gate: Gate, a: &mut [f32], b: &[f32]) {
    match gate {
        Gate::Silu => {
            for (a, b) in a.iter_mut().zip(b) {
                *a = *a * sigmoid(*a) * b;
            }
        }
        Gate::GeluTanh => {
            // (1 + tanh z) / 2 is the logistic function of 2 z.
            const TWICE_SQRT_2_PI: f32 = 1.595_769_2;
            for (a, b) in a.iter_mut().zip(b) {
                let z = TWICE_SQRT_2_PI * (*a + 0.044_715 * *a * *a * *a);
                *a = *a * sigmoid(z) * b;
            }
        }
    }
}

/// `1 / (1 + exp(−z))`, within a few units in the last place, without branches or calls so that
/// loops over it become vector code.
#[inline(always)]
fn sigmoid(z: f32) -> f32 {
    const ROUND: f32 = 12_582_912.0;
    const LOG2_E: f32 = std::f32::consts::LOG2_E;
    // ln 2 in two parts, the first short enough for exact multiples.
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    // Beyond 87 the exponent would overflow, and the result is 1 or next to 0 already.
    let x = (-z).clamp(-87.0, 87.0);
    let n = x * LOG2_E + ROUND;
    let exponent = (n.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let n = n - ROUND;
    let r = x - n * LN2_HIGH - n * LN2_LOW;
    // The series of exp on ±ln(2)/2 up to the seventh power: error below 2^-27.
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    let scale = f32::from_bits((exponent.wrapping_add(127) << 23) as u32);
    1.0 / (1.0 + p * scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_follow_their_formula() {
        let xs: Vec<f32> = (-2000..=2000).map(|i| i as f32 * 0.05).collect();
        let ones = vec![1.0; xs.len()];
        for isa in Isa::available() {
            for gate in [Gate::Silu, Gate::GeluTanh] {
                let mut got = xs.clone();
                gate.apply(isa, &mut got, &ones);
                for (&x, &y) in xs.iter().zip(&got) {
                    let x = f64::from(x);
                    let want = match gate {
                        Gate::Silu => x / (1.0 + (-x).exp()),
                        Gate::GeluTanh => {
                            let z =
                                (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3));
                            x / 2.0 * (1.0 + z.tanh())
                        }
                    };
                    assert!(
                        (f64::from(y) - want).abs() <= 1e-6 * want.abs() + 1e-6,
                        "{isa} {gate:?}({x}) = {y}, not {want}"
                    );
                }
            }
        }
    }

    #[test]
    fn gates_keep_nan_and_limits() {
        let mut a = [f32::NAN, f32::INFINITY, 1e30, -1e30];
        Gate::Silu.apply(Isa::detect(), &mut a, &[1.0, 1.0, 2.0, 1.0]);
        assert!(a[0].is_nan());
        assert_eq!(a[1..3], [f32::INFINITY, 2e30]);
        assert!(a[3] <= 0.0 && a[3] > -1e-6 * 1e30);
    }
}
