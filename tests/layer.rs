//! What a small llama of one layer is turned into: as built, after the default passes, and its
//! memory plan, as snapshots. `INSTA_UPDATE=always cargo test --test layer` writes them anew.

#[path = "../llm/tests/common/tiny.rs"]
mod tiny;

use aether_codegen_cpu::{CpuTarget, Isa};
use aether_llm::engine::{LoadOptions, Model};
use aether_passes::{DEFAULT_PIPELINE, PassCtx, Pipeline};
use tiny::{QUANTIZED, Tiny};

#[test]
fn a_layer_as_built_optimised_and_planned() {
    let tiny = Tiny { n_layers: 1, ..Tiny::llama(QUANTIZED) };
    let options = LoadOptions { context: 64, batch: 16, rows: 4, ..LoadOptions::default() };
    let mut module = Model::build_ir(&tiny.gguf(), &options).unwrap().module;
    insta::assert_snapshot!("built", aether_ir::print_module(&module));

    // A fixed target: what is chosen must not depend on the machine.
    let target = CpuTarget { isa: Isa::Scalar, threads: 2 };
    let pipeline = Pipeline::parse(DEFAULT_PIPELINE).unwrap();
    pipeline.run(&mut module, &PassCtx::new(&target), &mut ()).unwrap();
    insta::assert_snapshot!("optimised", aether_ir::print_module(&module));

    let mut again = module.clone();
    pipeline.run(&mut again, &PassCtx::new(&target), &mut ()).unwrap();
    assert_eq!(aether_ir::print_module(&again), aether_ir::print_module(&module));

    let plan = aether_passes::plan(&module, &target).unwrap();
    insta::assert_snapshot!("plan", aether_passes::plan::text(&module, &plan));
}
