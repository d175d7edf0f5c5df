//! Gradients: every op by finite differences to order two, whole functions against JAX, what is
//! written, what is refused, calls and checkpoints.

mod calls;
mod differences;
mod errors;
mod instances;
mod jax;
mod memory;
