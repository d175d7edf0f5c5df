//! Reductions of tiles.
//!
//! Accumulators are f64 for floats and i64 for integers, kept as their bits, so that what is
//! lost by summing a tile in f32 does not grow with the number of tiles. NaN wins every extreme.

use aether_ir::{DType, Op};

use super::{Class, mem};
use crate::kernels::isa::Isa;
use crate::kernels::simd::{Simd, dispatch};

/// What is taken of many elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fold {
    Sum,
    /// A sum, divided by the number of elements at the end.
    Mean,
    Prod,
    Max,
    Min,
}

impl Fold {
    /// The fold of an op.
    pub fn of(op: Op) -> Option<Fold> {
        Some(match op {
            Op::ReduceSum => Fold::Sum,
            Op::ReduceMean => Fold::Mean,
            Op::ReduceProd => Fold::Prod,
            Op::ReduceMax => Fold::Max,
            Op::ReduceMin => Fold::Min,
            _ => return None,
        })
    }

    /// The accumulator's bits before the first element of that type.
    pub fn start(self, dtype: DType) -> u64 {
        let (least, greatest) = match dtype {
            DType::I8 => (i8::MIN.into(), i8::MAX.into()),
            DType::I16 => (i16::MIN.into(), i16::MAX.into()),
            DType::I32 => (i32::MIN.into(), i32::MAX.into()),
            DType::U8 => (0, u8::MAX.into()),
            DType::U32 => (0, u32::MAX.into()),
            _ => (i64::MIN, i64::MAX),
        };
        let (float, int) = match self {
            Fold::Sum | Fold::Mean => (0.0, 0),
            Fold::Prod => (1.0, 1),
            Fold::Max => (f64::NEG_INFINITY, least),
            Fold::Min => (f64::INFINITY, greatest),
        };
        match Class::of(dtype) {
            Some(Class::I64) => int as u64,
            _ => float.to_bits(),
        }
    }

    #[inline(always)]
    fn float(self, a: f64, b: f64) -> f64 {
        match self {
            Fold::Sum | Fold::Mean => a + b,
            Fold::Prod => a * b,
            Fold::Max => aether_ir::op::elementwise::max(a, b),
            Fold::Min => aether_ir::op::elementwise::min(a, b),
        }
    }

    #[inline(always)]
    fn int(self, a: i64, b: i64) -> i64 {
        match self {
            Fold::Sum | Fold::Mean => a.wrapping_add(b),
            Fold::Prod => a.wrapping_mul(b),
            Fold::Max => a.max(b),
            Fold::Min => a.min(b),
        }
    }

    /// Two accumulators made one.
    pub fn join(self, class: Class, a: u64, b: u64) -> u64 {
        match class {
            Class::I64 => self.int(a as i64, b as i64) as u64,
            _ => self.float(f64::from_bits(a), f64::from_bits(b)).to_bits(),
        }
    }
}

/// A vector made one number, lane by lane from the first on.
#[inline(always)]
unsafe fn across<S: Simd>(fold: Fold, v: S::V) -> f64 {
    let mut lanes = [0f32; 16];
    // SAFETY: no vector has more than sixteen lanes.
    unsafe { S::store(lanes.as_mut_ptr(), v) };
    let mut acc = f64::from(lanes[0]);
    for &v in &lanes[1..S::LANES] {
        acc = fold.float(acc, f64::from(v));
    }
    acc
}

/// NaN stays, from either operand.
#[inline(always)]
unsafe fn extreme<S: Simd, const MAX: bool>(acc: S::V, v: S::V) -> S::V {
    // SAFETY: no condition but the instruction set.
    unsafe {
        // NaN of the second operand passes through both; that of the first must be kept.
        let next = if MAX { S::max(acc, v) } else { S::min(acc, v) };
        S::select(S::eq(acc, acc), next, acc)
    }
}

#[inline(always)]
unsafe fn f32_body<S: Simd>(fold: Fold, x: *const f32, n: usize) -> f64 {
    let l = S::LANES;
    // SAFETY: the caller's pointer covers `n` elements.
    unsafe {
        let start = match fold {
            Fold::Sum | Fold::Mean => 0.0,
            Fold::Prod => 1.0,
            Fold::Max => f32::NEG_INFINITY,
            Fold::Min => f32::INFINITY,
        };
        let mut acc = [S::splat(start); 4];
        let mut i = 0;
        macro_rules! over {
            ($step:expr) => {{
                while i + 4 * l <= n {
                    for (j, a) in acc.iter_mut().enumerate() {
                        *a = $step(*a, S::load(x.add(i + j * l)));
                    }
                    i += 4 * l;
                }
                while i + l <= n {
                    acc[0] = $step(acc[0], S::load(x.add(i)));
                    i += l;
                }
                $step($step(acc[0], acc[1]), $step(acc[2], acc[3]))
            }};
        }
        let total = match fold {
            Fold::Sum | Fold::Mean => over!(S::add),
            // Products of f32 leave its range long before they leave that of f64.
            Fold::Prod => S::splat(1.0),
            Fold::Max => over!(extreme::<S, true>),
            Fold::Min => over!(extreme::<S, false>),
        };
        let mut total = across::<S>(fold, total);
        while i < n {
            total = fold.float(total, f64::from(*x.add(i)));
            i += 1;
        }
        total
    }
}

dispatch! { unsafe fn f32_raw(isa; fold: Fold, x: *const f32, n: usize) -> f64 = f32_body }

/// Folds a tile into an accumulator.
///
/// # Safety
/// `x` covers `n` lanes of the class.
pub unsafe fn fold(isa: Isa, fold: Fold, class: Class, x: *const u8, n: usize, acc: u64) -> u64 {
    // SAFETY: the caller's promise.
    unsafe {
        match class {
            Class::F32 => {
                let tile = f32_raw(isa, fold, x.cast(), n);
                fold.float(f64::from_bits(acc), tile).to_bits()
            }
            Class::F64 => {
                let x = std::slice::from_raw_parts(x.cast::<f64>(), n);
                x.iter().fold(f64::from_bits(acc), |a, &v| fold.float(a, v)).to_bits()
            }
            Class::I64 => {
                let x = std::slice::from_raw_parts(x.cast::<i64>(), n);
                x.iter().fold(acc as i64, |a, &v| fold.int(a, v)) as u64
            }
        }
    }
}

#[inline(always)]
unsafe fn lanes_body<S: Simd>(fold: Fold, class: Class, x: *const u8, accs: *mut u64, n: usize) {
    macro_rules! each {
        ($t:ty, $acc:ty, $fold:expr, $method:ident) => {
            for i in 0..n {
                // SAFETY: the caller's pointers cover `n` lanes.
                unsafe {
                    let acc = accs.cast::<$acc>().add(i);
                    *acc = $fold.$method(*acc, (*x.cast::<$t>().add(i)).into());
                }
            }
        };
    }
    // The fold is chosen outside of the loops, so that they become vector code.
    macro_rules! folds {
        ($t:ty, $acc:ty, $method:ident) => {
            match fold {
                Fold::Sum | Fold::Mean => each!($t, $acc, Fold::Sum, $method),
                Fold::Prod => each!($t, $acc, Fold::Prod, $method),
                Fold::Max => each!($t, $acc, Fold::Max, $method),
                Fold::Min => each!($t, $acc, Fold::Min, $method),
            }
        };
    }
    match class {
        Class::F32 => folds!(f32, f64, float),
        Class::F64 => folds!(f64, f64, float),
        Class::I64 => folds!(i64, i64, int),
    }
}

dispatch! {
    unsafe fn lanes_raw(isa; fold: Fold, class: Class, x: *const u8, accs: *mut u64, n: usize)
        = lanes_body
}

/// Folds a tile lane by lane into `n` accumulators.
///
/// # Safety
/// `x` covers `n` lanes of the class, `accs` as many accumulators, apart from each other.
pub unsafe fn fold_lanes(
    isa: Isa,
    fold: Fold,
    class: Class,
    x: *const u8,
    accs: *mut u64,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe { lanes_raw(isa, fold, class, x, accs, n) }
}

/// Accumulators as lanes of a tile of `dtype`; means are of `count` elements.
///
/// # Safety
/// `dst` covers a lane for each.
pub unsafe fn take(fold: Fold, dtype: DType, accs: &[u64], dst: *mut u8, count: usize) {
    for (i, &acc) in accs.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            if Class::of(dtype) == Some(Class::I64) {
                let v = acc as i64;
                *dst.cast::<i64>().add(i) = v;
                continue;
            }
            let mut v = f64::from_bits(acc);
            if fold == Fold::Mean {
                v /= count as f64;
            }
            match dtype {
                DType::F64 => *dst.cast::<f64>().add(i) = v,
                _ => {
                    mem::cast(DType::F64, dtype, (&raw const v).cast(), dst.add(4 * i), 1);
                }
            }
        }
    }
    if Class::of(dtype) == Some(Class::I64) {
        // SAFETY: as above.
        unsafe { mem::round(Isa::Scalar, dtype, dst, accs.len()) };
    }
}
