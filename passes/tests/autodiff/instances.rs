//! Instances of ops: small functions in f64 with a domain for every parameter.

use aether_ir::{Bindings, Module, Tensor, parse_and_verify, tensor::ConcreteType};

/// The lengths of symbolic axes.
pub fn symbols() -> Bindings {
    Bindings::from([("s".into(), 3), ("t".into(), 2)])
}

/// What the elements of a parameter are.
#[derive(Clone, Copy, Debug)]
pub enum Domain {
    /// Between -1.5 and 1.5, at least 0.1 from 0.
    Any,
    /// Between 0.3 and 2.
    Positive,
    /// No two within 0.05 of each other.
    Distinct,
    /// As [`Domain::Any`], and every third is 0.
    Zeros,
    /// Integers below the number, with repetitions.
    Below(i64),
    /// All are this number.
    Is(i64),
    /// 0, 1, 2 and so on, in any order.
    Order,
}

pub use Domain::*;

/// One function with one interesting op.
pub struct Instance {
    /// Parameters as `name: type` and their domains. The types may use `[s]`, which is 3, and
    /// `[t]`, which is 2.
    pub params: &'static [(&'static str, Domain)],
    /// The body; what its last instruction gives is returned.
    pub body: &'static str,
}

impl Instance {
    /// `@main` with these parameters and this body.
    pub fn module(&self) -> Module {
        let last = self.body.lines().last().unwrap_or_default();
        let (results, _) = last.split_once(" = ").expect("results");
        let (_, types) = last.rsplit_once(" : ").expect("types");
        let params: Vec<String> = self.params.iter().map(|(p, _)| format!("%{p}")).collect();
        let text = format!(
            "module @m {{\n  sym s in 1..=8\n  sym t in 1..=8\n  func @main({}) -> ({types}) \
             {{\n{}\n    return {}\n  }}\n}}\n",
            params.join(", "),
            self.body,
            results.trim()
        );
        parse_and_verify(&text).unwrap_or_else(|d| {
            panic!("{}", aether_ir::diag::render(&d, &text, "instance"));
        })
    }

    /// Arguments of `@main` within the domains.
    pub fn arguments(&self, rng: &mut fastrand::Rng, module: &Module) -> Vec<Tensor> {
        let bindings = symbols();
        let main = &module.funcs["main"];
        let pairs = main.params.iter().zip(self.params);
        let argument = |(&p, (_, domain)): (&aether_ir::ValueId, &(_, Domain))| {
            let ty = ConcreteType::of(main.ty(p), &bindings).unwrap();
            let values = domain.values(rng, ty.numel().unwrap());
            Tensor::from_f64(ty.dtype, &ty.shape, &values).unwrap()
        };
        pairs.map(argument).collect()
    }
}

impl Domain {
    fn values(self, rng: &mut fastrand::Rng, n: usize) -> Vec<f64> {
        let mut any = |_| (0.1 + 1.4 * rng.f64()) * if rng.bool() { 1.0 } else { -1.0 };
        match self {
            Any => (0..n).map(any).collect(),
            Zeros => (0..n).map(|i| if i % 3 == 0 { 0.0 } else { any(i) }).collect(),
            Positive => (0..n).map(|_| 0.3 + 1.7 * rng.f64()).collect(),
            Distinct => {
                let mut grid: Vec<f64> = (0..n).map(|i| 0.17 * i as f64 - 0.9).collect();
                rng.shuffle(&mut grid);
                grid
            }
            Below(limit) => (0..n).map(|_| rng.i64(0..limit) as f64).collect(),
            Is(value) => vec![value as f64; n],
            Order => {
                let mut all: Vec<f64> = (0..n).map(|i| i as f64).collect();
                rng.shuffle(&mut all);
                all
            }
        }
    }
}
