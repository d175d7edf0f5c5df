//! The dense kernels against plain f64 loops, on every instruction set of this machine.

mod attention;
mod attention_blocks;
mod convert;
mod elementwise;
mod gemm;
mod norm;
mod rope;
mod softmax;
mod support;

use aether_codegen_cpu::kernels::isa::Isa;

/// Whoever asks for an instruction set, as `scripts/test-aarch64.sh` does, must learn that the
/// machine lacks it: the tests run what there is.
#[test]
fn an_instruction_set_that_is_asked_for_is_there() {
    if let Ok(name) = std::env::var("AETHER_ISA") {
        assert_eq!(Isa::detect(), name.parse().unwrap());
    }
}
