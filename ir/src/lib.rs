//! The SSA tensor IR of Aether.

pub mod dtype;
pub mod quant;

pub use dtype::DType;
