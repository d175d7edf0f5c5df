//! Each rule of `simplify` alone, on random typed instances, against the reference interpreter
//! within the distance that the rule states; and rules that are wrong, which must be found out.

mod instance;

use aether_ir::target::Target;
use aether_ir::tensor::ConcreteType;
use aether_ir::text::print;
use aether_ir::{Bindings, Interpreter, Module, Tensor};
use aether_passes::egraph::Term;
use aether_passes::simplify::rule::Legality::{self, Exact, Limit, Within, ZeroSign};
use aether_passes::simplify::rule::{Rule, epsilon, rule};
use aether_passes::simplify::{rewrite_result, rules};
use aether_passes::{GenericTarget, PassCtx, Pipeline, cost};

/// Instances on which each rule is compared: 100, or as many as `AETHER_INSTANCES` says, for a
/// longer search.
fn instances() -> usize {
    std::env::var("AETHER_INSTANCES").ok().and_then(|n| n.parse().ok()).unwrap_or(100)
}

/// Draws for each instance after which a rule counts as impossible to instantiate.
const DRAWS: usize = 600;

/// Random elements; with `special` also zeros of both signs, infinities, NaN and extremes.
fn tensor(rng: &mut fastrand::Rng, ty: &ConcreteType, special: bool) -> Tensor {
    let n = ty.numel().unwrap();
    if ty.dtype.is_float() {
        let odd = [0.0, -0.0, f64::INFINITY, f64::NEG_INFINITY, f64::NAN, 1.0, -1.0, 0.5];
        let mut value = || match special && rng.u8(..4) == 0 {
            true => odd[rng.usize(..odd.len())],
            false => rng.f64() * 6.0 - 3.0,
        };
        let values: Vec<f64> = (0..n).map(|_| value()).collect();
        return Tensor::from_f64(ty.dtype, &ty.shape, &values).unwrap();
    }
    let mut value = || match special && rng.u8(..4) == 0 {
        true => rng.i64(..),
        false => rng.i64(-3..=3),
    };
    let values: Vec<i64> = (0..n).map(|_| value()).collect();
    Tensor::from_i64(ty.dtype, &ty.shape, &values).unwrap()
}

/// The first element that lies too far from what it should be.
fn difference(found: &Tensor, want: &Tensor, scale: f64, legality: Legality) -> Option<String> {
    if found.ty() != want.ty() {
        return Some(format!("{} instead of {}", found.ty(), want.ty()));
    }
    let unit = epsilon(want.dtype());
    let (f, w) = (found.to_f64_vec().unwrap(), want.to_f64_vec().unwrap());
    let exact_ints = !want.dtype().is_float() && found.bytes() != want.bytes();
    for (i, (f, w)) in f.iter().zip(&w).enumerate() {
        let same = f == w || (f.is_nan() && w.is_nan());
        let fits = match legality {
            Exact => same && (f.is_nan() || f.is_sign_negative() == w.is_sign_negative()),
            ZeroSign => same,
            Within(units) | Limit(units) => same || (f - w).abs() <= units * unit * scale,
        };
        if !fits || (exact_ints && matches!(legality, Exact | ZeroSign)) {
            return Some(format!("element {i} is {f:e}, expected {w:e}, scale {scale}"));
        }
    }
    None
}

/// Compares before and after on random inputs; `Err` says how they differ.
fn compare(
    rng: &mut fastrand::Rng,
    before: &Module,
    after: &Module,
    legality: Legality,
) -> Result<bool, String> {
    let bindings = Bindings::from([("s".into(), rng.u64(1..=instance::S_MAX))]);
    let special = !matches!(legality, Limit(_)) && rng.bool();
    let main = &before.funcs["main"];
    let args: Vec<Tensor> = main
        .params
        .iter()
        .map(|&p| tensor(rng, &ConcreteType::of(main.ty(p), &bindings).unwrap(), special))
        .collect();
    let run = |m: &Module| Interpreter::new(m).run_bound("main", args.clone(), &bindings);
    // A division by zero, say.
    let Ok(want) = run(before) else { return Ok(false) };
    let found = run(after).map_err(|e| format!("fails only after: {e}"))?;
    let magnitude = |t: &Tensor| {
        let finite = t.to_f64_vec().unwrap().into_iter().filter(|v| v.is_finite());
        finite.fold(0.0f64, |m, v| m.max(v.abs()))
    };
    let scale = args.iter().chain(&want).map(magnitude).fold(0.0, f64::max);
    match difference(&found[0], &want[0], scale, legality) {
        Some(message) => Err(format!("{message}\narguments {:?}", values(&args))),
        None => Ok(true),
    }
}

fn values(args: &[Tensor]) -> Vec<Vec<f64>> {
    args.iter().map(|t| t.to_f64_vec().unwrap()).collect()
}

/// Draws instances of every form of the rule until enough were compared.
fn check(rule: &'static Rule, rng: &mut fastrand::Rng) -> Result<(), String> {
    let each = instances().div_ceil(rule.forms.len());
    for text in rule.forms {
        let form = Term::parse(text)?;
        let (mut compared, mut draws) = (0, 0);
        while compared < each {
            draws += 1;
            if draws > DRAWS * each {
                return Err(format!("{text}: {compared} instances in {draws} draws"));
            }
            let Some(before) = instance::draw(rng, rule, &form) else { continue };
            let func = &before.funcs["main"];
            let rewritten = rewrite_result(&before, func, rule).map_err(|e| e.to_string())?;
            let Some(rewritten) = rewritten else { continue };
            let mut after = before.clone();
            after.add_func(rewritten);
            let about = |message: String| {
                format!("{message}\nbefore\n{}after\n{}", print(&before), print(&after))
            };
            if let Err(d) = aether_ir::verify(&after) {
                return Err(about(aether_ir::text::explain(&after, &d)));
            }
            compared += usize::from(compare(rng, &before, &after, rule.legality).map_err(about)?);
        }
    }
    Ok(())
}

#[test]
fn each_rule_alone_keeps_the_meaning() {
    let mut failures = Vec::new();
    for (i, rule) in rules::all().enumerate() {
        let mut rng = fastrand::Rng::with_seed(i as u64);
        if let Err(message) = check(rule, &mut rng) {
            failures.push(format!("{}: {message}", rule.name));
        }
    }
    assert!(failures.is_empty(), "{} rules:\n{}", failures.len(), failures.join("\n\n"));
}

/// Rules that are wrong in ways that are easy to overlook.
static WRONG: &[Rule] = &[
    rule("x-times-zero", &["(mul ?x 0)"], "0", ZeroSign, "Wrong for infinities and NaN."),
    rule("x-minus-x", &["(sub ?x ?x)"], "0", ZeroSign, "Wrong for infinities and NaN."),
    rule("zero-sign", &["(add ?x 0)"], "?x", Exact, "Wrong for -0."),
    rule("equal-to-itself", &["(eq ?x ?x)"], "1", Exact, "Wrong for NaN."),
    rule("not-less", &["(not (lt ?x ?y))"], "(ge ?x ?y)", Exact, "Wrong for NaN."),
    rule("square-root-of-square", &["(sqrt (mul ?x ?x))"], "?x", Within(2.0), "Wrong below 0."),
    rule(
        "sum-forgets-count",
        &["(reduce_sum{?a} (broadcast ?x))"],
        "(reshape ?x)",
        Within(2.0),
        "Wrong factor.",
    ),
    rule(
        "transpose-lost",
        &["(matmul{?a} ?x (transpose{?p} ?w))"],
        "(matmul{?a} ?x ?w)",
        Within(2.0),
        "Wrong side.",
    ),
    rule(
        "reassociated",
        &["(add (add ?x ?y) ?z)"],
        "(add ?x (add ?y ?z))",
        Exact,
        "Rounds elsewhere.",
    ),
    rule("never", &["(neg (iota{?a} ?x))"], "?x", Exact, "Cannot be instantiated."),
];

#[test]
fn wrong_rules_are_found_out() {
    for rule in WRONG {
        let result = check(rule, &mut fastrand::Rng::with_seed(1));
        assert!(result.is_err(), "{} passed", rule.name);
    }
}

/// Runs a pipeline with the rules switched off for which `off` holds.
fn run(module: &Module, text: &str, off: impl Fn(&Rule) -> bool) -> Module {
    let mut ctx = PassCtx::new(&GenericTarget);
    ctx.disabled = rules::all().filter(|r| off(r)).map(|r| r.name.to_owned()).collect();
    let mut after = module.clone();
    let result = Pipeline::parse(text).unwrap().run(&mut after, &ctx, &mut ());
    result.unwrap_or_else(|e| panic!("{e}\nbefore\n{}", print(module)));
    after
}

/// All exact rules together, in functions where each has something to do, change no bit; and
/// what comes out is not changed again.
#[test]
fn exact_rules_together_change_no_bit() {
    let exact: Vec<&'static Rule> = rules::all().filter(|r| r.legality == Exact).collect();
    let mut rng = fastrand::Rng::with_seed(7);
    let (mut compared, mut shorter) = (0, 0);
    while compared < 400 {
        let Some(before) = instance::draw_many(&mut rng, &exact) else { continue };
        let after = run(&before, "simplify", |r| r.legality != Exact);
        assert_eq!(print(&run(&after, "simplify", |r| r.legality != Exact)), print(&after));
        let insts = |m: &Module| m.funcs["main"].body.len();
        shorter += usize::from(insts(&after) < insts(&before));
        let bindings = Bindings::from([("s".into(), rng.u64(1..=instance::S_MAX))]);
        let main = &before.funcs["main"];
        let args: Vec<Tensor> = main
            .params
            .iter()
            .map(|&p| tensor(&mut rng, &ConcreteType::of(main.ty(p), &bindings).unwrap(), true))
            .collect();
        let eval = |m: &Module| Interpreter::new(m).run_bound("main", args.clone(), &bindings);
        let Ok(want) = eval(&before) else { continue };
        let found = eval(&after).unwrap_or_else(|e| panic!("{e}\n{}", print(&after)));
        for (f, w) in found.iter().zip(&want) {
            if let Some(message) = difference(f, w, 0.0, Exact) {
                let (before, after) = (print(&before), print(&after));
                panic!("{message}\n{:?}\nbefore\n{before}after\n{after}", values(&args));
            }
        }
        compared += 1;
    }
    assert!(shorter > 300, "{shorter} of {compared} became shorter");
}

/// Every rule at work: the result verifies, is idempotent, and costs no more than before.
#[test]
fn all_rules_together_settle_and_save() {
    let all: Vec<&'static Rule> = rules::all().collect();
    let mut rng = fastrand::Rng::with_seed(8);
    let ctx = PassCtx::new(&GenericTarget);
    let mut drawn = 0;
    while drawn < 300 {
        let Some(before) = instance::draw_many(&mut rng, &all) else { continue };
        drawn += 1;
        let after = run(&before, "simplify", |_| false);
        assert_eq!(print(&run(&after, "simplify", |_| false)), print(&after));
        let seconds = |m: &Module| GenericTarget.seconds(&cost::of_module(m, &ctx));
        let (old, new) = (seconds(&before), seconds(&after));
        assert!(new <= old * (1.0 + 1e-9), "{old} {new}\n{}{}", print(&before), print(&after));
    }
}

#[test]
fn rules_are_listed() {
    let list: Vec<String> = rules::all()
        .map(|r| {
            let forms = r.forms.join("\n    ");
            format!("{} [{:?}]\n    {forms}\n    => {}", r.name, r.legality, r.rhs)
        })
        .collect();
    insta::assert_snapshot!(list.join("\n"));
}
