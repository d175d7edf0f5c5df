//! Order along an axis: sorting, the greatest few, running sums.

use aether_ir::{Attrs, Op, ValueId};

use super::shape::permute;
use crate::graph::Tensor;
use crate::graph::tensor::Scope;

impl Tensor {
    /// The elements along an axis in order, from the smallest or, `descending`, from the greatest
    /// on, and their i32 indices. Equal ones keep their order; NaN is greatest.
    #[must_use]
    #[track_caller]
    pub fn sort(&self, axis: i64, descending: bool) -> (Tensor, Tensor) {
        two(self, "sort", |s| {
            let attrs = Attrs::new().with("axis", axis);
            let attrs = if descending { attrs.with("descending", true) } else { attrs };
            s.multi(Op::Sort, &[s.args[0]], attrs)
        })
    }

    /// The indices of [`Tensor::sort`].
    #[must_use]
    #[track_caller]
    pub fn argsort(&self, axis: i64, descending: bool) -> Tensor {
        self.sort(axis, descending).1
    }

    /// The k greatest along an axis in falling order, and their i32 indices; equal ones by index.
    #[must_use]
    #[track_caller]
    pub fn top_k(&self, k: usize, axis: i64) -> (Tensor, Tensor) {
        two(self, "top_k", |s| {
            let x = s.args[0];
            let axis = s.axis(x, axis)?;
            // The op works along the last axis.
            let mut swap: Vec<usize> = (0..s.ty(x).rank()).collect();
            let last = swap.len() - 1;
            swap.swap(axis, last);
            let x = permute(s, x, &swap)?;
            let found = s.multi(Op::TopK, &[x], Attrs::new().with("k", k as i64))?;
            found.into_iter().map(|v| permute(s, v, &swap)).collect()
        })
    }

    /// Running sum along an axis; each element counts itself.
    #[must_use]
    #[track_caller]
    pub fn cumsum(&self, axis: i64) -> Tensor {
        self.unary(Op::Cumsum, Attrs::new().with("axis", axis))
    }
}

/// An expression of two results, both with the error if there is one.
#[track_caller]
fn two(
    x: &Tensor,
    name: &'static str,
    body: impl FnOnce(&mut Scope) -> Result<Vec<ValueId>, String>,
) -> (Tensor, Tensor) {
    match Tensor::build_many(name, &[x], body) {
        Ok(ids) => (x.graph.value(ids[0]), x.graph.value(ids[1])),
        Err(e) => (x.graph.fault(e.clone()), x.graph.fault(e)),
    }
}
