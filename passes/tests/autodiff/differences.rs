//! Every op with a gradient rule against central differences, to order two.
//!
//! In f64 on the interpreter: eps 1e-6, and what is found may differ by 1e-5 and a thousandth.
//! Each instance is taken as it is, through the vjp of its `@main`, and then the vjp of that
//! function, so that second derivatives are checked element by element too. The gradient after the
//! default pipeline must agree with the one before.

use aether_ir::text::print;
use aether_ir::{Interpreter, Module, Op, Tensor, ValueId};
use aether_passes::autodiff::{self, table};
use aether_passes::{DEFAULT_PIPELINE, GenericTarget, PassCtx, Pipeline};

use super::instances::*;

const EPS: f64 = 1e-6;

fn close(found: f64, want: f64) -> bool {
    (found - want).abs() <= 1e-5 + 1e-3 * want.abs()
}

fn run(module: &Module, func: &str, args: &[Tensor]) -> Vec<Tensor> {
    let results = Interpreter::new(module).run_bound(func, args.to_vec(), &symbols());
    results.unwrap_or_else(|e| panic!("{e}\n{}", print(module)))
}

fn dot(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64_vec().unwrap(), b.to_f64_vec().unwrap());
    a.iter().zip(&b).map(|(a, b)| a * b).sum()
}

fn random_like(rng: &mut fastrand::Rng, x: &Tensor) -> Tensor {
    let values: Vec<f64> = (0..x.numel()).map(|_| 2.0 * rng.f64() - 1.0).collect();
    Tensor::from_f64(x.dtype(), x.shape(), &values).unwrap()
}

/// `x` moved by `step` along `direction`.
fn moved(x: &Tensor, direction: &[f64], step: f64) -> Tensor {
    let mut values = x.to_f64_vec().unwrap();
    values.iter_mut().zip(direction).for_each(|(v, d)| *v += step * d);
    Tensor::from_f64(x.dtype(), x.shape(), &values).unwrap()
}

fn float_params(module: &Module, func: &str) -> Vec<usize> {
    let f = &module.funcs[func];
    let is_f64 = |&i: &usize| f.ty(f.params[i]).dtype == aether_ir::DType::F64;
    (0..f.params.len()).filter(is_f64).collect()
}

/// The names of parameters for `wrt`, given to those that have none.
fn names(module: &mut Module, func: &str, params: &[usize]) -> Vec<String> {
    let f = &mut module.funcs[func];
    let ids: Vec<ValueId> = params.iter().map(|&i| f.params[i]).collect();
    let each = params.iter().zip(ids).map(|(i, v)| {
        let name = format!("p{i}");
        f.values[v.index()].name = Some(name.as_str().into());
        name
    });
    each.collect()
}

/// Checks the vjp of `func` at `args`; returns its name and arguments.
fn check(
    rng: &mut fastrand::Rng,
    module: &mut Module,
    func: &str,
    args: &[Tensor],
    about: &str,
) -> (String, Vec<Tensor>) {
    let params = float_params(module, func);
    let wrt = names(module, func, &params);
    let wrt: Vec<&str> = wrt.iter().map(String::as_str).collect();
    let vjp = autodiff::vjp(module, func, &wrt).unwrap_or_else(|e| panic!("{about}: {e}"));
    aether_ir::verify(module)
        .unwrap_or_else(|d| panic!("{about}\n{}", aether_ir::text::explain(module, &d)));

    let results = run(module, func, args);
    let floats: Vec<usize> =
        (0..results.len()).filter(|&i| results[i].dtype().is_float()).collect();
    let cotangents: Vec<Tensor> = floats.iter().map(|&i| random_like(rng, &results[i])).collect();
    let mut all = args.to_vec();
    all.extend(cotangents.iter().cloned());
    let found = run(module, &vjp, &all);
    let gradients = &found[results.len()..];
    assert_eq!(gradients.len(), params.len(), "{about}");
    let along = |at: &[Tensor]| -> f64 {
        let results = run(module, func, at);
        floats.iter().zip(&cotangents).map(|(&i, g)| dot(&results[i], g)).sum()
    };
    for (&p, gradient) in params.iter().zip(gradients) {
        let n = args[p].numel();
        let gradient = gradient.to_f64_vec().unwrap();
        let slope = |direction: &[f64]| {
            let [ahead, behind] = [EPS, -EPS].map(|step| {
                let mut at = args.to_vec();
                at[p] = moved(&args[p], direction, step);
                along(&at)
            });
            (ahead - behind) / (2.0 * EPS)
        };
        // Element by element where that is cheap, and always along a random direction.
        for i in (0..n).filter(|_| n <= 12) {
            let mut direction = vec![0.0; n];
            direction[i] = 1.0;
            let want = slope(&direction);
            assert!(
                close(gradient[i], want),
                "{about}: @{func}, parameter {p}, element {i}: gradient {}, difference {want}\n{}",
                gradient[i],
                print(module)
            );
        }
        let direction: Vec<f64> = (0..n).map(|_| 2.0 * rng.f64() - 1.0).collect();
        let found: f64 = gradient.iter().zip(&direction).map(|(g, d)| g * d).sum();
        let want = slope(&direction);
        assert!(close(found, want), "{about}: @{func}, parameter {p}: {found}, {want}");
    }
    (vjp.to_string(), all)
}

/// The functions of a module give the same after the default pipeline.
fn check_pipeline(module: &Module, func: &str, args: &[Tensor], about: &str) {
    let mut optimised = module.clone();
    let pipeline = Pipeline::parse(DEFAULT_PIPELINE).unwrap();
    pipeline
        .run(&mut optimised, &PassCtx::new(&GenericTarget), &mut ())
        .unwrap_or_else(|e| panic!("{about}: {e}"));
    let (found, want) = (run(&optimised, func, args), run(module, func, args));
    for (f, w) in found.iter().zip(&want) {
        let (f, w) = (f.to_f64_vec().unwrap(), w.to_f64_vec().unwrap());
        let same = f.len() == w.len()
            && f.iter().zip(&w).all(|(f, w)| (f - w).abs() <= 1e-9 * (1.0 + w.abs()));
        assert!(same, "{about}: {f:?} after the pipeline, {w:?} before");
    }
}

#[test]
fn rules_agree_with_differences_to_order_two() {
    let mut rng = fastrand::Rng::with_seed(11);
    let mut missing: Vec<Op> = Op::all().filter(|&op| table::is_differentiable(op)).collect();
    for (op, instances) in TABLE {
        let op: Op = op.parse().unwrap();
        missing.retain(|&o| o != op);
        assert!(!instances.is_empty());
        for instance in *instances {
            let mut module = instance.module();
            assert!(
                module.funcs[0].body.iter().any(|inst| inst.op == op),
                "{op}: {}",
                instance.body
            );
            let args = instance.arguments(&mut rng, &module);
            let about = format!("{op}: {}", instance.body.trim());
            let (first, args) = check(&mut rng, &mut module, "main", &args, &about);
            check(&mut rng, &mut module, &first, &args, &about);
            check_pipeline(&module, &first, &args, &about);
        }
    }
    assert!(missing.is_empty(), "no instance of {missing:?}");
}

macro_rules! table {
    ($($op:literal: $([$(($param:literal, $domain:expr)),*] $body:literal)*;)*) => {
        /// At least one instance for every op that has a rule.
        static TABLE: &[(&str, &[Instance])] = &[$(
            ($op, &[$(Instance { params: &[$(($param, $domain)),*], body: $body }),*]),
        )*];
    };
}

table! {
    "neg": [("x: tensor<2x3xf64>", Any)] "%y = neg %x : tensor<2x3xf64>";
    "abs": [("x: tensor<2x3xf64>", Any)] "%y = abs %x : tensor<2x3xf64>";
    "exp": [("x: tensor<[s]xf64>", Any)] "%y = exp %x : tensor<[s]xf64>"
        [("x: tensor<0xf64>", Any)] "%y = exp %x : tensor<0xf64>";
    "log": [("x: tensor<4xf64>", Positive)] "%y = log %x : tensor<4xf64>";
    "sqrt": [("x: tensor<4xf64>", Positive)] "%y = sqrt %x : tensor<4xf64>";
    "rsqrt": [("x: tensor<4xf64>", Positive)] "%y = rsqrt %x : tensor<4xf64>";
    "sin": [("x: tensor<4xf64>", Zeros)] "%y = sin %x : tensor<4xf64>";
    "cos": [("x: tensor<4xf64>", Zeros)] "%y = cos %x : tensor<4xf64>";
    "tanh": [("x: tensor<4xf64>", Zeros)] "%y = tanh %x : tensor<4xf64>";
    "sigmoid": [("x: tensor<4xf64>", Zeros)] "%y = sigmoid %x : tensor<4xf64>";
    "relu": [("x: tensor<6xf64>", Any)] "%y = relu %x : tensor<6xf64>";
    "gelu": [("x: tensor<4xf64>", Zeros)] "%y = gelu %x : tensor<4xf64>";
    "gelu_tanh": [("x: tensor<4xf64>", Zeros)] "%y = gelu_tanh %x : tensor<4xf64>";
    "silu": [("x: tensor<4xf64>", Zeros)] "%y = silu %x : tensor<4xf64>";
    "erf": [("x: tensor<4xf64>", Zeros)] "%y = erf %x : tensor<4xf64>";

    "add": [("a: tensor<2x3xf64>", Any), ("b: tensor<2x3xf64>", Any)] "%y = add %a, %b : tensor<2x3xf64>"
        [("a: tensor<2x1xf64>", Any), ("b: tensor<3xf64>", Any)] "%y = add %a, %b : tensor<2x3xf64>"
        [("a: tensor<[s]x2xf64>", Any), ("b: tensor<1x1x2xf64>", Any)] "%y = add %a, %b : tensor<1x[s]x2xf64>";
    "sub": [("a: tensor<2x3xf64>", Any), ("b: tensor<f64>", Any)] "%y = sub %a, %b : tensor<2x3xf64>"
        [("a: tensor<3xf64>", Any), ("b: tensor<0x3xf64>", Any)] "%y = sub %a, %b : tensor<0x3xf64>";
    "mul": [("a: tensor<2x3xf64>", Zeros), ("b: tensor<2x3xf64>", Zeros)] "%y = mul %a, %b : tensor<2x3xf64>"
        [("a: tensor<2x1x[s]xf64>", Any), ("b: tensor<2x1xf64>", Any)] "%y = mul %a, %b : tensor<2x2x[s]xf64>"
        [("a: tensor<3xf64>", Any)] "%y = mul %a, %a : tensor<3xf64>";
    "div": [("a: tensor<2x3xf64>", Any), ("b: tensor<3xf64>", Positive)] "%y = div %a, %b : tensor<2x3xf64>"
        [("a: tensor<f64>", Any), ("b: tensor<[s]x2xf64>", Positive)] "%y = div %a, %b : tensor<[s]x2xf64>";
    "pow": [("a: tensor<2x3xf64>", Positive), ("b: tensor<3xf64>", Any)] "%y = pow %a, %b : tensor<2x3xf64>"
        [("a: tensor<3xf64>", Any)] "%c = splat {value = 3} : tensor<f64>\n%y = pow %a, %c : tensor<3xf64>"
        [("a: tensor<3xf64>", Any)] "%c = splat {value = 2} : tensor<3xf64>\n%y = pow %a, %c : tensor<3xf64>"
        [("a: tensor<3xf64>", Any)] "%c = splat {value = 1} : tensor<f64>\n%y = pow %a, %c : tensor<3xf64>"
        [("a: tensor<3xf64>", Any)] "%c = splat {value = 0} : tensor<f64>\n%y = pow %a, %c : tensor<3xf64>";
    "max": [("a: tensor<2x3xf64>", Distinct), ("b: tensor<2x1xf64>", Any)] "%y = max %a, %b : tensor<2x3xf64>";
    "min": [("a: tensor<2x3xf64>", Distinct), ("b: tensor<2x1xf64>", Any)] "%y = min %a, %b : tensor<2x3xf64>";
    "select": [("c: tensor<2x1xf64>", Any), ("a: tensor<3xf64>", Any), ("b: tensor<2x3xf64>", Any)]
        "%z = splat {value = 0} : tensor<f64>\n%p = gt %c, %z : tensor<2x1xbool>\n%y = select %p, %a, %b : tensor<2x3xf64>"
        [("a: tensor<[s]xf64>", Any)]
        "%z = splat {value = 0} : tensor<[s]xf64>\n%p = gt %a, %z : tensor<[s]xbool>\n%y = select %p, %a, %z : tensor<[s]xf64>";
    "cast": [("x: tensor<2xf64>", Any)] "%y = cast %x : tensor<2xf64>"
        [("x: tensor<3xf64>", Any)] "%i = cast %x : tensor<3xi32>\n%f = cast %i : tensor<3xf64>\n%y = mul %f, %x : tensor<3xf64>";

    "reshape": [("x: tensor<2x3xf64>", Any)] "%y = reshape %x : tensor<3x1x2xf64>"
        [("x: tensor<[s]x[t]xf64>", Any)] "%y = reshape %x : tensor<[s*t]xf64>";
    "broadcast": [("x: tensor<2x1xf64>", Any)] "%y = broadcast %x : tensor<3x2x2xf64>"
        [("x: tensor<f64>", Any)] "%y = broadcast %x : tensor<[s]x2xf64>"
        [("x: tensor<1x2xf64>", Any)] "%y = broadcast %x : tensor<[s]x2xf64>";
    "transpose": [("x: tensor<2x[s]x1xf64>", Any)] "%y = transpose %x {perm = [1, 2, 0]} : tensor<[s]x1x2xf64>";
    "concat": [("a: tensor<2x1xf64>", Any), ("b: tensor<2x2xf64>", Any)] "%y = concat %a, %b, %a {axis = 1} : tensor<2x4xf64>"
        [("a: tensor<[s]x2xf64>", Any), ("b: tensor<[t]x2xf64>", Any), ("c: tensor<1x2xf64>", Any)] "%y = concat %a, %b, %c {axis = 0} : tensor<[s+t+1]x2xf64>";

    "slice": [("x: tensor<5x2xf64>", Any)] "%y = slice %x {starts = [1, 0], limits = [4, 2]} : tensor<3x2xf64>"
        [("x: tensor<7x[t]x3xf64>", Any)] "%y = slice %x {starts = [1, 0, 0], limits = [6, -1, 3], steps = [3, 1, 2]} : tensor<2x[t]x2xf64>"
        [("x: tensor<6xf64>", Any)] "%y = slice %x {starts = [0], limits = [6], steps = [2]} : tensor<3xf64>"
        [("x: tensor<4xf64>", Any)] "%y = slice %x {starts = [2], limits = [2]} : tensor<0xf64>"
        [("x: tensor<4xf64>", Any)] "%y = slice %x {starts = [1], limits = [4], steps = [9]} : tensor<1xf64>";
    "pad": [("x: tensor<2x[t]xf64>", Any)] "%y = pad %x {low = [1, 0], high = [0, 2]} : tensor<3x[t+2]xf64>"
        [("x: tensor<[s]xf64>", Any)] "%y = pad %x {low = [2], high = [1], value = 3} : tensor<[s+3]xf64>"
        [("x: tensor<0xf64>", Any)] "%y = pad %x {low = [2], high = [0]} : tensor<2xf64>";
    "flip": [("x: tensor<2x[t]xf64>", Any)] "%y = flip %x {axes = [0, -1]} : tensor<2x[t]xf64>";
    "gather": [("x: tensor<3x2xf64>", Any), ("i: tensor<4xi32>", Below(3))] "%y = gather %x, %i {axis = 0} : tensor<4x2xf64>"
        [("x: tensor<2x[s]xf64>", Any), ("i: tensor<2x2xi64>", Below(3))] "%y = gather %x, %i {axis = -1} : tensor<2x2x2xf64>"
        [("x: tensor<3xf64>", Any), ("i: tensor<i32>", Is(1))] "%y = gather %x, %i {axis = 0} : tensor<f64>";
    "scatter_add": [("x: tensor<3x2xf64>", Any), ("i: tensor<4xi32>", Below(3)), ("u: tensor<4x2xf64>", Any)] "%y = scatter_add %x, %i, %u {axis = 0} : tensor<3x2xf64>"
        [("x: tensor<2x[s]xf64>", Any), ("i: tensor<[t]xi64>", Below(3)), ("u: tensor<2x[t]xf64>", Any)] "%y = scatter_add %x, %i, %u {axis = 1} : tensor<2x[s]xf64>";
    "transfer": [("a: tensor<3xf64>", Any)] "%y = transfer %a {to = \"gpu\"} : tensor<3xf64>";
    "barrier": [("a: tensor<2xf64>", Any), ("b: tensor<3xf64>", Any)] "%y, %z = barrier %a, %b : tensor<2xf64>, tensor<3xf64>";

    "sort": [("x: tensor<2x3xf64>", Distinct)] "%v, %i = sort %x {axis = 1} : tensor<2x3xf64>, tensor<2x3xi32>"
        [("x: tensor<[s]x2xf64>", Distinct)] "%v, %i = sort %x {axis = 0, descending = true} : tensor<[s]x2xf64>, tensor<[s]x2xi32>";
    "top_k": [("x: tensor<2x4xf64>", Distinct)] "%v, %i = top_k %x {k = 2} : tensor<2x2xf64>, tensor<2x2xi32>"
        [("x: tensor<[t]x[s]xf64>", Distinct)] "%v, %i = top_k %x {k = 1} : tensor<[t]x1xf64>, tensor<[t]x1xi32>";
    "expert_matmul": [("x: tensor<2x1x3xf64>", Any), ("w: tensor<6x3xf64>", Any), ("i: tensor<2x2xi32>", Below(3))] "%y = expert_matmul %x, %w, %i {experts = 3} : tensor<2x2x2xf64>"
        [("x: tensor<[s]x2x3xf64>", Any), ("w: tensor<2x3xf64>", Any), ("i: tensor<[s]x2xi32>", Below(2))] "%y = expert_matmul %x, %w, %i {experts = 2} : tensor<[s]x2x1xf64>";
    "cumsum": [("x: tensor<2x3xf64>", Any)] "%y = cumsum %x {axis = 1} : tensor<2x3xf64>"
        [("x: tensor<[s]x2xf64>", Any)] "%y = cumsum %x {axis = 0, exclusive = true, reverse = true} : tensor<[s]x2xf64>";
    "window_sum": [("x: tensor<2x5xf64>", Any)] "%y = window_sum %x {window = [2]} : tensor<2x4xf64>"
        [("x: tensor<6x4xf64>", Any)] "%y = window_sum %x {window = [3, 2], stride = [2, 3], padding = [1, 0, 1, 2]} : tensor<3x2xf64>"
        [("x: tensor<1x4xf64>", Any)] "%y = window_sum %x {window = [2], stride = [3], padding = [-1, 2], dilation = [2], lhs_dilation = [2]} : tensor<1x2xf64>"
        [("x: tensor<1x[s]xf64>", Any)] "%y = window_sum %x {window = [2], padding = [1, 0], dilation = [2]} : tensor<1x[s-1]xf64>";
    "window_max": [("x: tensor<1x5xf64>", Distinct)] "%y, %i = window_max %x {window = [2], stride = [2]} : tensor<1x2xf64>, tensor<1x2xi32>"
        [("x: tensor<[t]x3x4xf64>", Distinct)] "%y, %i = window_max %x {window = [2, 3], stride = [1, 2], padding = [1, 0, 1, 1]} : tensor<[t]x3x2xf64>, tensor<[t]x3x2xi32>";

    "reduce_sum": [("x: tensor<2x3x2xf64>", Any)] "%y = reduce_sum %x {axes = [0, -1]} : tensor<3xf64>"
        [("x: tensor<[s]x2xf64>", Any)] "%y = reduce_sum %x {axes = [0], keepdims = true} : tensor<1x2xf64>"
        [("x: tensor<0x2xf64>", Any)] "%y = reduce_sum %x {axes = [0]} : tensor<2xf64>"
        [("x: tensor<3xf64>", Any)] "%y = reduce_sum %x {axes = []} : tensor<3xf64>";
    "reduce_mean": [("x: tensor<2x3x2xf64>", Any)] "%y = reduce_mean %x {axes = [1, 0]} : tensor<2xf64>"
        [("x: tensor<[s]x2x[t]xf64>", Any)] "%y = reduce_mean %x {axes = [0, 1, 2]} : tensor<f64>";
    "reduce_prod": [("x: tensor<2x3x2xf64>", Zeros)] "%y = reduce_prod %x {axes = [0, 2]} : tensor<3xf64>"
        [("x: tensor<2x5xf64>", Any)] "%y = reduce_prod %x {axes = [1], keepdims = true} : tensor<2x1xf64>"
        [("x: tensor<2x0xf64>", Any)] "%y = reduce_prod %x {axes = [1]} : tensor<2xf64>"
        [("x: tensor<[s]x2xf64>", Any)] "%y = reduce_prod %x {axes = [1]} : tensor<[s]xf64>"
        [("x: tensor<2x3xf64>", Any)] "%y = reduce_prod %x {axes = [1]} : tensor<2xf64>";
    "reduce_max": [("x: tensor<2x3xf64>", Distinct)] "%y = reduce_max %x {axes = [1]} : tensor<2xf64>"
        [("x: tensor<[s]x2x2xf64>", Distinct)] "%y = reduce_max %x {axes = [0, 2], keepdims = true} : tensor<1x2x1xf64>";
    "reduce_min": [("x: tensor<2x3xf64>", Distinct)] "%y = reduce_min %x {axes = [0]} : tensor<3xf64>";

    "matmul": [("x: tensor<2x3xf64>", Any), ("w: tensor<3x2xf64>", Any)] "%y = matmul %x, %w : tensor<2x2xf64>"
        [("x: tensor<[s]x3xf64>", Any), ("w: tensor<2x3xf64>", Any)] "%y = matmul %x, %w {transpose_b = true} : tensor<[s]x2xf64>"
        [("x: tensor<2x[s]x3xf64>", Any), ("w: tensor<3x2xf64>", Any)] "%y = matmul %x, %w : tensor<2x[s]x2xf64>"
        [("x: tensor<2x1x1x2xf64>", Any), ("w: tensor<3x2x2xf64>", Any)] "%y = matmul %x, %w {transpose_b = true} : tensor<2x3x1x2xf64>"
        [("x: tensor<1x2xf64>", Any), ("w: tensor<2x2x2xf64>", Any)] "%y = matmul %x, %w : tensor<2x1x2xf64>"
        [("x: tensor<2x32xf64>", Any), ("w: tensor<3x32xq8_0>", Any)] "%y = matmul %x, %w {transpose_b = true} : tensor<2x3xf64>"
        [("x: tensor<2x2xf64>", Any)] "%y = matmul %x, %x : tensor<2x2xf64>";

    "conv": [("x: tensor<2x2x4xf64>", Any), ("w: tensor<3x2x2xf64>", Any)] "%y = conv %x, %w : tensor<2x3x3xf64>"
        [("x: tensor<1x2x4x3xf64>", Any), ("w: tensor<1x2x2x2xf64>", Any)] "%y = conv %x, %w {stride = [2, 1], padding = [1, 0, 1, 1], dilation = [1, 2]} : tensor<1x1x2x3xf64>"
        [("x: tensor<2x4x4xf64>", Any), ("w: tensor<2x2x3xf64>", Any)] "%y = conv %x, %w {stride = [2], padding = [2, 1], groups = 2} : tensor<2x2x3xf64>"
        [("x: tensor<1x2x3xf64>", Any), ("w: tensor<4x1x2xf64>", Any)] "%y = conv %x, %w {padding = [1, 0], lhs_dilation = [2], groups = 2} : tensor<1x4x5xf64>"
        [("x: tensor<[s]x1x3xf64>", Any), ("w: tensor<2x1x2xf64>", Any)] "%y = conv %x, %w {padding = [-1, 1]} : tensor<[s]x2x2xf64>";

    "softmax": [("x: tensor<2x3xf64>", Zeros)] "%y = softmax %x {axis = -1} : tensor<2x3xf64>"
        [("x: tensor<[s]x2xf64>", Any)] "%y = softmax %x {axis = 0} : tensor<[s]x2xf64>";
    "log_softmax": [("x: tensor<2x3xf64>", Zeros)] "%y = log_softmax %x {axis = 1} : tensor<2x3xf64>"
        [("x: tensor<[s]x2xf64>", Any)] "%y = log_softmax %x {axis = 0} : tensor<[s]x2xf64>";
    "rms_norm": [("x: tensor<2x[t]xf64>", Any), ("w: tensor<[t]xf64>", Any)] "%y = rms_norm %x, %w {eps = 0.001} : tensor<2x[t]xf64>"
        [("x: tensor<1x2x3xf64>", Any), ("w: tensor<3xf64>", Any)] "%y = rms_norm %x, %w {eps = 0.1} : tensor<1x2x3xf64>";
    "layer_norm": [("x: tensor<2x3xf64>", Any), ("w: tensor<3xf64>", Any), ("b: tensor<3xf64>", Any)]
        "%y = layer_norm %x, %w, %b {eps = 0.1} : tensor<2x3xf64>";
    "rope": [("x: tensor<2x1x4xf64>", Any), ("at: tensor<i32>", Is(3))]
        "%y = rope %x, %at {mode = \"neox\", theta = 10, n_dims = 4} : tensor<2x1x4xf64>"
        [("x: tensor<[t]x2x3xf64>", Any), ("at: tensor<[t]xi32>", Below(9)), ("f: tensor<1xf32>", Positive)]
        "%y = rope %x, %at, %f {mode = \"norm\", theta = 10, n_dims = 2, freq_scale = 0.5, ext_factor = 0.5, attn_factor = 1.5, n_ctx_orig = 8} : tensor<[t]x2x3xf64>";
    "attention": [("q: tensor<2x2x2xf64>", Any), ("k: tensor<4x1x2xf64>", Any), ("v: tensor<4x1x3xf64>", Any), ("past: tensor<i32>", Is(1))]
        "%y = attention %q, %k, %v, %past {scale = 0.7} : tensor<2x2x3xf64>"
        [("q: tensor<[t]x2x1xf64>", Any), ("k: tensor<4x2x1xf64>", Any), ("v: tensor<4x2x1xf64>", Any), ("past: tensor<i32>", Is(2))]
        "%y = attention %q, %k, %v, %past {scale = 2.0, window = 2, softcap = 1.5} : tensor<[t]x2x1xf64>"
        [("q: tensor<2x1x1xf64>", Any), ("k: tensor<4x1x1xf64>", Any), ("v: tensor<4x1x1xf64>", Any), ("past: tensor<i32>", Is(1))]
        "%y = attention %q, %k, %v, %past {scale = 1.0, causal = false} : tensor<2x1x1xf64>"
        [("q: tensor<[t]x2x2xf64>", Any), ("k: tensor<2x3x1x2xf64>", Any), ("v: tensor<2x3x1x1xf64>", Any), ("at: tensor<[t]xi32>", Below(3)), ("slot: tensor<[t]xi32>", Order)]
        "%y = attention %q, %k, %v, %at, %slot {scale = 0.7, window = 2} : tensor<[t]x2x1xf64>";
    "kv_append": [("c: tensor<4x1x2xf64>", Any), ("r: tensor<2x1x2xf64>", Any), ("past: tensor<i32>", Is(1))]
        "%y = kv_append %c, %r, %past : tensor<4x1x2xf64>"
        [("c: tensor<2x3x1x1xf64>", Any), ("r: tensor<[t]x1x1xf64>", Any), ("at: tensor<[t]xi32>", Below(3)), ("slot: tensor<[t]xi32>", Order)]
        "%y = kv_append %c, %r, %at, %slot : tensor<2x3x1x1xf64>";

    "matmul_add": [("x: tensor<2x3xf64>", Any), ("w: tensor<2x3xf64>", Any), ("r: tensor<2xf64>", Any)] "%y = matmul_add %x, %w, %r : tensor<2x2xf64>"
        [("x: tensor<1x2xf64>", Any), ("w: tensor<2x2xf64>", Any), ("r: tensor<2xf64>", Any)]
        "%p = matmul %x, %w {transpose_b = true} : tensor<1x2xf64>\n%e = exp %p : tensor<1x2xf64>\n%y = matmul_add %x, %w, %r : tensor<1x2xf64>";
    "matmul_act": [("x: tensor<2x3xf64>", Any), ("w: tensor<2x3xf64>", Any), ("r: tensor<2xf64>", Any)]
        "%y = matmul_act %x, %w, %r {act = \"tanh\", transpose_b = true} : tensor<2x2xf64>"
        [("x: tensor<1x2xf64>", Any), ("w: tensor<2x2xf64>", Any)]
        "%y = matmul_act %x, %w {act = \"silu\"} : tensor<1x2xf64>";
    "matmul_gated": [("x: tensor<2x2xf64>", Any), ("g: tensor<2x2xf64>", Any), ("u: tensor<2x2xf64>", Any)]
        "%y = matmul_gated %x, %g, %u {act = \"silu\"} : tensor<2x2xf64>"
        [("x: tensor<1x2xf64>", Any), ("g: tensor<1x2xf64>", Any), ("u: tensor<1x2xf64>", Any)]
        "%y = matmul_gated %x, %g, %u {act = \"gelu\"} : tensor<1x1xf64>"
        [("x: tensor<1x2xf64>", Any), ("g: tensor<1x2xf64>", Any), ("u: tensor<1x2xf64>", Any)]
        "%y = matmul_gated %x, %g, %u {act = \"gelu_tanh\"} : tensor<1x1xf64>";
    "matmul_multi": [("x: tensor<2x2xf64>", Any), ("a: tensor<1x2xf64>", Any), ("b: tensor<2x2xf64>", Any), ("r: tensor<2xf64>", Any)]
        "%y, %z = matmul_multi %x, %a, %b, %r {weights = 2, biases = [1]} : tensor<2x1xf64>, tensor<2x2xf64>";
}
