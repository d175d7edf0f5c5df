//! Running functions: symbols, calls, constants, donation, bounds, located errors.

use std::sync::Arc;

use aether_ir::module::Operand;
use aether_ir::tensor::Bytes;
use aether_ir::{
    Attrs, Bindings, Const, ConstData, ConstSource, DType, Dim, FuncBuilder, InterpOptions,
    Interpreter, Module, Op, Tensor, TensorType, ValueId,
};

fn f32s(dims: &[Dim]) -> TensorType {
    TensorType::new(DType::F32, dims.iter().cloned())
}

fn s() -> Dim {
    Dim::symbol("s")
}

fn column(values: &[f32]) -> Tensor {
    Tensor::from_f32(&[values.len()], values).unwrap()
}

/// `@main(%x: [s]) = @double(%x) + @one`, `@double(%x: [s]) = %x + %x`.
fn doubling() -> Module {
    let mut m = Module::new("m");
    m.declare_symbol("s", 1, 8);
    m.add_const(
        "one",
        TensorType::scalar(DType::F32),
        ConstData::Dense(Arc::from(1f32.to_le_bytes())),
    );
    let mut f = FuncBuilder::new("double");
    let x = f.param("x", f32s(&[s()]));
    let y = f.op(Op::Add, &[x, x], Attrs::new()).unwrap();
    m.add_func(f.finish(&[y]));
    let mut f = FuncBuilder::new("main");
    let x = f.param("x", f32s(&[s()]));
    let one = f.constant("one", TensorType::scalar(DType::F32));
    let y = f.call("double", &[x.into()], &[f32s(&[s()])])[0];
    let z = f.op(Op::Add, &[y, one], Attrs::new()).unwrap();
    m.add_func(f.finish(&[z]));
    m
}

#[test]
fn symbols_take_the_lengths_of_arguments() {
    let m = doubling();
    let interp = Interpreter::new(&m);
    for n in [1, 3, 8] {
        let x: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let want: Vec<f32> = x.iter().map(|v| 2.0 * v + 1.0).collect();
        assert_eq!(interp.run("main", vec![column(&x)]).unwrap(), [column(&want)]);
    }
}

#[test]
fn arguments_are_checked() {
    let mut m = doubling();
    let mut f = FuncBuilder::new("two");
    let x = f.param("x", f32s(&[s()]));
    let y = f.param("y", f32s(&[s(), &s() + &Dim::new(1)]));
    m.add_func(f.finish(&[x, y]));
    let interp = Interpreter::new(&m);
    let zeros = |dtype, shape: &[usize]| Tensor::zeros(dtype, shape).unwrap();
    let table = [
        ("main", vec![], "expected 1 arguments, found 0"),
        ("main", vec![zeros(DType::F32, &[9])], "symbol `s` is 9, outside its range 1..=8"),
        ("main", vec![zeros(DType::F32, &[0])], "symbol `s` is 0, outside its range 1..=8"),
        ("main", vec![zeros(DType::F16, &[2])], "%x is tensor<[s]xf32>, found tensor<2xf16>"),
        ("main", vec![zeros(DType::F32, &[2, 2])], "%x is tensor<[s]xf32>, found"),
        (
            "two",
            vec![zeros(DType::F32, &[2]), zeros(DType::F32, &[3, 4])],
            "symbol `s` is 2 in an earlier argument, but 3 in %y",
        ),
        (
            "two",
            vec![zeros(DType::F32, &[2]), zeros(DType::F32, &[2, 4])],
            "%y is tensor<2x3xf32> here, found tensor<2x4xf32>",
        ),
        ("none", vec![], "no such function"),
    ];
    for (func, args, message) in table {
        let e = interp.run(func, args).unwrap_err();
        assert!(e.message.contains(message), "{e}");
        assert_eq!((&*e.func, e.inst), (func, None));
    }
    assert!(interp.run("two", vec![zeros(DType::F32, &[2]), zeros(DType::F32, &[2, 3])]).is_ok());
}

#[test]
fn symbols_that_no_argument_binds_come_from_the_caller() {
    let mut m = Module::new("m");
    m.declare_symbol("n", 1, 4);
    let mut f = FuncBuilder::new("main");
    let ty = TensorType::new(DType::I32, [Dim::symbol("n")]);
    let x = f.op_to(Op::Iota, &[], Attrs::new().with("axis", 0i64), ty).unwrap();
    m.add_func(f.finish(&[x]));
    let interp = Interpreter::new(&m);
    let e = interp.run("main", vec![]).unwrap_err();
    assert!(e.message.contains("symbol `n` in tensor<[n]xi32> has no value"), "{e}");
    let n = Bindings::from([("n".into(), 3)]);
    let want = Tensor::from_i32(&[3], &[0, 1, 2]).unwrap();
    assert_eq!(interp.run_bound("main", vec![], &n).unwrap(), [want]);
    let n = Bindings::from([("n".into(), 5)]);
    assert!(interp.run_bound("main", vec![], &n).unwrap_err().message.contains("1..=4"));
}

#[test]
fn errors_name_the_instruction_and_its_callers() {
    let mut m = Module::new("m");
    let i32s = TensorType::scalar(DType::I32);
    let mut f = FuncBuilder::new("inner");
    let x = f.param("x", i32s.clone());
    let y = f.op(Op::Sub, &[x, x], Attrs::new()).unwrap();
    let z = f.op(Op::Div, &[x, y], Attrs::new()).unwrap();
    m.add_func(f.finish(&[z]));
    let mut f = FuncBuilder::new("main");
    let x = f.param("x", i32s.clone());
    let y = f.call("inner", &[x.into()], &[i32s])[0];
    m.add_func(f.finish(&[y]));
    m.funcs["inner"].body[1].span = 7..9;
    let e = Interpreter::new(&m).run("main", vec![Tensor::scalar_i32(1)]).unwrap_err();
    assert_eq!((e.inst, e.span.clone()), (Some((1, Op::Div)), 7..9));
    assert_eq!(
        e.to_string(),
        "in @inner, instruction 1 (`div`), called by @main, instruction 0: integer division by zero"
    );
}

/// A chain of `n` functions, each calling the next `times` times; the last returns its argument.
fn chain(n: usize, times: usize) -> Module {
    let mut m = Module::new("m");
    let ty = TensorType::scalar(DType::F32);
    for i in 0..n {
        let mut f = FuncBuilder::new(format!("f{i}"));
        let mut x = f.param("x", ty.clone());
        for _ in 0..if i + 1 < n { times } else { 0 } {
            x = f.call(format!("f{}", i + 1), &[x.into()], std::slice::from_ref(&ty))[0];
        }
        m.add_func(f.finish(&[x]));
    }
    m
}

#[test]
fn calls_are_bounded() {
    let one = || vec![Tensor::scalar_f32(1.0)];
    let m = chain(60, 1);
    assert_eq!(Interpreter::new(&m).run("f0", one()).unwrap(), one());
    let m = chain(200, 1);
    let e = Interpreter::new(&m).run("f0", one()).unwrap_err();
    assert!(e.message.contains("nested deeper than 64"), "{e}");
    let m = chain(40, 2);
    let options = InterpOptions { max_steps: 1000, ..InterpOptions::default() };
    let e = Interpreter::new(&m).with_options(options).run("f0", one()).unwrap_err();
    assert!(e.message.contains("more than 1000 steps"), "{e}");

    let mut m = chain(3, 1);
    let last = m.funcs["f1"].clone();
    m.funcs["f2"].body = last.body;
    m.funcs["f2"].values = last.values;
    m.funcs["f2"].returns = last.returns;
    m.funcs["f2"].body[0].symbol = Some("f0".into());
    let e = Interpreter::new(&m).run("f0", one()).unwrap_err();
    assert!(e.message.contains("f0 -> f1 -> f2 -> f0"), "{e}");
    m.funcs["f2"].body[0].symbol = Some("gone".into());
    let e = Interpreter::new(&m).run("f0", one()).unwrap_err();
    assert!(e.message.contains("no function @gone"), "{e}");
}

#[test]
fn memory_is_bounded_and_freed_at_the_last_use() {
    let mut m = Module::new("m");
    let mut f = FuncBuilder::new("main");
    let mut x = f.param("x", f32s(&[Dim::new(256)]));
    for _ in 0..100 {
        x = f.op(Op::Neg, &[x], Attrs::new()).unwrap();
        // Never used: takes no memory.
        f.op(Op::Abs, &[x], Attrs::new()).unwrap();
    }
    m.add_func(f.finish(&[x]));
    let mut kept = FuncBuilder::new("keeps");
    let x = kept.param("x", f32s(&[Dim::new(256)]));
    let all: Vec<ValueId> = (0..3).map(|_| kept.op(Op::Neg, &[x], Attrs::new()).unwrap()).collect();
    m.add_func(kept.finish(&all));
    let options = InterpOptions { max_live_bytes: 2048, ..InterpOptions::default() };
    let interp = Interpreter::new(&m).with_options(options);
    let x = Tensor::zeros(DType::F32, &[256]).unwrap();
    assert!(interp.run("main", vec![x.clone()]).is_ok());
    let e = interp.run("keeps", vec![x.clone()]).unwrap_err();
    assert!(e.message.contains("take 3072 bytes, more than 2048"), "{e}");
    let options = InterpOptions { max_elements: 255, ..InterpOptions::default() };
    let e = Interpreter::new(&m).with_options(options).run("main", vec![x]).unwrap_err();
    assert!(e.message.contains("more than 255 elements"), "{e}");
}

#[test]
fn what_is_donated_is_gone() {
    let mut m = Module::new("m");
    let mut f = FuncBuilder::new("main");
    let x = f.param("x", TensorType::scalar(DType::F32));
    let given = Operand { value: x, donated: true };
    f.op_multi(Op::Neg, &[given], Attrs::new(), &[]).unwrap();
    let y = f.op(Op::Abs, &[x], Attrs::new()).unwrap();
    m.add_func(f.finish(&[y]));
    let e = Interpreter::new(&m).run("main", vec![Tensor::scalar_f32(1.0)]).unwrap_err();
    assert!(e.message.contains("after it was donated") && e.inst == Some((1, Op::Abs)), "{e}");
}

type Change = fn(&mut Module);

#[test]
fn modules_that_were_not_verified_give_errors() {
    let wrong = |change: Change| {
        let mut m = doubling();
        change(&mut m);
        Interpreter::new(&m).run("main", vec![column(&[1.0])]).unwrap_err().message
    };
    let table: [(Change, &str); 9] = [
        (|m| m.funcs["main"].body[2].operands[0] = ValueId(99).into(), "value 99 does not exist"),
        (|m| m.funcs["main"].body[2].results[0] = ValueId(99), "value 99 does not exist"),
        (|m| m.funcs["main"].returns[0] = ValueId(99), "value 99 does not exist"),
        (|m| m.funcs["main"].params[0] = ValueId(99), "parameter 99 has no type"),
        (|m| m.funcs["main"].body.swap(1, 2), "operand 0 has no value"),
        (|m| m.funcs["main"].body[0].symbol = Some("two".into()), "no constant @two"),
        (|m| m.consts["one"].ty = f32s(&[Dim::new(2)]), "takes 8 bytes, not 4"),
        (|m| m.funcs["main"].result_types.clear(), "expected 0 results, found 1"),
        (|m| m.symbols.clear(), "symbol `s` is not declared"),
    ];
    for (change, message) in table {
        let e = wrong(change);
        assert!(e.contains(message), "{e}");
    }
}

/// Serves one constant and counts how often it is asked.
struct Counting<'a>(&'a std::sync::atomic::AtomicUsize);

impl ConstSource for Counting<'_> {
    fn load(&self, name: &str, _: &Const) -> Result<Bytes, String> {
        assert_eq!(name, "one");
        self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Bytes::from_owner(5f32.to_le_bytes()))
    }
}

#[test]
fn constants_come_from_the_source_once() {
    let m = doubling();
    let count = std::sync::atomic::AtomicUsize::new(0);
    let interp = Interpreter::new(&m).with_source(Counting(&count));
    for _ in 0..2 {
        assert_eq!(interp.run("main", vec![column(&[1.0])]).unwrap(), [column(&[7.0])]);
    }
    assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
}

#[test]
fn constants_in_files_are_checked_before_they_are_read() {
    let dir = std::env::temp_dir().join(format!("aether-interp-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("weights");
    std::fs::write(&path, [[0; 4], 3f32.to_le_bytes()].concat()).unwrap();
    let run = |path: &str, offset, bytes| {
        let mut m = doubling();
        m.consts["one"].data =
            ConstData::File { path: path.to_owned(), offset, bytes, sha256: None };
        Interpreter::new(&m)
            .with_source(aether_ir::FileSource { base: dir.clone() })
            .run("main", vec![column(&[1.0])])
    };
    assert_eq!(run("weights", 4, 4).unwrap(), [column(&[5.0])]);
    let table = [
        ("weights", 5, 4, "is no file that holds 4 bytes from offset 5 on"),
        ("weights", u64::MAX, 4, "is no file that holds"),
        ("weights", 0, u64::MAX, "is no file that holds"),
        ("weights", 0, 8, "takes 4 bytes, not 8"),
        ("missing", 0, 4, "cannot read"),
        (".", 0, 4, "is no file that holds"),
    ];
    for (path, offset, bytes, message) in table {
        let e = run(path, offset, bytes).unwrap_err().message;
        assert!(e.contains(message) && e.contains("@one"), "{e}");
    }
    std::fs::remove_dir_all(&dir).unwrap();
}
