//! Running a function of ours again and again on the same inputs.

use std::sync::Arc;

use aether_ir::Module;
use aether_runtime::{AlignedBytes, Arg, ArgData, Executable, Files, Options, Session};

use crate::Runner;

type Error = Box<dyn std::error::Error>;

/// Compiles `@entry` of a module and gives what runs it. `inputs` are its parameters' shapes and
/// elements.
pub fn runner(
    module: Module,
    entry: &str,
    inputs: Vec<(Vec<usize>, Vec<f32>)>,
    check: std::rc::Rc<std::cell::Cell<bool>>,
) -> Result<Runner, Error> {
    let opts = Options { entry: entry.to_owned(), ..Options::default() };
    let exe = Arc::new(Executable::compile(module, &Files::new(), &opts)?);
    if let [step, ..] = exe.by_reference() {
        return Err(format!("no kernel for {step}").into());
    }
    let results = exe.results().len();
    let mut session = Session::new(exe)?;
    let mut buffers = Vec::new();
    for (shape, values) in inputs {
        let mut bytes = AlignedBytes::zeroed(values.len() * 4);
        for (to, v) in bytes.as_mut_slice().chunks_exact_mut(4).zip(&values) {
            to.copy_from_slice(&v.to_le_bytes());
        }
        buffers.push((shape, bytes));
    }
    Ok(Box::new(move || {
        let mut args: Vec<Arg<'_>> = buffers
            .iter()
            .map(|(shape, bytes)| Arg { shape, data: ArgData::Read(bytes.as_slice()) })
            .collect();
        if let Err(e) = session.run(&mut args) {
            panic!("{e}");
        }
        if !check.get() {
            return 0.0;
        }
        let sum = |i| session.result_f32(i).0.iter().map(|v| f64::from(v.abs())).sum::<f64>();
        (0..results).map(sum).sum()
    }))
}
