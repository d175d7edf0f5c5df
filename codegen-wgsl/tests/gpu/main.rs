//! Every template on whatever Vulkan adapter there is, against the interpreter's meaning.

mod attention;
mod dense;
mod emulate;
#[expect(dead_code, reason = "the example gpu_kernels uses all of it")]
mod harness;
mod movement;
mod products;
mod sample;
