//! A device for all tests, and modules of one op.

use std::sync::{Arc, OnceLock};

use aether_ir::tensor::ConcreteType;
use aether_ir::{
    Attrs, Bindings, ConstData, DType, Func, FuncBuilder, Interpreter, Module, Op, Tensor,
    TensorType, ValueId,
};
use aether_runtime::gpu::{Gpu, GpuOptions};
use aether_runtime::{Arena, Executable, Files, Options, RuntimeError, run_executable};

/// The device.
pub fn gpu() -> Arc<Gpu> {
    static GPU: OnceLock<Arc<Gpu>> = OnceLock::new();
    GPU.get_or_init(|| Gpu::open(&GpuOptions::default()).unwrap_or_else(|e| panic!("{e}"))).clone()
}

/// Whether an op takes an operand only from a constant: rope's factors.
fn is_constant(op: Op, operand: usize) -> bool {
    op == Op::Rope && operand == 2
}

/// `@main` with one parameter for each operand and nothing but the op.
pub fn module(op: Op, attrs: &Attrs, operands: &[Tensor], declared: &[TensorType]) -> Module {
    let mut f = FuncBuilder::new("main");
    let mut module = Module::new("m");
    let params: Vec<ValueId> = operands
        .iter()
        .enumerate()
        .map(|(i, x)| match is_constant(op, i) {
            true => {
                let bytes: Arc<[u8]> = x.bytes().to_vec().into();
                module.add_const(format!("c{i}"), x.ty().to_type(), ConstData::Dense(bytes));
                f.constant(format!("c{i}"), x.ty().to_type())
            }
            false => f.param(&format!("p{i}"), x.ty().to_type()),
        })
        .collect();
    let results = f.op_multi(op, &params, attrs.clone(), declared);
    let results = results.unwrap_or_else(|e| panic!("{op} {attrs:?}: {e}"));
    module.add_func(f.finish(&results));
    module
}

/// Passes, fusion among them or not, with and without an arena.
pub const SWITCHES: [(&str, Arena); 4] = [
    ("layout", Arena::Shared),
    ("layout", Arena::Separate),
    ("layout,fuse", Arena::Shared),
    ("layout,fuse", Arena::Separate),
];

/// Compiles for the device; the plan is proved.
pub fn compile(
    module: &Module,
    pipeline: &str,
    arena: Arena,
) -> Result<Arc<Executable>, RuntimeError> {
    let opts = Options {
        pipeline: Some(pipeline.to_owned()),
        verify: true,
        arena,
        gpu: Some(gpu()),
        ..Options::default()
    };
    Executable::compile(module.clone(), &Files::new(), &opts).map(Arc::new)
}

/// The distance allowed, relative to the greatest magnitude: Vulkan lets functions such as `exp`
/// be off by some units in the last place, and sums come in another order.
pub fn tolerance(dtype: DType) -> f64 {
    match dtype {
        DType::F16 => 2f64.powi(-9),
        DType::Bf16 => 2f64.powi(-6),
        _ => 1e-5,
    }
}

/// Why two tensors differ.
pub fn difference(got: &Tensor, want: &Tensor) -> Option<String> {
    if got.ty() != want.ty() {
        return Some(format!("the type is {}, expected {}", got.ty(), want.ty()));
    }
    if !want.dtype().is_float() {
        return (got.bytes()[..] != want.bytes()[..]).then(|| {
            let (g, w) = (got.to_i64_vec().unwrap(), want.to_i64_vec().unwrap());
            let at = g.iter().zip(&w).position(|(g, w)| g != w).unwrap_or(0);
            format!("element {at} is {}, expected {}", g[at], w[at])
        });
    }
    let (got_values, want_values) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let finite = want_values.iter().filter(|v| v.is_finite());
    let scale = finite.fold(1.0, |m: f64, v| m.max(v.abs()));
    for (i, (g, w)) in got_values.iter().zip(&want_values).enumerate() {
        let same = g == w || (g.is_nan() && w.is_nan());
        let close = (g - w).abs() <= tolerance(want.dtype()) * scale;
        if !same && !close {
            return Some(format!("element {i} is {g:e}, expected {w:e}"));
        }
    }
    None
}

/// What keeps an op from agreeing with its meaning under any of the switches; `Err` when it cannot be compiled.
pub fn check(
    op: Op,
    attrs: &Attrs,
    operands: &[Tensor],
    declared: &[TensorType],
) -> Result<Option<String>, RuntimeError> {
    let module = module(op, attrs, operands, declared);
    let given = operands.iter().enumerate().filter(|(i, _)| !is_constant(op, *i));
    let given: Vec<Tensor> = given.map(|(_, x)| x.clone()).collect();
    let want = Interpreter::new(&module).run("main", given.clone());
    for (pipeline, arena) in SWITCHES {
        let exe = compile(&module, pipeline, arena)?;
        let why = match (run_executable(&exe, given.clone()), &want) {
            (Ok(got), Ok(want)) => got.iter().zip(want).find_map(|(g, w)| difference(g, w)),
            (Err(_), Err(_)) => None,
            (Ok(_), Err(e)) => Some(format!("it runs, but the interpreter says: {e}")),
            (Err(e), Ok(_)) => Some(format!("{e}")),
        };
        if let Some(why) = why {
            return Ok(Some(format!("{pipeline}, {arena:?}: {why}")));
        }
    }
    Ok(None)
}

/// Numbers around zero.
pub fn floats(shape: &[usize], seed: u64) -> Tensor {
    let mut rng = fastrand::Rng::with_seed(seed);
    let n = shape.iter().product();
    let values: Vec<f64> = (0..n).map(|_| rng.f64() - 0.5).collect();
    Tensor::from_f64(DType::F32, shape, &values).unwrap()
}

/// Arguments for a function: numbers around zero, and twos where there are integers.
pub fn arguments(func: &Func, bindings: &Bindings, seed: u64) -> Vec<Tensor> {
    let types = func.params.iter().map(|&p| ConcreteType::of(func.ty(p), bindings).unwrap());
    types
        .zip(seed..)
        .map(|(ty, seed)| match ty.dtype {
            DType::F32 => floats(&ty.shape, seed),
            dtype => {
                let twos = vec![2; ty.numel().unwrap()];
                Tensor::from_i64(dtype, &ty.shape, &twos).unwrap()
            }
        })
        .collect()
}
