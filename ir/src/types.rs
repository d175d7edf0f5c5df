//! Tensor types: shape, element type, layout.

use std::fmt;

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};

use crate::dim::{Dim, Symbol, SymbolRange};
use crate::dtype::DType;

/// Greatest rank a tensor may have.
pub const MAX_RANK: usize = 8;

/// The dimensions of a tensor, outermost first.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default)]
#[serde(transparent)]
pub struct Shape(pub Vec<Dim>);

impl Shape {
    /// A shape of lengths, outermost first.
    pub fn new(lengths: Vec<usize>) -> Self {
        lengths.into()
    }

    /// A shape of numbers.
    pub fn of(dims: &[u64]) -> Self {
        Shape(dims.iter().map(|&d| Dim::new(d)).collect())
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The product of all dimensions.
    pub fn numel(&self) -> Dim {
        self.0.iter().fold(Dim::new(1), |acc, d| &acc * d)
    }

    /// The dimensions as numbers, when no symbol takes part.
    pub fn as_const(&self) -> Option<Vec<u64>> {
        self.0.iter().map(Dim::as_const).collect()
    }

    /// Axis `axis` counted from the end when negative, or `None` when out of range.
    pub fn axis(&self, axis: i64) -> Option<usize> {
        let rank = self.rank() as i64;
        let axis = if axis < 0 { axis + rank } else { axis };
        (0..rank).contains(&axis).then_some(axis as usize)
    }

    /// NumPy's broadcasting of two shapes, or `None` when they do not fit.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.rank().max(other.rank());
        let one = Dim::new(1);
        let mut dims = Vec::with_capacity(rank);
        for i in 0..rank {
            let pick =
                |s: &Shape| (i + s.rank()).checked_sub(rank).map_or(&one, |j| &s.0[j]).clone();
            let (a, b) = (pick(self), pick(other));
            dims.push(match (a.is(1), b.is(1)) {
                _ if a == b => a,
                (true, _) => b,
                (_, true) => a,
                _ => return None,
            });
        }
        Some(Shape(dims))
    }
}

impl From<Vec<usize>> for Shape {
    fn from(lengths: Vec<usize>) -> Self {
        lengths.as_slice().into()
    }
}

impl From<&[usize]> for Shape {
    fn from(lengths: &[usize]) -> Self {
        Shape(lengths.iter().map(|&n| Dim::from(n)).collect())
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(lengths: [usize; N]) -> Self {
        lengths.as_slice().into()
    }
}

impl From<Vec<Dim>> for Shape {
    fn from(dims: Vec<Dim>) -> Self {
        Shape(dims)
    }
}

impl<const N: usize> From<[Dim; N]> for Shape {
    fn from(dims: [Dim; N]) -> Self {
        Shape(dims.into())
    }
}

/// The shape of a scalar.
impl From<()> for Shape {
    fn from((): ()) -> Self {
        Shape::default()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                f.write_str("x")?;
            }
            match d.as_const() {
                Some(n) => write!(f, "{n}")?,
                None => write!(f, "[{d}]")?,
            }
        }
        Ok(())
    }
}

/// How a tensor's bytes are arranged.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, Default,
)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    /// Row-major; blocks of quantised types lie along the last axis as in GGUF.
    #[default]
    RowMajor,
    /// Rows of a matrix interleaved in groups of sixteen, for the CPU's products.
    R16,
    /// Rows of a matrix one after another, in each the parts of its blocks sorted into planes
    /// ([`DType::planes`]), for the GPU's products.
    Planes,
}

impl Layout {
    /// Every layout.
    pub const ALL: [Layout; 3] = [Layout::RowMajor, Layout::R16, Layout::Planes];

    /// Whether the rows of a matrix can be cut after every `n` of them.
    pub fn divides(self, n: u64) -> bool {
        match self {
            Layout::RowMajor | Layout::Planes => true,
            Layout::R16 => n.is_multiple_of(16),
        }
    }

    /// The name used in the text form.
    pub fn name(self) -> &'static str {
        match self {
            Layout::RowMajor => "row_major",
            Layout::R16 => "r16",
            Layout::Planes => "planes",
        }
    }

    /// The layout of that name.
    pub fn from_name(name: &str) -> Option<Layout> {
        Layout::ALL.into_iter().find(|l| l.name() == name)
    }
}

/// The type of an SSA value.
///
/// Written `tensor<2x[s]xf32>`, with a packed layout `tensor<576x576xq4_1, r16>`, a scalar
/// `tensor<f32>`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TensorType {
    pub shape: Shape,
    pub dtype: DType,
    #[serde(default)]
    pub layout: Layout,
}

impl TensorType {
    /// A row-major tensor.
    pub fn new(dtype: DType, dims: impl IntoIterator<Item = impl Into<Dim>>) -> Self {
        TensorType {
            shape: Shape(dims.into_iter().map(Into::into).collect()),
            dtype,
            layout: Layout::RowMajor,
        }
    }

    /// A row-major tensor of that shape.
    pub fn with_shape(dtype: DType, shape: Shape) -> Self {
        TensorType { shape, dtype, layout: Layout::RowMajor }
    }

    /// A tensor without dimensions.
    pub fn scalar(dtype: DType) -> Self {
        TensorType::with_shape(dtype, Shape::default())
    }

    /// The same shape and layout with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        TensorType { dtype, ..self.clone() }
    }

    /// Number of dimensions.
    pub fn rank(&self) -> usize {
        self.shape.rank()
    }

    /// Bytes when each symbol has the value `value_of` gives it. Packed layouts round the rows
    /// up to whole groups. `None` on overflow, an unbound symbol or partial blocks.
    pub fn bytes(&self, mut value_of: impl FnMut(&str) -> Option<u64>) -> Option<u64> {
        self.bytes_for(|d| d.eval(&mut value_of))
    }

    /// Bytes at the upper bound of every dimension.
    pub fn max_bytes(&self, ranges: &IndexMap<Symbol, SymbolRange>) -> Option<u64> {
        self.bytes_for(|d| d.upper_bound(ranges))
    }

    fn bytes_for(&self, mut value: impl FnMut(&Dim) -> Option<u64>) -> Option<u64> {
        let (last, outer) = match self.shape.0.split_last() {
            Some((last, outer)) => (value(last)?, outer),
            None => (1, &[][..]),
        };
        let last = usize::try_from(last).ok()?;
        let row = match self.layout {
            Layout::Planes => self.dtype.planes_row_bytes(last)? as u64,
            Layout::RowMajor | Layout::R16 => self.dtype.row_bytes(last)? as u64,
        };
        let mut rows = 1u64;
        for d in outer {
            rows = rows.checked_mul(value(d)?)?;
        }
        if self.layout == Layout::R16 {
            rows = rows.checked_next_multiple_of(16)?;
        }
        rows.checked_mul(row)
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("tensor<")?;
        if self.rank() > 0 {
            write!(f, "{}x", self.shape)?;
        }
        write!(f, "{}", self.dtype)?;
        if self.layout != Layout::RowMajor {
            write!(f, ", {}", self.layout.name())?;
        }
        f.write_str(">")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_written() {
        let ty = TensorType::new(DType::F32, [Dim::from("s"), Dim::new(576)]);
        assert_eq!(ty.to_string(), "tensor<[s]x576xf32>");
        assert_eq!(TensorType::scalar(DType::I32).to_string(), "tensor<i32>");
    }

    #[test]
    fn broadcasting_follows_numpy() {
        type Row<'a> = (&'a [u64], &'a [u64], Option<&'a [u64]>);
        let table: [Row; 5] = [
            (&[2, 3], &[3], Some(&[2, 3])),
            (&[2, 1], &[1, 3], Some(&[2, 3])),
            (&[], &[4], Some(&[4])),
            (&[2], &[3], None),
            (&[0], &[1], Some(&[0])),
        ];
        for (a, b, want) in table {
            assert_eq!(Shape::of(a).broadcast(&Shape::of(b)), want.map(Shape::of), "{a:?} {b:?}");
        }
    }

    #[test]
    fn packed_rows_are_rounded_up() {
        let mut ty = TensorType::new(DType::Q4_1, [17u64, 32]);
        assert_eq!(ty.bytes(|_| None), Some(17 * 20));
        ty.layout = Layout::R16;
        assert_eq!(ty.bytes(|_| None), Some(32 * 20));
    }

    #[test]
    fn planes_are_rounded_up() {
        // 32 codes of 4 bits and two f16, each plane to 16 bytes.
        let mut ty = TensorType::new(DType::Q4_1, [17u64, 32]);
        ty.layout = Layout::Planes;
        assert_eq!(ty.bytes(|_| None), Some(17 * 32));
        ty.dtype = DType::F32;
        assert_eq!(ty.bytes(|_| None), None);
    }
}
