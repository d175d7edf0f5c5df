//! Gradients: every op by finite differences to order two, whole functions against JAX, what is
//! written, what is refused, calls and checkpoints.

#[path = "../common/mod.rs"]
mod common;

mod calls;
mod differences;
mod errors;
mod instances;
mod jax;
mod memory;
