//! Loops against the reference interpreter: random graphs of elementwise ops over all plain types,
//! with broadcasts, casts, selects, reductions and what reads them back. Each graph runs as single
//! instructions, fused by the passes, and, where its form is that of one loop, as one `fused`
//! written by hand; on every instruction set, with one worker and several.
//!
//! Tolerance: integers, truth values and what is moved or selected agree exactly; f64 to 1e-12,
//! f32 to 3e-5, f16 and bf16 to 8 units of their last place, of the greatest magnitude. Ops that
//! jump (comparisons, rounding, casts to integers) are given exact operands only.

use std::sync::Arc;

use aether_codegen_cpu::Isa;
use aether_ir::fusion::Fusion;
use aether_ir::tensor::ConcreteType;
use aether_ir::text::print;
use aether_ir::{
    Attrs, Bindings, DType, Dim, FuncBuilder, Interpreter, Module, Op, Operand, Tensor, TensorType,
    ValueId,
};
use aether_runtime::{Executable, Files, Options, run_executable};

const DTYPES: [DType; 11] = [
    DType::F32,
    DType::F32,
    DType::F16,
    DType::Bf16,
    DType::F64,
    DType::I8,
    DType::I16,
    DType::I32,
    DType::I64,
    DType::U8,
    DType::U32,
];

#[derive(Clone)]
struct Value {
    id: ValueId,
    /// The same on every machine.
    exact: bool,
    /// Not to be computed with any further: large, infinite or not a number.
    end: bool,
    bound: f64,
}

struct Generator<'r> {
    rng: &'r mut fastrand::Rng,
    f: FuncBuilder,
    space: Vec<Dim>,
    values: Vec<Value>,
    params: usize,
}

impl Generator<'_> {
    fn dtype(&self, v: &Value) -> DType {
        self.f.ty(v.id).dtype
    }

    fn add(&mut self, id: ValueId, exact: bool, bound: f64) {
        // What wraps is as large as its type.
        let bound = match self.f.ty(id).dtype {
            DType::U32 if bound > 4.0 => 5e9,
            DType::U8 => bound.max(256.0),
            DType::I8 => bound.min(128.0),
            _ => bound,
        };
        let end = bound > 1e4;
        self.values.push(Value { id, exact, end, bound });
    }

    /// A shape that broadcasts to the space.
    fn part(&mut self) -> Vec<Dim> {
        let skip = if self.rng.u8(..4) == 0 { self.rng.usize(..=self.space.len()) } else { 0 };
        let mut dims = self.space[skip..].to_vec();
        for d in &mut dims {
            if self.rng.u8(..4) == 0 {
                *d = Dim::new(1);
            }
        }
        dims
    }

    fn param(&mut self, dtype: DType) {
        let dims = self.part();
        let name = format!("p{}", self.params);
        self.params += 1;
        let id = self.f.param(&name, TensorType::new(dtype, dims));
        self.add(id, true, 4.0);
    }

    fn pick(&mut self, fits: impl Fn(&Self, &Value) -> bool) -> Option<Value> {
        let all: Vec<Value> =
            self.values.iter().filter(|v| !v.end && fits(self, v)).cloned().collect();
        (!all.is_empty()).then(|| all[self.rng.usize(..all.len())].clone())
    }

    fn like(&mut self, v: &Value) -> Value {
        let dtype = self.dtype(v);
        self.pick(|g, w| g.dtype(w) == dtype).unwrap_or_else(|| v.clone())
    }

    fn op(&mut self, op: Op, operands: &[&Value], exact: bool, bound: f64) {
        let ids: Vec<ValueId> = operands.iter().map(|v| v.id).collect();
        if let Ok(id) = self.f.op(op, &ids, Attrs::new()) {
            self.add(id, exact, bound);
        }
    }

    fn step(&mut self) {
        let Some(x) = self.pick(|_, _| true) else { return };
        let dtype = self.dtype(&x);
        let float = dtype.is_float();
        match self.rng.u8(..12) {
            0 | 1 if dtype == DType::Bool => {
                let y = self.like(&x);
                match self.rng.u8(..4) {
                    0 => self.op(Op::Not, &[&x], true, 1.0),
                    1 => self.op(Op::And, &[&x, &y], true, 1.0),
                    2 => self.op(Op::Or, &[&x, &y], true, 1.0),
                    _ => self.op(Op::Eq, &[&x, &y], true, 1.0),
                }
            }
            0 | 1 if float => {
                let smooth = [
                    // It magnifies what its operand is off by.
                    (Op::Exp, if x.exact { 8.0 } else { 1.0 }, x.bound.min(9.0).exp()),
                    (Op::Sin, 1e3, 1.0),
                    (Op::Cos, 1e3, 1.0),
                    (Op::Tanh, 1e9, 1.0),
                    (Op::Sigmoid, 1e9, 1.0),
                    (Op::Gelu, 1e9, x.bound),
                    (Op::GeluTanh, 1e9, x.bound),
                    (Op::Silu, 1e9, x.bound),
                    (Op::Erf, 1e9, 1.0),
                ];
                let (op, limit, bound) = smooth[self.rng.usize(..smooth.len())];
                if x.bound <= limit {
                    self.op(op, &[&x], false, bound);
                }
            }
            2 => {
                let op = [Op::Neg, Op::Abs, Op::Relu][self.rng.usize(..3)];
                let wraps = dtype == DType::U32 && op == Op::Neg;
                self.op(op, &[&x], x.exact, if wraps { 5e9 } else { x.bound });
            }
            3 if x.exact && float => {
                let ops = [Op::Sign, Op::Floor, Op::Ceil, Op::Round];
                let op = ops[self.rng.usize(..4)];
                self.op(op, &[&x], true, x.bound + 1.0);
                let ops = [Op::Log, Op::Sqrt, Op::Rsqrt];
                let op = ops[self.rng.usize(..3)];
                self.op(op, &[&x], false, f64::INFINITY);
            }
            4 | 5 => {
                let y = self.like(&x);
                let exact = x.exact && y.exact && x.bound + y.bound < 64.0;
                let op = [Op::Add, Op::Sub][self.rng.usize(..2)];
                self.op(op, &[&x, &y], exact || !float, x.bound + y.bound);
            }
            6 => {
                let y = self.like(&x);
                self.op(Op::Mul, &[&x, &y], !float, x.bound * y.bound);
                if y.exact && (float || self.rng.u8(..4) == 0) {
                    self.op(Op::Div, &[&x, &y], false, f64::INFINITY);
                }
                if y.exact && x.exact {
                    self.op(Op::Pow, &[&x, &y], false, f64::INFINITY);
                }
            }
            7 => {
                let y = self.like(&x);
                let op = [Op::Max, Op::Min][self.rng.usize(..2)];
                self.op(op, &[&x, &y], x.exact && y.exact, x.bound.max(y.bound));
            }
            8 => {
                let y = self.like(&x);
                let ops = [Op::Eq, Op::Ne, Op::Lt, Op::Le, Op::Gt, Op::Ge];
                if x.exact && y.exact {
                    let op = ops[self.rng.usize(..6)];
                    self.op(op, &[&x, &y], true, 1.0);
                }
            }
            9 => {
                let y = self.like(&x);
                if let Some(c) = self.pick(|g, w| g.dtype(w) == DType::Bool) {
                    let exact = x.exact && y.exact;
                    self.op(Op::Select, &[&c, &x, &y], exact, x.bound.max(y.bound));
                }
            }
            10 => {
                let to = match self.rng.u8(..8) {
                    0 => DType::Bool,
                    _ => DTYPES[self.rng.usize(..DTYPES.len())],
                };
                if x.exact || to.is_float() {
                    let ty = self.f.ty(x.id).with_dtype(to);
                    let id = self.f.op_to(Op::Cast, &[x.id], Attrs::new(), ty).unwrap();
                    let unsigned = to == DType::U32 && !float;
                    self.add(id, x.exact, if unsigned { 5e9 } else { x.bound });
                }
            }
            _ => self.source(&x),
        }
    }

    fn source(&mut self, x: &Value) {
        let ty = match self.dtype(x) {
            DType::Bool => return,
            dtype => TensorType::new(dtype, self.part()),
        };
        if self.rng.bool() || ty.rank() == 0 {
            let value = self.rng.i64(0..8) as f64 * 0.5;
            let attrs = Attrs::new().with("value", value);
            let id = self.f.op_to(Op::Splat, &[], attrs, ty).unwrap();
            return self.add(id, true, 4.0);
        }
        let axis = self.rng.usize(..ty.rank()) as i64;
        let id = self.f.op_to(Op::Iota, &[], Attrs::new().with("axis", axis), ty).unwrap();
        self.add(id, true, 2000.0);
    }

    /// `v` at the whole space.
    fn whole(&mut self, v: &Value) -> ValueId {
        let ty = TensorType::new(self.dtype(v), self.space.clone());
        if *self.f.ty(v.id) == ty {
            return v.id;
        }
        self.f.op_to(Op::Broadcast, &[v.id], Attrs::new(), ty).unwrap()
    }

    /// Reductions of some values, now and then read back.
    fn reduce(&mut self, returns: &mut Vec<(ValueId, bool)>) {
        let rank = self.space.len();
        if rank == 0 || self.rng.u8(..3) == 0 {
            return;
        }
        let first = self.rng.usize(..rank);
        let last = if self.rng.bool() { rank } else { self.rng.usize(first + 1..=rank) };
        let axes: Vec<i64> = (first as i64..last as i64).collect();
        let keep = self.rng.bool();
        for _ in 0..self.rng.usize(1..=3) {
            let Some(x) = self.pick(|g, v| g.dtype(v) != DType::Bool && v.bound < 100.0) else {
                return;
            };
            let float = self.dtype(&x).is_float();
            let ops = [Op::ReduceSum, Op::ReduceMax, Op::ReduceMin, Op::ReduceMean];
            let known = if float { 4 } else { 3 };
            let op = ops[self.rng.usize(..known)];
            let wide = self.whole(&x);
            let attrs = Attrs::new().with("axes", axes.clone()).with("keepdims", keep);
            let Ok(narrow) = self.f.op(op, &[wide], attrs) else { continue };
            let mut narrow = narrow;
            if self.rng.bool() {
                narrow = self.f.op(Op::Neg, &[narrow], Attrs::new()).unwrap();
            }
            let sums = matches!(op, Op::ReduceSum | Op::ReduceMean);
            let exact = !float || (x.exact && !sums);
            returns.push((narrow, exact));
            if keep && last == rank && float && self.rng.bool() {
                let back = self.f.op(Op::Sub, &[wide, narrow], Attrs::new()).unwrap();
                returns.push((back, false));
                let back = self.f.op(Op::Tanh, &[back], Attrs::new()).unwrap();
                let attrs = Attrs::new().with("axes", axes.clone()).with("keepdims", keep);
                let again = self.f.op(Op::ReduceMean, &[back], attrs).unwrap();
                returns.push((again, false));
            }
        }
    }
}

/// A function, and which of its results are exact.
fn function(rng: &mut fastrand::Rng, name: &str) -> (aether_ir::Func, Vec<bool>) {
    let lengths = [1u64, 2, 3, 5, 16, 33, 130, 2500];
    let mut space: Vec<Dim> = Vec::new();
    let mut total = 1;
    for _ in 0..rng.usize(..=3) {
        let n = lengths[rng.usize(..lengths.len())];
        if total * n <= 8_000 {
            total *= n;
            space.push(Dim::new(n));
        }
    }
    if rng.u8(..3) == 0 && total <= 600 {
        space.insert(rng.usize(..=space.len()), Dim::symbol("s"));
    }
    let mut g = Generator { rng, f: FuncBuilder::new(name), space, values: Vec::new(), params: 0 };
    let main = DTYPES[g.rng.usize(..DTYPES.len())];
    for _ in 0..g.rng.usize(1..=4) {
        let any = DTYPES[g.rng.usize(..DTYPES.len())];
        let dtype = if g.rng.u8(..3) > 0 { main } else { any };
        g.param(dtype);
    }
    if g.rng.bool() {
        g.param(DType::Bool);
    }
    // The symbol must have a length.
    let whole = TensorType::new(main, g.space.clone());
    let id = g.f.param("whole", whole);
    g.add(id, true, 4.0);
    for _ in 0..g.rng.usize(2..=14) {
        g.step();
    }
    let mut returns = Vec::new();
    g.reduce(&mut returns);
    for _ in 0..g.rng.usize(0..=2).max(usize::from(returns.is_empty())) {
        let v = g.values[g.rng.usize(..g.values.len())].clone();
        let mut id = g.whole(&v);
        if g.f.is_param(id) {
            id =
                g.f.op(Op::Max, &[id, id], Attrs::new())
                    .unwrap_or_else(|_| g.f.op(Op::Not, &[id], Attrs::new()).unwrap());
        }
        returns.push((id, v.exact));
    }
    let (ids, exact): (Vec<ValueId>, Vec<bool>) = returns.into_iter().unzip();
    (g.f.finish(&ids), exact)
}

fn module(func: aether_ir::Func) -> Module {
    let mut m = Module::new("m");
    m.declare_symbol("s", 1, 40);
    m.add_func(func);
    m
}

/// `@main` that runs the function as one loop.
fn by_hand(func: &aether_ir::Func) -> Module {
    let mut main = FuncBuilder::new("main");
    let mut operands: Vec<Operand> = Vec::new();
    for (i, &p) in func.params.iter().enumerate() {
        operands.push(main.param(&format!("p{i}"), func.ty(p).clone()).into());
    }
    let results = main.fused("body", &operands, &func.result_types);
    let mut m = module(main.finish(&results));
    m.add_func(aether_ir::Func { name: "body".into(), ..func.clone() });
    m
}

fn inputs(rng: &mut fastrand::Rng, func: &aether_ir::Func, s: u64) -> Vec<Tensor> {
    let bindings = Bindings::from([("s".into(), s)]);
    let input = |&p: &ValueId| {
        let ty = ConcreteType::of(func.ty(p), &bindings).unwrap();
        let n = ty.numel().unwrap();
        let values: Vec<f64> = (0..n).map(|_| rng.i64(-16..=16) as f64 * 0.25).collect();
        Tensor::from_f64(ty.dtype, &ty.shape, &values).unwrap()
    };
    func.params.iter().map(input).collect()
}

fn assert_close(got: &Tensor, want: &Tensor, exact: bool, about: &str) {
    assert_eq!(got.ty(), want.ty(), "{about}");
    let tolerance = match want.dtype() {
        _ if exact => 0.0,
        DType::F64 => 1e-12,
        DType::F32 => 3e-5,
        DType::F16 => 8.0 / 1024.0,
        DType::Bf16 => 8.0 / 128.0,
        _ => 0.0,
    };
    let (g, w) = (got.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let scale = w.iter().filter(|v| v.is_finite()).fold(1.0f64, |m, v| m.max(v.abs()));
    for (i, (g, w)) in g.iter().zip(&w).enumerate() {
        let same = g == w
            || (g.is_nan() && w.is_nan())
            || (g - w).abs() <= tolerance * scale
            // One step below the overflow is as good as the overflow.
            || (tolerance > 0.0 && g.abs() > 6e4 && w.abs() > 6e4);
        assert!(same, "{about}: element {i} is {g}, not {w}");
    }
}

fn run(
    module: &Module,
    inputs: &[Tensor],
    isa: Isa,
    threads: usize,
    pipeline: &str,
) -> Result<Vec<Tensor>, String> {
    let opts = Options {
        threads,
        isa: Some(isa),
        pipeline: Some(pipeline.to_owned()),
        verify: true,
        ..Options::default()
    };
    let exe = Executable::compile(module.clone(), &Files::new(), &opts)
        .unwrap_or_else(|e| panic!("{e}\n{}", print(module)));
    assert_eq!(exe.by_reference(), &[] as &[String], "{}", print(module));
    run_executable(&Arc::new(exe), inputs.to_vec()).map_err(|e| e.to_string())
}

#[test]
fn random_loops_agree_with_the_interpreter() {
    let mut rng = fastrand::Rng::with_seed(5);
    let (mut whole, mut failed, mut fused) = (0, 0, 0);
    let isas = Isa::available();
    for round in 0..300 {
        let (func, exact) = function(&mut rng, "main");
        let plain = module(func);
        let func = &plain.funcs["main"];
        aether_ir::verify(&plain)
            .unwrap_or_else(|d| panic!("{}", aether_ir::text::explain(&plain, &d)));
        let s = rng.u64(1..=40);
        let inputs = inputs(&mut rng, func, s);
        let want = Interpreter::new(&plain).run("main", inputs.clone());
        let mut cases = vec![("singly", plain.clone(), ""), ("fused", plain.clone(), "fuse,dce")];
        if Fusion::of(func).is_ok() {
            whole += 1;
            let loop_ = by_hand(func);
            aether_ir::verify(&loop_)
                .unwrap_or_else(|d| panic!("{}", aether_ir::text::explain(&loop_, &d)));
            assert_eq!(
                Interpreter::new(&loop_).run("main", inputs.clone()).ok(),
                want.clone().ok()
            );
            cases.push(("by hand", loop_, ""));
        }
        for (how, module, pipeline) in &cases {
            let (isa, threads) = (isas[round % isas.len()], 1 + 2 * rng.usize(..2));
            let got = run(module, &inputs, isa, threads, pipeline);
            let about =
                format!("round {round}, {how}, {isa}, {threads} threads\n{}", print(&plain));
            match (&got, &want) {
                (Ok(got), Ok(want)) => {
                    for ((got, want), &exact) in got.iter().zip(want).zip(&exact) {
                        assert_close(got, want, exact, &about);
                    }
                }
                (Err(_), Err(_)) => failed += 1,
                // What fails may be dead.
                (Ok(_), Err(_)) => {}
                (Err(e), Ok(_)) => panic!("{about}: {e}"),
            }
            fused += usize::from(*how == "fused");
        }
    }
    assert!(whole > 100, "{whole} loops");
    assert!(failed > 0 && fused == 300, "{failed} failures, {fused} fused");
}

#[test]
fn a_zero_divisor_ends_the_run() {
    let source = "module @m {
  func @main(%x: tensor<5xi32>, %y: tensor<5xi32>) -> tensor<5xi32> {
    %0 = add %x, %y : tensor<5xi32>
    %1 = div %0, %y : tensor<5xi32>
    return %1
  }
}";
    let m = aether_ir::parse_and_verify(source).unwrap();
    let ints = |v: &[i64]| Tensor::from_i64(DType::I32, &[5], v).unwrap();
    for pipeline in ["", "fuse"] {
        let got =
            run(&m, &[ints(&[1, 2, 3, 4, 5]), ints(&[2, 0, 1, 1, 1])], Isa::Scalar, 1, pipeline);
        assert!(got.unwrap_err().contains("division by zero"));
        let got =
            run(&m, &[ints(&[1, -9, 3, 4, 5]), ints(&[2, 2, 1, 1, 1])], Isa::Scalar, 1, pipeline);
        assert_eq!(got.unwrap()[0].to_i64_vec().unwrap(), [1, -3, 4, 5, 6]);
    }
}

/// Rows far longer than a tile, reduced in parts; sums of many elements.
#[test]
fn long_rows_are_reduced_in_parts() {
    let n = 1_000_003u64;
    let mut f = FuncBuilder::new("main");
    let x = f.param("x", TensorType::new(DType::F32, [n]));
    let y = f.op(Op::Mul, &[x, x], Attrs::new()).unwrap();
    let axes = Attrs::new().with("axes", vec![0i64]);
    let sum = f.op(Op::ReduceSum, &[y], axes.clone()).unwrap();
    let max = f.op(Op::ReduceMax, &[x], axes).unwrap();
    let root = f.op(Op::Sqrt, &[sum], Attrs::new()).unwrap();
    let m = module(f.finish(&[root, max, y]));
    let mut rng = fastrand::Rng::with_seed(6);
    let values: Vec<f32> = (0..n).map(|_| rng.f32() - 0.5).collect();
    let input = Tensor::from_f32(&[n as usize], &values).unwrap();
    let want = values.iter().map(|&v| f64::from(v * v)).sum::<f64>().sqrt();
    let greatest = values.iter().copied().fold(f32::MIN, f32::max);
    for threads in [1, 3] {
        let got =
            run(&m, std::slice::from_ref(&input), Isa::detect(), threads, "fuse,dce").unwrap();
        let root = got[0].to_f64_vec().unwrap()[0];
        assert!((root - want).abs() < 1e-6 * want, "{root}, not {want}");
        assert_eq!(got[1].to_f32_vec().unwrap(), [greatest]);
        let squares = got[2].to_f32_vec().unwrap();
        assert!(squares.iter().zip(&values).all(|(y, x)| *y == x * x));
    }
}
