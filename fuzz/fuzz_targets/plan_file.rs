//! Any plan file is refused or is sound: the digest is made to fit, so that what lies behind it is
//! reached, and what is accepted is loaded and run.

#![no_main]

use aether_ir::tensor::ConcreteType;
use aether_ir::{Bindings, Tensor};
use aether_runtime::{Files, Isa, Options, Prepared, Recompile, run_executable};
use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};

/// Most bytes of an argument or a frame that are worth running.
const MOST: u64 = 1 << 20;

fuzz_target!(|body: &[u8]| {
    let digest: String = Sha256::digest(body).iter().map(|b| format!("{b:02x}")).collect();
    let mut file = format!("aether-plan 1\nsha256 {digest}\n").into_bytes();
    file.extend(body);
    let options = Options { threads: 1, isa: Some(Isa::Scalar), verify: false, ..Options::default() };
    let files = Files::new();
    let Ok(prepared) = Prepared::from_bytes(&file, &files, &options, Recompile::No) else { return };
    let module = prepared.module();
    let func = &module.funcs[prepared.entry()];
    let bindings: Bindings = module.symbols.iter().map(|(s, r)| (s.clone(), r.min)).collect();
    let small = func.values.iter().all(|v| v.ty.max_bytes(&module.symbols).is_some_and(|n| n < MOST));
    let mut inputs = Vec::new();
    for &p in &func.params {
        let Ok(ty) = ConcreteType::of(func.ty(p), &bindings) else { return };
        let Ok(tensor) = Tensor::zeros(ty.dtype, &ty.shape) else { return };
        inputs.push(tensor);
    }
    if small && let Ok(executable) = prepared.load(&files) {
        let _ = run_executable(&executable.into(), inputs);
    }
});
