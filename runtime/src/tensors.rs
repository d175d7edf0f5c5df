//! Running a module on whole tensors: the shortest way from text to numbers.

use std::sync::Arc;

use aether_codegen_cpu::AlignedBytes;
use aether_ir::tensor::ConcreteType;
use aether_ir::{Layout, Module, Tensor};

use crate::{Arg, ArgData, Executable, Files, Options, RuntimeError, Session};

/// Compiles a module and runs `func` once; files of constants are looked for from the current
/// folder.
///
/// # Errors
/// When the module cannot be compiled, the inputs do not fit, or the run fails.
pub fn run_module(
    module: &Module,
    func: &str,
    inputs: Vec<Tensor>,
) -> Result<Vec<Tensor>, RuntimeError> {
    let opts = Options { entry: func.to_owned(), ..Options::default() };
    let executable = Executable::compile(module.clone(), &Files::new(), &opts)?;
    run_executable(&Arc::new(executable), inputs)
}

/// Runs an executable once on tensors.
///
/// # Errors
/// When the inputs do not fit, or the run fails.
pub fn run_executable(
    executable: &Arc<Executable>,
    inputs: Vec<Tensor>,
) -> Result<Vec<Tensor>, RuntimeError> {
    let params = executable.params();
    if params.len() != inputs.len() {
        let (expected, found) = (params.len(), inputs.len());
        return Err(RuntimeError::ArgCount { func: executable.entry().clone(), expected, found });
    }
    // Copies: donated ones are written, and all must be aligned.
    let mut buffers = Vec::with_capacity(inputs.len());
    for (index, (input, ty)) in inputs.iter().zip(params).enumerate() {
        if input.dtype() != ty.dtype || input.layout() != Layout::RowMajor {
            let (expected, found) = (ty.clone(), input.ty().to_string());
            return Err(RuntimeError::ArgType { index, expected, found });
        }
        let mut copy = AlignedBytes::zeroed(input.bytes().len());
        copy.as_mut_slice().copy_from_slice(input.bytes());
        buffers.push(copy);
    }
    let mut session = Session::new(executable.clone())?;
    let mut args: Vec<Arg<'_>> = buffers
        .iter_mut()
        .zip(&inputs)
        .map(|(b, t)| Arg { shape: t.shape(), data: ArgData::Write(b.as_mut_slice()) })
        .collect();
    session.run(&mut args)?;
    drop(args);
    let mut results = Vec::with_capacity(executable.results().len());
    for (i, ty) in executable.results().iter().enumerate() {
        let ty = ConcreteType::new(ty.dtype, session.result_shape(i));
        let len = ty.row_major_bytes().unwrap_or(usize::MAX);
        let bytes = match executable.result_aliases()[i] {
            Some(param) => buffers[param].as_slice(),
            None => session.result(i),
        };
        let bytes = bytes.get(..len).unwrap_or(bytes).to_vec();
        results.push(Tensor::new(ty, bytes)?);
    }
    Ok(results)
}
