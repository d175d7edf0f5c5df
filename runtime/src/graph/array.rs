//! Host data: what goes into a graph and comes out of a run.

use std::fmt;

use aether_codegen_cpu::AlignedBytes;
use aether_ir::tensor::{Bytes, ConcreteType, TensorError};
use aether_ir::{DType, Shape, TensorType};
use half::{bf16, f16};
use ndarray::{ArrayBase, ArrayD, Data, Dimension};

/// A number type that tensors can hold.
pub trait Element: Copy + fmt::Debug + sealed::Sealed + 'static {
    /// The element type in the IR.
    const DTYPE: DType;
    /// Writes the little-endian bytes; `out` has their number.
    fn store(self, out: &mut [u8]);
    /// Reads them back.
    fn load(bytes: &[u8]) -> Self;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! elements {
    ($($t:ty => $dtype:ident),*) => {$(
        impl sealed::Sealed for $t {}

        impl Element for $t {
            const DTYPE: DType = DType::$dtype;

            fn store(self, out: &mut [u8]) {
                out.copy_from_slice(&self.to_le_bytes());
            }

            fn load(bytes: &[u8]) -> Self {
                let mut own = [0; size_of::<$t>()];
                own.copy_from_slice(bytes);
                <$t>::from_le_bytes(own)
            }
        }
    )*};
}

elements! {
    f32 => F32, f64 => F64, f16 => F16, bf16 => Bf16,
    i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u32 => U32
}

impl sealed::Sealed for bool {}

impl Element for bool {
    const DTYPE: DType = DType::Bool;

    fn store(self, out: &mut [u8]) {
        out[0] = u8::from(self);
    }

    fn load(bytes: &[u8]) -> Self {
        bytes[0] != 0
    }
}

/// Host data does not fit what is asked of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ArrayError {
    /// Read as another element type than it has.
    #[error("the elements are {found}, not {asked}; `cast` the tensor first")]
    DType { found: DType, asked: DType },
    /// Not exactly one element where one is asked for.
    #[error("expected one element, found {0}")]
    NotOne(TensorType),
    /// A dimension of data is a symbol.
    #[error("data has no symbolic dimensions, found the shape {0}")]
    Symbolic(Shape),
    /// The number of values is not the shape's, or has no size.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// A host array: row-major elements of one type, shared by its clones.
#[derive(Clone, PartialEq)]
pub struct Array(aether_ir::Tensor);

/// Aligned memory as the owner of a tensor's bytes.
struct Owned(AlignedBytes);

impl AsRef<[u8]> for Owned {
    fn as_ref(&self) -> &[u8] {
        self.0.as_slice()
    }
}

/// Aligned bytes of `ty`, which must be numbers and have a size.
pub(super) fn allocate(ty: &ConcreteType) -> Result<AlignedBytes, ArrayError> {
    let bytes = ty.row_major_bytes().ok_or_else(|| TensorError::NoSize(ty.clone()))?;
    crate::check_memory("an array", bytes as u64)
        .map_err(|_| TensorError::Memory(ty.numel().unwrap_or(usize::MAX)))?;
    Ok(AlignedBytes::zeroed(bytes))
}

impl Array {
    /// An array from its elements in row-major order.
    ///
    /// # Errors
    /// When the number of elements is not the shape's, or a dimension is a symbol.
    pub fn new<T: Element>(values: &[T], shape: impl Into<Shape>) -> Result<Array, ArrayError> {
        let shape = shape.into();
        let dims = shape.as_const().ok_or_else(|| ArrayError::Symbolic(shape.clone()))?;
        let dims: Vec<usize> = dims.into_iter().map(|d| d as usize).collect();
        let ty = ConcreteType::new(T::DTYPE, dims);
        if ty.numel() != Some(values.len()) {
            let want = ty.numel().ok_or_else(|| TensorError::NoSize(ty.clone()))?;
            return Err(TensorError::Values { ty, want, found: values.len() }.into());
        }
        Array::fill(ty, |bytes| {
            for (v, out) in values.iter().zip(bytes.chunks_exact_mut(T::DTYPE.block_bytes())) {
                v.store(out);
            }
        })
    }

    /// An array without axes.
    pub fn scalar<T: Element>(value: T) -> Array {
        let mut bytes = vec![0; T::DTYPE.block_bytes()];
        value.store(&mut bytes);
        Array::from_bytes(ConcreteType::new(T::DTYPE, []), &bytes)
            .expect("a scalar has the bytes of its type")
    }

    /// An array from an `ndarray` array or view of any rank and order.
    ///
    /// # Errors
    /// When it has more axes than a tensor may have.
    pub fn from_ndarray<T, S, D>(array: &ArrayBase<S, D>) -> Result<Array, ArrayError>
    where
        T: Element,
        S: Data<Elem = T>,
        D: Dimension,
    {
        Array::fill(ConcreteType::new(T::DTYPE, array.shape()), |bytes| {
            for (v, out) in array.iter().zip(bytes.chunks_exact_mut(T::DTYPE.block_bytes())) {
                v.store(out);
            }
        })
    }

    fn fill(ty: ConcreteType, fill: impl FnOnce(&mut [u8])) -> Result<Array, ArrayError> {
        let mut bytes = allocate(&ty)?;
        fill(bytes.as_mut_slice());
        Ok(Array(aether_ir::Tensor::new(ty, Bytes::from_owner(Owned(bytes)))?))
    }

    /// Zeros of that type.
    pub(super) fn zeros(ty: &ConcreteType) -> Result<Array, ArrayError> {
        Array::fill(ty.clone(), |_| {})
    }

    /// A copy of row-major bytes.
    pub(super) fn from_bytes(ty: ConcreteType, bytes: &[u8]) -> Result<Array, ArrayError> {
        if ty.row_major_bytes() != Some(bytes.len()) {
            let want = ty.row_major_bytes().unwrap_or(usize::MAX);
            return Err(TensorError::Bytes { ty, want, found: bytes.len() }.into());
        }
        Array::fill(ty, |out| out.copy_from_slice(bytes))
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// The dimensions, outermost first.
    pub fn shape(&self) -> &[usize] {
        self.0.shape()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.0.numel()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The type.
    pub fn ty(&self) -> TensorType {
        self.0.ty().to_type()
    }

    /// The bytes: little-endian, row-major, at an address aligned for any element type.
    pub fn bytes(&self) -> &[u8] {
        self.0.bytes()
    }

    /// As a tensor of the IR; the bytes are shared.
    pub fn as_tensor(&self) -> &aether_ir::Tensor {
        &self.0
    }

    fn expect<T: Element>(&self) -> Result<(), ArrayError> {
        if self.dtype() != T::DTYPE {
            return Err(ArrayError::DType { found: self.dtype(), asked: T::DTYPE });
        }
        Ok(())
    }

    /// The elements in row-major order.
    ///
    /// # Errors
    /// When the element type is another one.
    pub fn to_vec<T: Element>(&self) -> Result<Vec<T>, ArrayError> {
        self.expect::<T>()?;
        Ok(self.bytes().chunks_exact(T::DTYPE.block_bytes()).map(T::load).collect())
    }

    /// The elements as an `ndarray` array.
    ///
    /// # Errors
    /// When the element type is another one.
    pub fn to_ndarray<T: Element>(&self) -> Result<ArrayD<T>, ArrayError> {
        let values = self.to_vec()?;
        ArrayD::from_shape_vec(self.shape(), values)
            .map_err(|_| TensorError::NoSize(self.0.ty()).into())
    }

    /// The only element.
    ///
    /// # Errors
    /// When there is not exactly one, or the element type is another one.
    pub fn item<T: Element>(&self) -> Result<T, ArrayError> {
        self.expect::<T>()?;
        if self.len() != 1 {
            return Err(ArrayError::NotOne(self.ty()));
        }
        Ok(T::load(self.bytes()))
    }
}

impl fmt::Debug for Array {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ", self.ty())?;
        let values = if self.dtype().is_float() {
            self.0.to_array_f64().map(|a| format!("{a}"))
        } else {
            self.0.to_array_i64().map(|a| format!("{a}"))
        };
        f.write_str(&values.unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use ndarray::{Array2, array};

    use super::*;

    #[test]
    fn ndarray_goes_in_and_out_in_any_order() {
        let a: Array2<f32> = array![[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]];
        let turned = Array::from_ndarray(&a.t()).unwrap();
        assert_eq!(turned.shape(), [3, 2]);
        assert_eq!(turned.to_vec::<f32>().unwrap(), [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]);
        assert_eq!(turned.to_ndarray::<f32>().unwrap().into_dyn(), a.t().into_dyn());
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        assert!(matches!(
            Array::new(&[1i32, 2, 3], [2, 2]),
            Err(ArrayError::Tensor(TensorError::Values { want: 4, found: 3, .. }))
        ));
        let bools = Array::new(&[true, false], [2]).unwrap();
        assert_eq!(
            bools.to_vec::<u8>(),
            Err(ArrayError::DType { found: DType::Bool, asked: DType::U8 })
        );
        assert!(matches!(bools.item::<bool>(), Err(ArrayError::NotOne(_))));
        assert_eq!(Array::scalar(7i64).item::<i64>(), Ok(7));
    }
}
