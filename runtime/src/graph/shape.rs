//! Naming axes.

use std::ops::RangeFull;

/// Which axes a reduction runs over, and whether they stay with length 1.
///
/// Made from one axis, a list, or `..` for all; negative axes count from the end.
/// [`keepdims`] keeps the reduced axes.
///
/// ```
/// use aether_runtime::graph::{Graph, keepdims};
///
/// let g = Graph::new();
/// let x = g.tensor(vec![1.0; 6], [2, 3]);
/// assert_eq!(x.sum(-1).shape()?.to_string(), "2");
/// assert_eq!(x.sum(keepdims([0, 1])).shape()?.to_string(), "1x1");
/// assert_eq!(x.sum(..).shape()?.rank(), 0);
/// # Ok::<(), aether_runtime::graph::GraphError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Axes {
    /// `None` for all.
    pub(super) axes: Option<Vec<i64>>,
    pub(super) keepdims: bool,
}

/// The same axes, kept with length 1.
pub fn keepdims(axes: impl Into<Axes>) -> Axes {
    Axes { keepdims: true, ..axes.into() }
}

impl From<i64> for Axes {
    fn from(axis: i64) -> Self {
        Axes { axes: Some(vec![axis]), keepdims: false }
    }
}

impl<const N: usize> From<[i64; N]> for Axes {
    fn from(axes: [i64; N]) -> Self {
        Axes { axes: Some(axes.to_vec()), keepdims: false }
    }
}

impl From<&[i64]> for Axes {
    fn from(axes: &[i64]) -> Self {
        Axes { axes: Some(axes.to_vec()), keepdims: false }
    }
}

impl From<Vec<i64>> for Axes {
    fn from(axes: Vec<i64>) -> Self {
        Axes { axes: Some(axes), keepdims: false }
    }
}

impl From<RangeFull> for Axes {
    fn from(_: RangeFull) -> Self {
        Axes { axes: None, keepdims: false }
    }
}
