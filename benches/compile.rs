//! Time to compile, from a verified module to its memory plan, over the number of layers.
//!
//! `cargo bench --bench compile`. `called` is a model as the engine builds it: one layer function
//! called N times, so little more than the list of calls grows. `unrolled` has every layer written
//! out in one function; time should grow in proportion to the layers.

use aether::codegen_cpu::CpuTarget;
use aether::ir::{
    Attrs, BuildError, ConstData, DType, Dim, FuncBuilder, Module, Op, Operand, TensorType,
    ValueId, donate,
};
use aether::passes::{DEFAULT_PIPELINE, PassCtx, Pipeline, plan};
use criterion::{BenchmarkId, Criterion, criterion_group, criterion_main};

const EMBD: u64 = 576;
const HEADS: u64 = 9;
const KV_HEADS: u64 = 3;
const HEAD: u64 = 64;
const FFN: u64 = 1536;
const CONTEXT: u64 = 1024;

fn f32s(dims: &[Dim]) -> TensorType {
    TensorType::new(DType::F32, dims.iter().cloned())
}

/// Names and types of a layer's weights.
fn weights() -> Vec<(&'static str, TensorType)> {
    let row = TensorType::new(DType::F32, [EMBD]);
    vec![
        ("norm", row.clone()),
        ("q", q8(HEADS * HEAD, EMBD)),
        ("k", q8(KV_HEADS * HEAD, EMBD)),
        ("v", q8(KV_HEADS * HEAD, EMBD)),
        ("o", q8(EMBD, HEADS * HEAD)),
        ("ffn_norm", row),
        ("gate", q8(FFN, EMBD)),
        ("up", q8(FFN, EMBD)),
        ("down", q8(EMBD, FFN)),
    ]
}

fn q8(n: u64, k: u64) -> TensorType {
    TensorType::new(DType::Q8_0, [n, k])
}

/// What a layer reads and writes.
struct Stream {
    x: ValueId,
    past: ValueId,
    k: ValueId,
    v: ValueId,
}

/// One block of the LLaMA kind.
fn layer(f: &mut FuncBuilder, s: &Stream, w: &[ValueId]) -> Result<Stream, BuildError> {
    let tokens = Dim::symbol("s");
    let product = |f: &mut FuncBuilder, x, w| {
        f.op(Op::Matmul, &[x, w], Attrs::new().with("transpose_b", true))
    };
    let norm =
        |f: &mut FuncBuilder, x, w| f.op(Op::RmsNorm, &[x, w], Attrs::new().with("eps", 1e-5));
    let heads = |f: &mut FuncBuilder, x, n| {
        let ty = f32s(&[tokens.clone(), Dim::new(n), Dim::new(HEAD)]);
        f.op_to(Op::Reshape, &[x], Attrs::new(), ty)
    };
    let rope = |f: &mut FuncBuilder, x| {
        let attrs = Attrs::new().with("mode", "norm").with("theta", 1e4);
        f.op(Op::Rope, &[x, s.past], attrs.with("n_dims", HEAD as i64))
    };
    let n = norm(f, s.x, w[0])?;
    let q = product(f, n, w[1])?;
    let k = product(f, n, w[2])?;
    let v = product(f, n, w[3])?;
    let q = heads(f, q, HEADS)?;
    let k = heads(f, k, KV_HEADS)?;
    let v = heads(f, v, KV_HEADS)?;
    let (q, k) = (rope(f, q)?, rope(f, k)?);
    let append = |f: &mut FuncBuilder, cache, rows: ValueId| {
        let operands: [Operand; 3] = [donate(cache), rows.into(), s.past.into()];
        f.op_multi(Op::KvAppend, &operands, Attrs::new(), &[])
    };
    let k = append(f, s.k, k)?[0];
    let v = append(f, s.v, v)?[0];
    let scale = Attrs::new().with("scale", 0.125);
    let a = f.op(Op::Attention, &[q, k, v, s.past], scale)?;
    let flat = f32s(&[tokens, Dim::new(HEADS * HEAD)]);
    let a = f.op_to(Op::Reshape, &[a], Attrs::new(), flat)?;
    let o = product(f, a, w[4])?;
    let x = f.op(Op::Add, &[s.x, o], Attrs::new())?;
    let n = norm(f, x, w[5])?;
    let gate = product(f, n, w[6])?;
    let gate = f.op(Op::Silu, &[gate], Attrs::new())?;
    let up = product(f, n, w[7])?;
    let h = f.op(Op::Mul, &[gate, up], Attrs::new())?;
    let down = product(f, h, w[8])?;
    let x = f.op(Op::Add, &[x, down], Attrs::new())?;
    Ok(Stream { x, past: s.past, k, v })
}

fn model(layers: usize, unrolled: bool) -> Result<Module, BuildError> {
    let mut module = Module::new("model");
    module.declare_symbol("s", 1, 512);
    let stream = f32s(&[Dim::symbol("s"), Dim::new(EMBD)]);
    let past = TensorType::scalar(DType::I32);
    let cache = TensorType::new(DType::F16, [CONTEXT, KV_HEADS, HEAD]);
    if !unrolled {
        let mut f = FuncBuilder::new("layer");
        let s = Stream {
            x: f.param("x", stream.clone()),
            past: f.param("past", past.clone()),
            k: f.param("k", cache.clone()),
            v: f.param("v", cache.clone()),
        };
        let w: Vec<ValueId> = weights().into_iter().map(|(n, ty)| f.param(n, ty)).collect();
        let out = layer(&mut f, &s, &w)?;
        module.add_func(f.finish(&[out.x, out.k, out.v]));
    }
    let mut f = FuncBuilder::new("main");
    let mut x = f.param("x", stream.clone());
    let past = f.param("past", past);
    let caches: Vec<(ValueId, ValueId)> = (0..layers)
        .map(|i| {
            let k = f.param(&format!("k{i}"), cache.clone());
            (k, f.param(&format!("v{i}"), cache.clone()))
        })
        .collect();
    let mut returns = Vec::new();
    let mut offset = 0;
    for (i, (k, v)) in caches.into_iter().enumerate() {
        let mut w = Vec::new();
        for (name, ty) in weights() {
            let name = format!("{i}.{name}");
            let bytes = ty.bytes(|_| None).unwrap_or(0);
            let path = "model.bin".to_owned();
            let data = ConstData::File { path, offset, bytes, sha256: None };
            offset += bytes.next_multiple_of(64);
            module.add_const(name.as_str(), ty.clone(), data);
            w.push(f.constant(name, ty));
        }
        let s = Stream { x, past, k, v };
        let out = if unrolled {
            layer(&mut f, &s, &w)?
        } else {
            let mut operands: Vec<Operand> = vec![x.into(), past.into(), donate(k), donate(v)];
            operands.extend(w.into_iter().map(Operand::from));
            let types = [stream.clone(), cache.clone(), cache.clone()];
            let results = f.call("layer", &operands, &types);
            Stream { x: results[0], past, k: results[1], v: results[2] }
        };
        x = out.x;
        returns.extend([out.k, out.v]);
    }
    returns.insert(0, x);
    module.add_func(f.finish(&returns));
    Ok(module)
}

fn compile(module: &Module, target: &CpuTarget) {
    let mut module = module.clone();
    let mut ctx = PassCtx::new(target);
    ctx.verify_each = false;
    let pipeline = Pipeline::parse(DEFAULT_PIPELINE).expect("the default pipeline");
    pipeline.run(&mut module, &ctx, &mut ()).expect("the model compiles");
    plan(&module, target).expect("the model has a plan");
}

fn layers(c: &mut Criterion) {
    let target = CpuTarget::detect(2);
    let mut group = c.benchmark_group("compile");
    group.sample_size(10);
    for (kind, unrolled) in [("called", false), ("unrolled", true)] {
        for n in [1, 2, 4, 8, 16, 32] {
            let module = model(n, unrolled).expect("the model is well-formed");
            aether::ir::verify(&module).expect("the model verifies");
            group.bench_with_input(BenchmarkId::new(kind, n), &module, |b, module| {
                b.iter(|| compile(module, &target));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, layers);
criterion_main!(benches);
