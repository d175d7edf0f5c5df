//! Register programs over tiles: what one pass over memory computes.
//!
//! A tile is a run of some hundred to thousand elements. A program is a list of [`Step`]s, each of
//! which works on whole tiles, so that its cost of dispatch is spread over the tile and its vector
//! code runs from and to the first-level cache. Tiles hold one of three kinds of numbers
//! ([`Class`]), whatever the element types in memory are:
//!
//! - f32, f16 and bf16 are computed as f32, and rounded after each step where they are narrower;
//!   `bool` is 0 or 1 among them;
//! - f64 is computed as f64, with the very functions of the reference interpreter;
//! - integers are computed as i64 and wrapped to their width after each step.
//!
//! [`mem`] loads and stores tiles, [`map`] computes elementwise, [`reduce`] takes sums and
//! extremes. Nothing here allocates.

pub mod map;
pub mod mem;
pub mod reduce;

use aether_ir::{DType, Op};

use super::isa::Isa;
use reduce::Fold;

/// What the lanes of a tile are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    F32,
    F64,
    I64,
}

impl Class {
    /// How elements of a type are computed.
    ///
    /// `None` for quantised types, which have no single elements.
    pub fn of(dtype: DType) -> Option<Class> {
        match dtype {
            DType::F32 | DType::F16 | DType::Bf16 | DType::Bool => Some(Class::F32),
            DType::F64 => Some(Class::F64),
            DType::I8 | DType::I16 | DType::I32 | DType::I64 | DType::U8 | DType::U32 => {
                Some(Class::I64)
            }
            _ => None,
        }
    }

    /// Bytes of one lane.
    pub fn bytes(self) -> usize {
        match self {
            Class::F32 => 4,
            Class::F64 | Class::I64 => 8,
        }
    }
}

/// Whether tiles of a type lie in memory as they are computed.
pub fn is_native(dtype: DType) -> bool {
    matches!(dtype, DType::F32 | DType::F64 | DType::I64)
}

/// A place in the table of tile addresses.
pub type Slot = u16;

/// What a step computes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Code {
    /// An elementwise op on tiles of this class.
    Map(Class, Op),
    /// A cast.
    Cast(DType, DType),
    /// Rounds or wraps the tile to a narrower type, in place.
    Round(DType),
    /// The first lane of the operand in every lane.
    Spread(Class),
    /// Folds the operand into an accumulator, a number.
    Fold { fold: Fold, class: Class, acc: u16 },
    /// The accumulator in the first lane; starts it anew.
    Take { fold: Fold, dtype: DType, acc: u16 },
    /// Folds the operand lane by lane into the accumulator tile `dst`.
    FoldLanes { fold: Fold, class: Class },
    /// From an accumulator tile to a tile.
    TakeLanes { fold: Fold, dtype: DType },
}

/// One step of a program.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Step {
    pub code: Code,
    pub dst: Slot,
    pub args: [Slot; 3],
    /// Works on the first lane alone.
    pub narrow: bool,
}

/// An integer was divided by zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("integer division by zero")]
pub struct DivisionByZero;

/// Runs steps on tiles of `n` lanes. `count` is the number of elements that one mean is taken of.
///
/// # Errors
/// At an integer division by zero.
///
/// # Safety
/// Every slot of a step is an index into `tiles`, whose address is good for `n` lanes of the class
/// that the step works on, aligned to a lane; a tile that is written coincides with one that the
/// step reads or overlaps none. Accumulators are indices into `accs`.
pub unsafe fn run(
    isa: Isa,
    steps: &[Step],
    tiles: &[*mut u8],
    accs: &mut [u64],
    n: usize,
    count: usize,
) -> Result<(), DivisionByZero> {
    for step in steps {
        let n = if step.narrow { n.min(1) } else { n };
        let at = |slot: Slot| tiles[slot as usize];
        let dst = at(step.dst);
        let [a, b, c] = step.args.map(|s| at(s).cast_const());
        // SAFETY: the caller's promise for each step.
        unsafe {
            match step.code {
                Code::Map(Class::F32, op) => map::f32(isa, op, [a, b, c], dst, n),
                Code::Map(Class::F64, op) => map::f64(isa, op, [a, b, c], dst, n),
                Code::Map(Class::I64, op) => map::i64(isa, op, [a, b, c], dst, n)?,
                Code::Cast(from, to) => mem::cast(from, to, a, dst, n),
                Code::Round(dtype) => mem::round(isa, dtype, dst, n),
                Code::Spread(class) => mem::spread(class, a, dst, n),
                Code::Fold { fold, class, acc } => {
                    let acc = &mut accs[acc as usize];
                    *acc = reduce::fold(isa, fold, class, a, n, *acc);
                }
                Code::Take { fold, dtype, acc } => {
                    let acc = &mut accs[acc as usize];
                    reduce::take(fold, dtype, &[*acc], dst, count);
                    *acc = fold.start(dtype);
                }
                Code::FoldLanes { fold, class } => {
                    reduce::fold_lanes(isa, fold, class, a, dst.cast(), n);
                }
                Code::TakeLanes { fold, dtype } => {
                    let accs = std::slice::from_raw_parts(a.cast::<u64>(), n);
                    reduce::take(fold, dtype, accs, dst, count);
                }
            }
        }
    }
    Ok(())
}
