//! The GPU against the reference interpreter and the CPU, on whatever Vulkan driver there is.

#[path = "../../llm/tests/common/mod.rs"]
mod common;
mod faults;
#[path = "../../passes/tests/common/graphs.rs"]
mod graphs;
mod hybrid;
mod memory;
mod models;
mod ops;
#[path = "../../ir/tests/oracle/mod.rs"]
mod oracle;
mod real;
mod sample;
mod serve;
mod slots;
mod support;
mod switches;
#[path = "../../llm/tests/common/tiny.rs"]
mod tiny;
