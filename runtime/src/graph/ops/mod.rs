//! What can be done with tensors, a file per family.
//!
//! Broadcasting, axes and names follow NumPy. An operation that is a short composition of others
//! is written as one here, so passes see its parts.

pub(super) mod attention;
pub(super) mod conv;
mod create;
mod elementwise;
mod index;
mod loss;
mod matmul;
mod norm;
mod quantize;
pub(super) mod random;
mod reduce;
mod shape;
mod sort;
