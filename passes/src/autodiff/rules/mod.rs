//! The rules, one file for each family of ops.

pub(crate) mod attention;
pub(crate) mod elementwise;
pub(crate) mod fused;
pub(crate) mod gather;
pub(crate) mod index;
pub(crate) mod matmul;
pub(crate) mod norm;
pub(crate) mod reduce;
pub(crate) mod rope;
pub(crate) mod shape;
pub(crate) mod sort;
pub(crate) mod window;

/// An axis attribute as an index.
fn axis_index(axis: i64, rank: usize) -> usize {
    if axis < 0 { (axis + rank as i64) as usize } else { axis as usize }
}
