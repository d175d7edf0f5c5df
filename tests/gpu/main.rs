//! The GPU against the reference interpreter and the CPU, on whatever Vulkan driver there is.

mod ops;
mod support;
