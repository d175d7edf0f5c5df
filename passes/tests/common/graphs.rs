//! Random modules that verify: calls, donation, reshapes, caches, constants, values returned twice.

use aether_ir::{
    Attrs, ConstData, DType, Dim, FuncBuilder, Module, Op, Operand, TensorType, ValueId, donate,
};

/// Greatest value of the symbol `s`.
pub const S_MAX: u64 = 8;

struct Signature {
    name: String,
    params: Vec<TensorType>,
    results: Vec<TensorType>,
}

struct Generator<'r> {
    rng: &'r mut fastrand::Rng,
    f: FuncBuilder,
    /// Values that may be used, with their types; constants cannot be given away.
    usable: Vec<(ValueId, TensorType, bool)>,
}

fn f32s<D: Into<Dim>>(dims: impl IntoIterator<Item = D>) -> TensorType {
    TensorType::new(DType::F32, dims)
}

fn activation() -> TensorType {
    f32s([Dim::symbol("s"), Dim::new(16)])
}

fn flat() -> TensorType {
    f32s([&Dim::symbol("s") * &Dim::new(16)])
}

fn cache() -> TensorType {
    f32s([16u64, 1, 16])
}

fn rows() -> TensorType {
    f32s([Dim::symbol("s"), Dim::new(1), Dim::new(16)])
}

fn weight() -> TensorType {
    f32s([16u64, 16])
}

fn past() -> TensorType {
    TensorType::scalar(DType::I32)
}

impl Generator<'_> {
    fn add(&mut self, v: ValueId, constant: bool) {
        self.usable.push((v, self.f.ty(v).clone(), constant));
    }

    /// A usable value of that type, not among `taken`.
    fn pick(&mut self, ty: &TensorType, taken: &[Operand]) -> Option<usize> {
        let fits: Vec<usize> = (0..self.usable.len())
            .filter(|&i| {
                let (v, t, _) = &self.usable[i];
                t == ty && taken.iter().all(|o| o.value != *v || !o.donated)
            })
            .collect();
        (!fits.is_empty()).then(|| fits[self.rng.usize(..fits.len())])
    }

    /// Operands of these types, some given away.
    fn operands(&mut self, types: &[TensorType], donating: bool) -> Option<Vec<Operand>> {
        let mut operands: Vec<Operand> = Vec::new();
        for ty in types {
            let i = self.pick(ty, &operands)?;
            let (v, _, constant) = self.usable[i];
            let again = operands.iter().any(|o| o.value == v);
            let give = donating && !constant && !again && self.rng.u8(..) < 100;
            operands.push(if give { donate(v) } else { v.into() });
        }
        let gone: Vec<ValueId> = operands.iter().filter(|o| o.donated).map(|o| o.value).collect();
        self.usable.retain(|(v, ..)| !gone.contains(v));
        Some(operands)
    }

    fn op(&mut self, op: Op, types: &[TensorType], attrs: Attrs, declared: &[TensorType]) {
        let donating = self.rng.bool();
        let Some(operands) = self.operands(types, donating) else { return };
        let results = self.f.op_multi(op, &operands, attrs, declared).unwrap();
        for r in results {
            self.add(r, false);
        }
    }

    fn any_type(&mut self) -> TensorType {
        let i = self.rng.usize(..self.usable.len());
        self.usable[i].1.clone()
    }

    fn step(&mut self, signatures: &[Signature]) {
        let none = Attrs::new;
        match self.rng.u8(..12) {
            0 | 1 => {
                let ty = self.any_type();
                if ty.dtype == DType::F32 {
                    let op = [Op::Neg, Op::Exp, Op::Silu, Op::Sin][self.rng.usize(..4)];
                    self.op(op, &[ty], none(), &[]);
                }
            }
            2 | 3 => {
                let ty = self.any_type();
                let op = [Op::Add, Op::Mul, Op::Max][self.rng.usize(..3)];
                self.op(op, &[ty.clone(), ty], none(), &[]);
            }
            4 => self.op(Op::Reshape, &[activation()], none(), &[flat()]),
            5 => self.op(Op::Reshape, &[flat()], none(), &[rows()]),
            6 => self.op(Op::Reshape, &[rows()], none(), &[activation()]),
            7 => self.op(Op::KvAppend, &[cache(), rows(), past()], none(), &[]),
            8 => {
                let attrs = none().with("transpose_b", true);
                self.op(Op::Matmul, &[activation(), weight()], attrs, &[]);
            }
            9 => self.op(Op::TopK, &[activation()], none().with("k", 4i64), &[]),
            10 => {
                let name = ["w", "c"][self.rng.usize(..2)];
                let ty = if name == "w" { weight() } else { cache() };
                let v = self.f.constant(name, ty);
                self.add(v, true);
                if self.rng.bool() {
                    let r = self.f.op(Op::Neg, &[v], none()).unwrap();
                    self.add(r, false);
                }
            }
            _ if !signatures.is_empty() => {
                let callee = &signatures[self.rng.usize(..signatures.len())];
                let Some(operands) = self.operands(&callee.params, true) else { return };
                let results = self.f.call(callee.name.as_str(), &operands, &callee.results);
                for r in results {
                    self.add(r, false);
                }
            }
            _ => {}
        }
    }
}

fn function(
    rng: &mut fastrand::Rng,
    name: &str,
    signatures: &[Signature],
    steps: usize,
) -> aether_ir::Func {
    let mut generator = Generator { rng, f: FuncBuilder::new(name), usable: Vec::new() };
    let mut params = vec![activation(), weight(), cache(), past()];
    if generator.rng.bool() {
        params.push(cache());
        params.push(rows());
    }
    for (i, ty) in params.into_iter().enumerate() {
        let v = generator.f.param(&format!("p{i}"), ty);
        generator.add(v, false);
    }
    for _ in 0..generator.rng.usize(1..=steps) {
        generator.step(signatures);
    }
    let count = generator.rng.usize(1..=4);
    let returns: Vec<ValueId> = (0..count)
        .map(|_| {
            // Mostly late values, so that much of the body is used.
            let n = generator.usable.len();
            let from = if generator.rng.bool() { n.saturating_sub(4) } else { 0 };
            generator.usable[generator.rng.usize(from..n)].0
        })
        .collect();
    generator.f.finish(&returns)
}

/// A module of up to four functions of up to `steps` steps each, the last one `@main`.
pub fn module(rng: &mut fastrand::Rng, steps: usize) -> Module {
    let mut m = Module::new("random");
    m.declare_symbol("s", 1, S_MAX);
    let floats = |n: usize| -> Vec<u8> {
        (0..n).flat_map(|i| (((i * 7) % 11) as f32 / 8.0 - 0.5).to_le_bytes()).collect()
    };
    m.add_const("w", weight(), ConstData::Dense(floats(256).into()));
    m.add_const("c", cache(), ConstData::Dense(floats(256).into()));
    let mut signatures: Vec<Signature> = Vec::new();
    for i in 0..rng.usize(1..=4) {
        let func = function(rng, &format!("f{i}"), &signatures, steps);
        let params = func.params.iter().map(|&p| func.ty(p).clone()).collect();
        let results = func.result_types.clone();
        signatures.push(Signature { name: func.name.to_string(), params, results });
        m.add_func(func);
    }
    let main = function(rng, "main", &signatures, 2 * steps);
    m.add_func(main);
    m
}
