//! Concrete tensors on the host: what constants hold, the interpreter computes with and
//! functions take and give.
//!
//! A [`Tensor`] is immutable bytes with a type; cloning shares the bytes. Its elements are read
//! as `f64` or `i64` and rounded once when they are written ([`convert`] has the rules).
//!
//! Tensors here are row-major in memory whatever their [`Layout`] says: on the host a packed
//! layout is a tag, because what `pack` does to bytes is the business of the code generator whose
//! kernels read them.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use ndarray::ArrayD;

use crate::attr::Attrs;
use crate::dim::Bindings;
use crate::dtype::DType;
use crate::types::{Layout, MAX_RANK, TensorType};

pub mod convert;

/// Shared immutable bytes: a vector, an `Arc<[u8]>`, or a range of a memory map.
#[derive(Clone)]
pub struct Bytes(Arc<dyn AsRef<[u8]> + Send + Sync>);

impl Bytes {
    /// Shares what `owner` keeps alive. `owner.as_ref()` must give the same slice every time.
    pub fn from_owner(owner: impl AsRef<[u8]> + Send + Sync + 'static) -> Self {
        Bytes(Arc::new(owner))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        (*self.0).as_ref()
    }
}

impl From<Vec<u8>> for Bytes {
    fn from(bytes: Vec<u8>) -> Self {
        Bytes::from_owner(bytes)
    }
}

impl From<Arc<[u8]>> for Bytes {
    fn from(bytes: Arc<[u8]>) -> Self {
        Bytes::from_owner(bytes)
    }
}

impl PartialEq for Bytes {
    fn eq(&self, other: &Bytes) -> bool {
        **self == **other
    }
}

impl fmt::Debug for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

/// A tensor's bytes, little-endian and row-major, with its type.
///
/// Equality compares bytes, so NaN equals itself and 0 differs from -0.
#[derive(Clone, Debug, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    layout: Layout,
    bytes: Bytes,
}

/// A [`TensorType`] whose dimensions are numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcreteType {
    pub dtype: DType,
    pub shape: Vec<usize>,
    pub layout: Layout,
}

/// Bytes, values and a type do not fit together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// The product of the dimensions overflows, or the last one ends inside a block.
    #[error("{0} has no size in bytes: it overflows or ends inside a block")]
    NoSize(ConcreteType),
    /// More axes than [`MAX_RANK`].
    #[error("{0} axes are more than the {MAX_RANK} a tensor may have")]
    Rank(usize),
    /// Another number of bytes than the type asks for.
    #[error("{ty} takes {want} bytes, not {found}")]
    Bytes { ty: ConcreteType, want: usize, found: usize },
    /// Another number of values than the type asks for.
    #[error("{ty} takes {want} values, not {found}")]
    Values { ty: ConcreteType, want: usize, found: usize },
    /// Memory for the elements cannot be had.
    #[error("no memory for {0} elements")]
    Memory(usize),
}

/// An op cannot be carried out on these operands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EvalError(pub String);

impl From<TensorError> for EvalError {
    fn from(e: TensorError) -> Self {
        EvalError(e.to_string())
    }
}

impl From<ndarray::ShapeError> for EvalError {
    fn from(e: ndarray::ShapeError) -> Self {
        EvalError(e.to_string())
    }
}

/// What a reference meaning gives.
pub type Evaluated = Result<Vec<Tensor>, EvalError>;

/// What a reference meaning sees. The type rule has accepted the operands and results.
pub struct EvalCtx<'a> {
    pub operands: &'a [&'a Tensor],
    pub attrs: &'a Attrs,
    pub results: &'a [ConcreteType],
}

impl ConcreteType {
    /// A row-major type.
    pub fn new(dtype: DType, shape: impl Into<Vec<usize>>) -> Self {
        ConcreteType { dtype, shape: shape.into(), layout: Layout::RowMajor }
    }

    /// `ty` with the values of its symbols.
    ///
    /// # Errors
    /// Names the dimension that has no value: a symbol is unbound, or the result is negative or
    /// overflows.
    pub fn of(ty: &TensorType, bindings: &Bindings) -> Result<Self, String> {
        let mut shape = Vec::with_capacity(ty.rank());
        for dim in &ty.shape.0 {
            let n = dim
                .eval(|s| bindings.get(s).copied())
                .and_then(|n| usize::try_from(n).ok())
                .ok_or_else(|| {
                    let unbound = dim.symbols().into_iter().find(|s| !bindings.contains_key(s));
                    match unbound {
                        Some(s) => format!("symbol `{s}` in {ty} has no value"),
                        None => format!("dimension `{dim}` of {ty} is negative or too large"),
                    }
                })?;
            shape.push(n);
        }
        Ok(ConcreteType { dtype: ty.dtype, shape, layout: ty.layout })
    }

    /// The same as a type of the IR.
    pub fn to_type(&self) -> TensorType {
        let ty = TensorType::new(self.dtype, self.shape.iter().copied());
        TensorType { layout: self.layout, ..ty }
    }

    /// Number of elements, or `None` on overflow.
    pub fn numel(&self) -> Option<usize> {
        self.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
    }

    /// Bytes of the row-major form, or `None` on overflow or partial blocks.
    pub fn row_major_bytes(&self) -> Option<usize> {
        let (&last, outer) = self.shape.split_last().unwrap_or((&1, &[]));
        let rows = outer.iter().try_fold(1usize, |n, &d| n.checked_mul(d))?;
        rows.checked_mul(self.dtype.row_bytes(last)?)
    }
}

impl fmt::Display for ConcreteType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_type().fmt(f)
    }
}

impl Tensor {
    /// A tensor of type `ty` from its row-major bytes.
    ///
    /// # Errors
    /// When the number of bytes is not the type's, or the type has no size.
    pub fn new(ty: ConcreteType, bytes: impl Into<Bytes>) -> Result<Self, TensorError> {
        let bytes = bytes.into();
        let want = checked_size(&ty)?.1;
        if bytes.len() != want {
            return Err(TensorError::Bytes { found: bytes.len(), want, ty });
        }
        Ok(Tensor { dtype: ty.dtype, shape: ty.shape, layout: ty.layout, bytes })
    }

    /// A tensor of any plain type from values, each rounded once ([`convert::put_f64`]);
    /// quantised types are encoded with [`crate::quant::quantize`].
    ///
    /// # Errors
    /// When the number of values is not the shape's, or the type has no size.
    pub fn from_f64(dtype: DType, shape: &[usize], values: &[f64]) -> Result<Self, TensorError> {
        Self::from_elements(dtype, shape, values, convert::put_f64)
    }

    /// A tensor of any type from integers: integer types wrap, floats round once.
    ///
    /// # Errors
    /// As [`Tensor::from_f64`].
    pub fn from_i64(dtype: DType, shape: &[usize], values: &[i64]) -> Result<Self, TensorError> {
        Self::from_elements(dtype, shape, values, convert::put_i64)
    }

    /// An f32 tensor.
    ///
    /// # Errors
    /// As [`Tensor::from_f64`].
    pub fn from_f32(shape: &[usize], values: &[f32]) -> Result<Self, TensorError> {
        Self::from_elements(DType::F32, shape, values, |_, values, out| {
            for (v, b) in values.iter().zip(out.as_chunks_mut().0) {
                *b = v.to_le_bytes();
            }
        })
    }

    /// An i32 tensor.
    ///
    /// # Errors
    /// As [`Tensor::from_f64`].
    pub fn from_i32(shape: &[usize], values: &[i32]) -> Result<Self, TensorError> {
        Self::from_elements(DType::I32, shape, values, |_, values, out| {
            for (v, b) in values.iter().zip(out.as_chunks_mut().0) {
                *b = v.to_le_bytes();
            }
        })
    }

    /// An f32 scalar.
    pub fn scalar_f32(value: f32) -> Self {
        Self::scalar_bytes(DType::F32, value.to_le_bytes().to_vec())
    }

    /// An i32 scalar.
    pub fn scalar_i32(value: i32) -> Self {
        Self::scalar_bytes(DType::I32, value.to_le_bytes().to_vec())
    }

    /// An i64 scalar.
    pub fn scalar_i64(value: i64) -> Self {
        Self::scalar_bytes(DType::I64, value.to_le_bytes().to_vec())
    }

    /// A bool scalar.
    pub fn scalar_bool(value: bool) -> Self {
        Self::scalar_bytes(DType::Bool, vec![u8::from(value)])
    }

    fn scalar_bytes(dtype: DType, bytes: Vec<u8>) -> Self {
        Tensor { dtype, shape: Vec::new(), layout: Layout::RowMajor, bytes: bytes.into() }
    }

    /// A tensor of a plain type filled with one value.
    ///
    /// # Errors
    /// When the type has no size or memory for it cannot be had.
    pub fn splat(dtype: DType, shape: &[usize], value: f64) -> Result<Self, TensorError> {
        let ty = ConcreteType::new(dtype, shape);
        let (numel, size) = checked_size(&ty)?;
        let block = vec![value; dtype.block_len()];
        let mut pattern = vec![0; dtype.block_bytes()];
        convert::put_f64(dtype, &block, &mut pattern);
        let mut bytes = reserve(size).ok_or(TensorError::Memory(numel))?;
        while bytes.len() < size {
            bytes.extend_from_slice(&pattern);
        }
        Tensor::new(ty, bytes)
    }

    /// A tensor filled with zeros.
    ///
    /// # Errors
    /// As [`Tensor::splat`].
    pub fn zeros(dtype: DType, shape: &[usize]) -> Result<Self, TensorError> {
        Self::splat(dtype, shape, 0.0)
    }

    fn from_elements<T>(
        dtype: DType,
        shape: &[usize],
        values: &[T],
        put: impl Fn(DType, &[T], &mut [u8]),
    ) -> Result<Self, TensorError> {
        let ty = ConcreteType::new(dtype, shape);
        let (numel, size) = checked_size(&ty)?;
        if numel != values.len() {
            return Err(TensorError::Values { ty, want: numel, found: values.len() });
        }
        let mut bytes = reserve(size).ok_or(TensorError::Memory(numel))?;
        bytes.resize(size, 0);
        put(dtype, values, &mut bytes);
        Tensor::new(ty, bytes)
    }

    /// A tensor of a plain type from an array, each value rounded once.
    ///
    /// # Errors
    /// When the type has no size or memory for it cannot be had.
    pub fn from_array(dtype: DType, array: &ArrayD<f64>) -> Result<Self, TensorError> {
        match array.as_slice() {
            Some(values) => Self::from_f64(dtype, array.shape(), values),
            None => {
                let values: Vec<f64> = array.iter().copied().collect();
                Self::from_f64(dtype, array.shape(), &values)
            }
        }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The layout the type names; the bytes are row-major all the same.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// The bytes, row-major.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The type.
    pub fn ty(&self) -> ConcreteType {
        ConcreteType { dtype: self.dtype, shape: self.shape.clone(), layout: self.layout }
    }

    /// Number of elements.
    pub fn numel(&self) -> usize {
        self.shape.iter().product()
    }

    /// The same bytes under another layout's name.
    #[must_use]
    pub fn with_layout(&self, layout: Layout) -> Self {
        Tensor { layout, ..self.clone() }
    }

    /// The same elements under another shape of as many, or `None`.
    #[must_use]
    pub fn with_shape(&self, shape: &[usize]) -> Option<Self> {
        let ty = ConcreteType { dtype: self.dtype, shape: shape.to_vec(), layout: self.layout };
        Tensor::new(ty, self.bytes.clone()).ok()
    }

    /// The values of `out.len()` elements from element `start` on, both whole blocks.
    ///
    /// # Errors
    /// When the range does not lie within the tensor or cuts a block.
    pub fn read_f64(&self, start: usize, out: &mut [f64]) -> Result<(), EvalError> {
        let (len, size) = (self.dtype.block_len(), self.dtype.block_bytes());
        let range = start
            .checked_add(out.len())
            .filter(|end| start.is_multiple_of(len) && end.is_multiple_of(len))
            .and_then(|end| self.bytes.get(start / len * size..end / len * size));
        let bytes = range.ok_or_else(|| {
            EvalError(format!("elements {start}+{} do not lie within {}", out.len(), self.ty()))
        })?;
        convert::get_f64(self.dtype, bytes, out);
        Ok(())
    }

    /// Every value as f64, dequantised where needed; i64 rounds.
    ///
    /// # Errors
    /// When memory for the values cannot be had.
    pub fn to_f64_vec(&self) -> Result<Vec<f64>, TensorError> {
        let mut out = reserve(self.numel()).ok_or(TensorError::Memory(self.numel()))?;
        out.resize(self.numel(), 0.0);
        convert::get_f64(self.dtype, &self.bytes, &mut out);
        Ok(out)
    }

    /// Every value as f32, rounded from wider types.
    ///
    /// # Errors
    /// When memory for the values cannot be had.
    pub fn to_f32_vec(&self) -> Result<Vec<f32>, TensorError> {
        let mut out = reserve(self.numel()).ok_or(TensorError::Memory(self.numel()))?;
        out.resize(self.numel(), 0.0);
        // The bytes are whole blocks for as many values, which is all `dequantize` asks for.
        let _ = crate::quant::dequantize(self.dtype, &self.bytes, &mut out);
        Ok(out)
    }

    /// Every value as i64, as `cast` gives it: floats truncate and saturate, NaN is 0, `bool` is
    /// 0 or 1.
    ///
    /// # Errors
    /// When memory for the values cannot be had.
    pub fn to_i64_vec(&self) -> Result<Vec<i64>, TensorError> {
        let mut out = reserve(self.numel()).ok_or(TensorError::Memory(self.numel()))?;
        out.resize(self.numel(), 0);
        convert::get_i64(self.dtype, &self.bytes, &mut out);
        Ok(out)
    }

    /// The values as an f64 array.
    ///
    /// # Errors
    /// When memory for the values cannot be had.
    pub fn to_array_f64(&self) -> Result<ArrayD<f64>, EvalError> {
        Ok(ArrayD::from_shape_vec(self.shape.clone(), self.to_f64_vec()?)?)
    }

    /// The values as an i64 array.
    ///
    /// # Errors
    /// When memory for the values cannot be had.
    pub fn to_array_i64(&self) -> Result<ArrayD<i64>, EvalError> {
        Ok(ArrayD::from_shape_vec(self.shape.clone(), self.to_i64_vec()?)?)
    }

    /// The value of an integer scalar.
    ///
    /// # Errors
    /// When the tensor has not exactly one element.
    pub fn scalar_value(&self) -> Result<i64, EvalError> {
        let mut out = [0];
        if self.numel() != 1 || self.dtype.is_quantized() {
            return Err(EvalError(format!("expected one number, found {}", self.ty())));
        }
        convert::get_i64(self.dtype, &self.bytes, &mut out);
        Ok(out[0])
    }
}

/// An empty vector with room for `n`, or `None` when memory is short.
pub(crate) fn reserve<T>(n: usize) -> Option<Vec<T>> {
    let mut v = Vec::new();
    v.try_reserve_exact(n).ok()?;
    Some(v)
}

/// Elements and row-major bytes of a type.
fn checked_size(ty: &ConcreteType) -> Result<(usize, usize), TensorError> {
    if ty.shape.len() > MAX_RANK {
        return Err(TensorError::Rank(ty.shape.len()));
    }
    // ndarray's limit: the product of the axes that are not empty.
    let extent = ty.shape.iter().filter(|&&d| d != 0).try_fold(1usize, |n, &d| n.checked_mul(d));
    match (extent, ty.numel(), ty.row_major_bytes()) {
        (Some(extent), Some(numel), Some(bytes)) if extent <= isize::MAX as usize / 8 => {
            Ok((numel, bytes))
        }
        _ => Err(TensorError::NoSize(ty.clone())),
    }
}
