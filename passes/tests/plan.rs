//! The memory plan on random modules: the planner's plans pass the checker, and executing them
//! over one array of bytes, with everything poisoned that a plan says is free, gives bit for bit
//! what the interpreter gives. Corrupted plans are refused by the checker, or are still right.

#[path = "common/graphs.rs"]
mod graphs;

use std::collections::HashMap;

use aether_ir::plan::{FuncPlan, MemoryPlan, Storage};
use aether_ir::tensor::ConcreteType;
use aether_ir::{
    Bindings, ConstData, Func, Interpreter, Module, Op, Tensor, ValueId, eval_inst,
    parse_and_verify,
};
use aether_passes::plan::{Arena, plan, plan_in, text};
use aether_passes::plan_check::check;
use aether_passes::{GenericTarget, PassCtx};

/// Executes a plan over one array of bytes.
struct Machine<'a> {
    module: &'a Module,
    plan: &'a MemoryPlan,
    bindings: Bindings,
    memory: Vec<u8>,
}

/// Where a running function finds its buffers.
struct Frame<'a> {
    func: &'a Func,
    plan: &'a FuncPlan,
    params: Vec<usize>,
    results: Vec<usize>,
    base: usize,
    consts: HashMap<ValueId, usize>,
}

impl Frame<'_> {
    fn address(&self, v: ValueId) -> usize {
        let root = self.plan.root(v);
        match self.plan.storage[root.index()] {
            Storage::Param(j) => self.params[j],
            Storage::Result(i) => self.results[i],
            Storage::Frame { offset, .. } => self.base + offset as usize,
            Storage::Const => self.consts[&v],
            Storage::Unused | Storage::Alias(_) => panic!("no bytes"),
        }
    }
}

impl Machine<'_> {
    fn alloc(&mut self, bytes: usize) -> usize {
        let at = self.memory.len();
        self.memory.resize(at + bytes, 0xff);
        at
    }

    fn store(&mut self, tensor: &Tensor) -> usize {
        let at = self.memory.len();
        self.memory.extend_from_slice(tensor.bytes());
        at
    }

    fn ty(&self, func: &Func, v: ValueId) -> ConcreteType {
        ConcreteType::of(func.ty(v), &self.bindings).unwrap()
    }

    fn load(&self, frame: &Frame, v: ValueId) -> Tensor {
        let ty = self.ty(frame.func, v);
        let at = frame.address(v);
        let bytes = self.memory[at..at + ty.row_major_bytes().unwrap()].to_vec();
        Tensor::new(ty, bytes).unwrap()
    }

    fn poison(&mut self, at: usize, bytes: usize) {
        self.memory[at..at + bytes].fill(0xff);
    }

    /// Runs a function; gives the addresses of its results.
    fn call(
        &mut self,
        name: &str,
        params: Vec<usize>,
        results: Vec<usize>,
        base: usize,
    ) -> Vec<usize> {
        let (module, whole) = (self.module, self.plan);
        let (func, plan) = (&module.funcs[name], &whole.funcs[name]);
        let mut frame = Frame { func, plan, params, results, base, consts: HashMap::new() };
        self.poison(base, plan.frame_bytes as usize);
        for (at, inst) in func.body.iter().enumerate() {
            match plan.storage[inst.results[0].index()] {
                Storage::Const => self.load_time(&mut frame, at),
                Storage::Unused => {}
                _ => self.step(&mut frame, at),
            }
        }
        for &(i, v) in &plan.copies {
            let bytes = self.ty(func, v).row_major_bytes().unwrap();
            let from = frame.address(v);
            self.memory.copy_within(from..from + bytes, frame.results[i]);
        }
        let copied = |i: usize| plan.copies.iter().any(|c| c.0 == i);
        let place = |(i, &v)| if copied(i) { frame.results[i] } else { frame.address(v) };
        func.returns.iter().enumerate().map(place).collect()
    }

    fn load_time(&mut self, frame: &mut Frame, at: usize) {
        let inst = &frame.func.body[at];
        let types: Vec<ConcreteType> =
            inst.results.iter().map(|&r| self.ty(frame.func, r)).collect();
        let values = match inst.op {
            Op::Constant => {
                let constant = &self.module.consts[inst.symbol.as_deref().unwrap()];
                let ConstData::Dense(bytes) = &constant.data else { panic!("no dense constant") };
                vec![Tensor::new(types[0].clone(), bytes.to_vec()).unwrap()]
            }
            op => {
                let operands: Vec<Tensor> = inst.inputs().map(|v| self.load(frame, v)).collect();
                let operands: Vec<&Tensor> = operands.iter().collect();
                eval_inst(op, &inst.attrs, &operands, &types).unwrap()
            }
        };
        for (&r, value) in inst.results.iter().zip(&values) {
            let at = self.store(value);
            frame.consts.insert(r, at);
        }
    }

    fn step(&mut self, frame: &mut Frame, at: usize) {
        let (func, plan) = (frame.func, frame.plan);
        let inst = &func.body[at];
        if matches!(inst.op, Op::Reshape | Op::Broadcast)
            && plan.storage[inst.results[0].index()] == Storage::Alias(inst.operands[0].value)
        {
            return;
        }
        // A kernel may write scratch and results before it reads.
        let temporary = plan.temporary(at).map(|t| (frame.base + t.offset as usize, t.bytes));
        if let Some((at, bytes)) = temporary {
            self.poison(at, bytes as usize);
        }
        for &r in &inst.results {
            if !matches!(plan.storage[r.index()], Storage::Alias(_)) {
                let bytes = self.ty(func, r).row_major_bytes().unwrap();
                self.poison(frame.address(r), bytes);
            }
        }
        if inst.op == Op::Call {
            let operands = inst.inputs().map(|v| frame.address(v)).collect();
            let results: Vec<usize> = inst.results.iter().map(|&r| frame.address(r)).collect();
            let base = temporary.map_or(0, |t| t.0);
            let name = inst.symbol.as_deref().unwrap();
            let found = self.call(name, operands, results.clone(), base);
            assert_eq!(found, results, "results of @{name} are not where the caller looks");
            return;
        }
        let operands: Vec<Tensor> = inst.inputs().map(|v| self.load(frame, v)).collect();
        let operands: Vec<&Tensor> = operands.iter().collect();
        let types: Vec<ConcreteType> = inst.results.iter().map(|&r| self.ty(func, r)).collect();
        let values = match &inst.symbol {
            Some(name) if inst.op == Op::Fused => {
                let operands = operands.into_iter().cloned().collect();
                Interpreter::new(self.module).run_bound(name, operands, &self.bindings).unwrap()
            }
            _ => eval_inst(inst.op, &inst.attrs, &operands, &types).unwrap(),
        };
        for (&r, value) in inst.results.iter().zip(&values) {
            let at = frame.address(r);
            self.memory[at..at + value.bytes().len()].copy_from_slice(value.bytes());
        }
    }
}

fn arguments(rng: &mut fastrand::Rng, module: &Module, bindings: &Bindings) -> Vec<Tensor> {
    let main = &module.funcs["main"];
    let argument = |&p: &ValueId| {
        let ty = ConcreteType::of(main.ty(p), bindings).unwrap();
        let numbers: Vec<f64> = (0..ty.numel().unwrap()).map(|_| rng.f64() - 0.5).collect();
        Tensor::from_f64(ty.dtype, &ty.shape, &numbers).unwrap()
    };
    main.params.iter().map(argument).collect()
}

/// What the plan computes.
fn execute(
    module: &Module,
    plan: &MemoryPlan,
    args: &[Tensor],
    bindings: &Bindings,
) -> Vec<Tensor> {
    let mut machine = Machine { module, plan, bindings: bindings.clone(), memory: Vec::new() };
    let main = &module.funcs["main"];
    let params = args.iter().map(|a| machine.store(a)).collect();
    let types: Vec<ConcreteType> = main.returns.iter().map(|&v| machine.ty(main, v)).collect();
    let results = types.iter().map(|ty| machine.alloc(ty.row_major_bytes().unwrap())).collect();
    let base = machine.alloc(plan.funcs["main"].frame_bytes as usize);
    let found = machine.call("main", params, results, base);
    let tensor = |(ty, at): (ConcreteType, usize)| {
        let bytes = machine.memory[at..at + ty.row_major_bytes().unwrap()].to_vec();
        Tensor::new(ty, bytes).unwrap()
    };
    types.into_iter().zip(found).map(tensor).collect()
}

#[test]
fn random_plans_are_proved_and_compute_what_the_interpreter_does() {
    let mut rng = fastrand::Rng::with_seed(1);
    let (mut frames, mut bounds, mut worst) = (0u64, 0u64, 1.0f64);
    let (mut aliases, mut copies, mut executed, mut fused) = (0, 0, 0, 0);
    // The last rounds are with loops.
    for round in 0..2_600 {
        let mut module = graphs::module(&mut rng, 24);
        if round >= 2_000 {
            let fuse = aether_passes::Pipeline::parse("fuse").unwrap();
            fuse.run(&mut module, &PassCtx::new(&GenericTarget), &mut ()).unwrap();
            fused +=
                module.funcs.values().flat_map(|f| &f.body).filter(|i| i.op == Op::Fused).count();
        }
        aether_ir::verify(&module).unwrap_or_else(|d| {
            panic!("{}", aether_ir::text::explain(&module, &d));
        });
        let made = plan(&module, &GenericTarget).unwrap();
        if let Err(e) = check(&module, &made, &GenericTarget) {
            panic!(
                "round {round}: {e}\n{}\n{}",
                aether_ir::text::print(&module),
                text(&module, &made)
            );
        }
        for p in made.funcs.values() {
            frames += p.frame_bytes;
            bounds += p.lower_bound;
            copies += p.copies.len();
            aliases += p.storage.iter().filter(|s| matches!(s, Storage::Alias(_))).count();
            if p.lower_bound > 0 {
                worst = worst.max(p.frame_bytes as f64 / p.lower_bound as f64);
            }
        }
        let bindings = Bindings::from([("s".into(), rng.u64(1..=graphs::S_MAX))]);
        let args = arguments(&mut rng, &module, &bindings);
        let Ok(want) = Interpreter::new(&module).run("main", args.clone()) else { continue };
        assert_eq!(execute(&module, &made, &args, &bindings), want, "round {round}");
        executed += 1;
    }
    assert!(executed > 1_500, "{executed}");
    assert!(fused > 200, "{fused} loops");
    assert!(aliases > 10_000 && copies > 1_000, "{aliases} aliases, {copies} copies");
    assert!(frames as f64 <= 1.01 * bounds as f64, "{frames} over {bounds}");
    assert!(worst <= 1.10, "{worst}");
}

/// Changes a plan in one place.
fn corrupt(rng: &mut fastrand::Rng, module: &Module, plan: &mut MemoryPlan) {
    let f = rng.usize(..plan.funcs.len());
    let func = &module.funcs[f];
    let p = &mut plan.funcs[f];
    let n = p.storage.len();
    let (a, b) = (rng.usize(..n), rng.usize(..n));
    match rng.u8(..8) {
        0 => p.storage.swap(a, b),
        1 => {
            if let Storage::Frame { offset, .. } = &mut p.storage[a] {
                *offset = 256 * rng.u64(..1 + p.frame_bytes / 256);
            }
        }
        2 => {
            if let (Storage::Frame { offset: to, .. }, Storage::Frame { offset, .. }) =
                (p.storage[b], &mut p.storage[a])
            {
                *offset = to;
            }
        }
        3 => p.storage[a] = Storage::Alias(ValueId(b as u32)),
        4 => p.storage[a] = p.storage[b],
        5 => {
            if !p.temporaries.is_empty() {
                let t = rng.usize(..p.temporaries.len());
                if rng.bool() {
                    p.temporaries.remove(t);
                } else {
                    p.temporaries[t].offset = 256 * rng.u64(..1 + p.frame_bytes / 256);
                }
            }
        }
        6 => {
            let i = rng.usize(..func.returns.len());
            match p.copies.iter().position(|c| c.0 == i) {
                Some(at) => drop(p.copies.remove(at)),
                None => p.copies.push((i, func.returns[i])),
            }
        }
        _ => p.storage[a] = [Storage::Const, Storage::Unused, Storage::Result(0)][rng.usize(..3)],
    }
}

#[test]
fn corrupted_plans_are_refused_or_harmless() {
    let mut rng = fastrand::Rng::with_seed(2);
    let (mut refused, mut harmless) = (0, 0);
    for round in 0..4_000 {
        let module = graphs::module(&mut rng, 12);
        let made = plan(&module, &GenericTarget).unwrap();
        let mut bad = made.clone();
        corrupt(&mut rng, &module, &mut bad);
        if bad == made {
            continue;
        }
        if check(&module, &bad, &GenericTarget).is_err() {
            refused += 1;
            continue;
        }
        harmless += 1;
        let bindings = Bindings::from([("s".into(), graphs::S_MAX)]);
        let args = arguments(&mut rng, &module, &bindings);
        let Ok(want) = Interpreter::new(&module).run("main", args.clone()) else { continue };
        let found = execute(&module, &bad, &args, &bindings);
        assert_eq!(found, want, "round {round}\n{}", text(&module, &bad));
    }
    assert!(refused > 1_500, "{refused} refused, {harmless} harmless");
}

#[test]
fn without_sharing_no_two_values_overlap() {
    let mut rng = fastrand::Rng::with_seed(3);
    let mut executed = 0;
    for round in 0..400 {
        let module = graphs::module(&mut rng, 16);
        let made = plan_in(&module, &GenericTarget, Arena::Separate).unwrap();
        check(&module, &made, &GenericTarget).unwrap_or_else(|e| panic!("round {round}: {e}"));
        for p in made.funcs.values() {
            let values = p.storage.iter().filter_map(|s| match *s {
                Storage::Frame { offset, bytes } => Some((offset, bytes)),
                _ => None,
            });
            let temporaries = p.temporaries.iter().map(|t| (t.offset, t.bytes));
            let mut ranges: Vec<(u64, u64)> = values.chain(temporaries).collect();
            ranges.sort_unstable();
            let apart = |pair: &[(u64, u64)]| pair[0].0 + pair[0].1 <= pair[1].0;
            assert!(ranges.windows(2).all(apart), "round {round}: {ranges:?}");
        }
        let bindings = Bindings::from([("s".into(), rng.u64(1..=graphs::S_MAX))]);
        let args = arguments(&mut rng, &module, &bindings);
        let Ok(want) = Interpreter::new(&module).run("main", args.clone()) else { continue };
        assert_eq!(execute(&module, &made, &args, &bindings), want, "round {round}");
        executed += 1;
    }
    assert!(executed > 200, "{executed}");
}

#[test]
fn the_plan_of_a_small_module_is_as_written() {
    let source = "\
module @m {
  sym s in 1..=8
  const @w : tensor<16x16xf32> = file(\"m.bin\", 0, 1024)
  func @layer(%x: tensor<[s]x16xf32>, %c: tensor<16x1x16xf32>, %p: tensor<i32>) -> (tensor<[s]x16xf32>, tensor<16x1x16xf32>) {
    %w = constant @w : tensor<16x16xf32>
    %k = matmul %x, %w {transpose_b = true} : tensor<[s]x16xf32>
    %k3 = reshape %k : tensor<[s]x1x16xf32>
    %d = kv_append donate %c, %k3, %p : tensor<16x1x16xf32>
    %e = exp %k : tensor<[s]x16xf32>
    %y = add %e, %x : tensor<[s]x16xf32>
    return %y, %d
  }
  func @main(%x: tensor<[s]x16xf32>, %c: tensor<16x1x16xf32>, %p: tensor<i32>) -> (tensor<[s]x16xf32>, tensor<16x1x16xf32>, tensor<[s]x16xf32>) {
    %y, %d = call @layer %x, donate %c, %p : tensor<[s]x16xf32>, tensor<16x1x16xf32>
    %t = transpose %y {perm = [1, 0]} : tensor<16x[s]xf32>
    %u = transpose %t {perm = [1, 0]} : tensor<[s]x16xf32>
    return %u, %d, %x
  }
}
";
    let module = parse_and_verify(source).unwrap();
    let made = plan(&module, &GenericTarget).unwrap();
    check(&module, &made, &GenericTarget).unwrap();
    insta::assert_snapshot!(text(&module, &made));
}

#[test]
fn sizes_and_cycles_are_errors() {
    let source = "\
module @m {
  sym s in 1..=4000000000
  func @main(%x: tensor<[s]x512xf32>) -> tensor<[s]x512xf32> {
    %wide = exp %x : tensor<[s]x512xf32>
    return %wide
  }
}
";
    let module = parse_and_verify(source).unwrap();
    let e = plan(&module, &GenericTarget).unwrap_err();
    assert_eq!(
        e.to_string(),
        "in @main: %x of type tensor<[s]x512xf32> has no size below 2^40 bytes; \
         give its symbols smaller ranges"
    );
    let source = "\
module @m {
  func @main(%x: tensor<f32>) -> tensor<f32> {
    %y = call @main %x : tensor<f32>
    return %y
  }
}
";
    let module = aether_ir::parse_module(source).unwrap();
    let e = plan(&module, &GenericTarget).unwrap_err();
    assert_eq!(e.to_string(), "@main calls itself; calls must not form a cycle");
}
