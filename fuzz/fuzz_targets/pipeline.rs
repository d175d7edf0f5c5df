//! The passes leave every module that verifies one that verifies, and its plan is proved.

#![no_main]

use aether_codegen_cpu::{CpuTarget, Isa};
use aether_ir::text::parse_and_verify;
use aether_passes::{DEFAULT_PIPELINE, PassCtx, PassError, Pipeline, PipelineError};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let Ok(mut module) = parse_and_verify(text) else { return };
    let target = CpuTarget { isa: Isa::Scalar, threads: 2 };
    let pipeline = Pipeline::parse(&format!("{DEFAULT_PIPELINE},plan")).expect("it is ours");
    match pipeline.run(&mut module, &PassCtx::new(&target), &mut ()) {
        Ok(_) => {}
        // A module too large to plan is refused; anything else is a bug of a pass.
        Err(PipelineError::Pass { source: PassError::Module(message), .. })
            if !message.contains("plan is wrong") => {}
        Err(e) => panic!("{e}"),
    }
});
