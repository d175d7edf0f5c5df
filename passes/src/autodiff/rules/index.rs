//! Index arithmetic for gradients that put elements back where they came from.

use aether_ir::{Attrs, DType, Dim, Op, Shape, TensorType};

use super::super::emit::{Emitter, Val};

/// Integers wide enough to number the elements of one shape.
pub(crate) struct Index<'e> {
    e: &'e Emitter,
    dtype: DType,
}

impl<'e> Index<'e> {
    /// For row-major indices of that shape: i32 where it is known that these suffice.
    pub(crate) fn over(e: &'e Emitter, shape: &Shape) -> Self {
        let small = shape.numel().as_const().is_some_and(|n| n <= i32::MAX as u64);
        Index { e, dtype: if small { DType::I32 } else { DType::I64 } }
    }

    pub(crate) fn cast(&self, x: Val<'e>) -> Val<'e> {
        x.cast(self.dtype)
    }

    /// A dimension as a value: a number, or one more than the last index.
    pub(crate) fn size(&self, dim: &Dim) -> Val<'e> {
        match dim.as_const() {
            Some(n) => self.e.scalar(self.dtype, n as f64),
            None => {
                let ones = TensorType::new(self.dtype, [dim.clone()]);
                self.e.splat(ones, 1.0).sum(&[0], false)
            }
        }
    }

    /// The index along `axis`, in a shape that broadcasts to `shape`.
    pub(crate) fn count(&self, shape: &Shape, axis: usize) -> Val<'e> {
        let mut dims = vec![Dim::new(1); shape.rank()];
        dims[axis] = shape.0[axis].clone();
        self.e.iota(self.dtype, Shape(dims), axis)
    }

    /// The row-major index over the axes `lead`, in a shape of `rank` axes that broadcasts to one
    /// that begins with them.
    pub(crate) fn rows(&self, lead: &Shape, rank: usize) -> Val<'e> {
        let count = self.e.iota(self.dtype, Shape(vec![lead.numel()]), 0);
        let mut dims = lead.0.clone();
        dims.resize(rank, Dim::new(1));
        count.reshape(Shape(dims))
    }
}

/// A tensor of that shape with the elements of `g` added at row-major indices `at`, else 0.
pub(crate) fn scatter<'e>(g: Val<'e>, at: Val<'e>, shape: &Shape) -> Val<'e> {
    let flat = |x: Val<'e>| {
        let numel = x.shape().numel();
        x.reshape(Shape(vec![numel]))
    };
    let zeros = TensorType::new(g.dtype(), [shape.numel()]);
    let at = at.broadcast(g.shape());
    let operands = [g.emitter().splat(zeros, 0.0), flat(at), flat(g)];
    let sum = g.emitter().op(Op::ScatterAdd, &operands, Attrs::new().with("axis", 0i64), None);
    sum.reshape(shape.clone())
}

/// The elements of `g`, at places `at` along `axis` of a tensor of that shape, else 0.
pub(crate) fn scatter_along<'e>(g: Val<'e>, at: Val<'e>, axis: usize, shape: &Shape) -> Val<'e> {
    let index = Index::over(g.emitter(), shape);
    let mut place = index.cast(at);
    let mut step = Dim::new(1);
    // From the last axis to the first: the index of an element is the sum of its axes' parts.
    let mut total: Option<Val> = None;
    for a in (0..shape.rank()).rev() {
        let along = if a == axis { place } else { index.count(shape, a) };
        let part = if step.is(1) { along } else { along * index.size(&step) };
        total = Some(total.map_or(part, |t| t + part));
        step = &step * &shape.0[a];
    }
    place = total.unwrap_or(place);
    scatter(g, place, shape)
}
