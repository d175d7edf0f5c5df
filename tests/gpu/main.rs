//! The GPU against the reference interpreter and the CPU, on whatever Vulkan driver there is.

mod models;
mod ops;
mod support;
#[path = "../../llm/tests/common/tiny.rs"]
mod tiny;
