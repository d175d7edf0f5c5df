//! The GPU against the reference interpreter and the CPU, on whatever Vulkan driver there is.

#[path = "../../passes/tests/common/graphs.rs"]
mod graphs;
mod hybrid;
mod models;
mod ops;
mod support;
#[path = "../../llm/tests/common/tiny.rs"]
mod tiny;
