//! GPU code generator: planned IR to WGSL that naga has validated.

pub mod adapter;
pub mod kernel;

pub use adapter::Adapter;
