//! Placement keeps the meaning: random modules on random devices against the reference
//! interpreter, and what the parts of a small model look like.

#[path = "common/graphs.rs"]
mod graphs;

use std::collections::BTreeSet;

use aether_ir::tensor::ConcreteType;
use aether_ir::text::{print_module, strip_spans};
use aether_ir::{Bindings, Interpreter, Module, Op, Symbol, Tensor, ValueId, parse_and_verify};
use aether_passes::place::{Device, PlaceError, Placed, last_calls, on_device, place};

fn arguments(rng: &mut fastrand::Rng, module: &Module, s: u64) -> Vec<Tensor> {
    let main = &module.funcs["main"];
    let bindings = Bindings::from([("s".into(), s)]);
    let argument = |&p: &ValueId| {
        let ty = ConcreteType::of(main.ty(p), &bindings).unwrap();
        let numbers: Vec<f64> = (0..ty.numel().unwrap()).map(|_| rng.f64() - 0.5).collect();
        Tensor::from_f64(ty.dtype, &ty.shape, &numbers).unwrap()
    };
    main.params.iter().map(argument).collect()
}

/// The module verifies, reads back from its text, and its entry only calls parts that can each be
/// compiled alone.
fn assert_sound(Placed { module, parts }: &Placed) {
    let text = print_module(module);
    let mut again = parse_and_verify(&text).unwrap_or_else(|d| panic!("{d:?}\n{text}"));
    strip_spans(&mut again);
    assert_eq!(print_module(&again), text);
    let main = &module.funcs["main"];
    let called = main.body.iter().filter(|inst| inst.op == Op::Call);
    let called: Vec<_> = called.filter_map(|inst| inst.symbol.as_deref()).collect();
    assert_eq!(called, parts.iter().map(|part| &*part.func).collect::<Vec<_>>(), "{text}");
    for inst in &main.body {
        assert!(matches!(inst.op, Op::Call | Op::Transfer), "{text}");
    }
    assert!(parts.windows(2).all(|pair| pair[0].device != pair[1].device), "{text}");
    for part in parts {
        let func = &module.funcs[&part.func];
        let types = |values: &mut dyn Iterator<Item = ValueId>| -> Vec<aether_ir::TensorType> {
            values.map(|v| func.ty(v).clone()).collect()
        };
        let all = types(&mut (0..func.values.len() as u32).map(ValueId));
        let symbols: BTreeSet<Symbol> =
            all.iter().flat_map(|ty| &ty.shape.0).flat_map(aether_ir::Dim::symbols).collect();
        let params = types(&mut func.params.iter().copied());
        for s in symbols {
            let told = params.iter().flat_map(|ty| &ty.shape.0).any(|d| d.is_symbol(&s));
            assert!(told, "@{} cannot learn `{s}`\n{text}", part.func);
        }
    }
}

fn donations(module: &Module, func: &str) -> usize {
    let operands = module.funcs[func].body.iter().flat_map(|inst| &inst.operands);
    operands.filter(|o| o.donated).count()
}

#[test]
fn meaning_stays_the_same_on_random_modules() {
    let (mut split, mut crossed, mut given) = (0, 0, 0);
    for seed in 0..400 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let module = graphs::module(&mut rng, 12);
        let main = &module.funcs["main"];
        let devices: Vec<Device> =
            main.body.iter().map(|_| [Device::Cpu, Device::Gpu][rng.usize(..2)]).collect();
        let placed = place(&module, "main", &devices).unwrap();
        assert_eq!(placed, place(&module, "main", &devices).unwrap());
        assert_sound(&placed);
        let s = rng.u64(1..=graphs::S_MAX);
        let args = arguments(&mut rng, &module, s);
        let want = Interpreter::new(&module).run("main", args.clone()).unwrap();
        let got = Interpreter::new(&placed.module).run("main", args).unwrap();
        assert_eq!(got.len(), want.len());
        for (g, w) in got.iter().zip(&want) {
            assert_eq!((g.ty(), g.bytes()), (w.ty(), w.bytes()), "seed {seed}");
        }
        split += usize::from(placed.parts.len() > 1);
        crossed += placed.module.funcs["main"].body.len() - placed.parts.len();
        given += donations(&placed.module, "main");
    }
    assert!(split > 200 && crossed > 200 && given > 50, "{split} {crossed} {given}");
}

#[test]
fn donated_values_stay_so_in_part_and_call() {
    for seed in 0..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let module = graphs::module(&mut rng, 10);
        let main = &module.funcs["main"];
        let devices = vec![Device::Gpu; main.body.len()];
        let placed = place(&module, "main", &devices).unwrap();
        let fixed = on_device(main);
        let kept = main.body.iter().zip(&fixed).filter(|&(_, &on)| on);
        let want: usize = kept.flat_map(|(inst, _)| &inst.operands).filter(|o| o.donated).count();
        let got: usize =
            placed.parts.iter().map(|part| donations(&placed.module, &part.func)).sum();
        assert_eq!(got, want, "seed {seed}");
    }
}

const MODEL: &str = "module @model {
  sym t in 1..=8
  func @layer(%x: tensor<[t]x2xf32>, %k: tensor<16x1x2xf32>, %past: tensor<i32>) -> (tensor<[t]x2xf32>, tensor<16x1x2xf32>) {
    %r = reshape %x : tensor<[t]x1x2xf32>
    %k1 = kv_append donate %k, %r, %past : tensor<16x1x2xf32>
    %y = silu %x : tensor<[t]x2xf32>
    return %y, %k1
  }
  func @main(%tokens: tensor<[t]xi32>, %past: tensor<i32>, %k0: tensor<16x1x2xf32>, %k1: tensor<16x1x2xf32>) -> (tensor<[t]x2xf32>, tensor<16x1x2xf32>, tensor<16x1x2xf32>, tensor<i32>) {
    %e = splat {value = 0.5} : tensor<4x2xf32>
    %x = gather %e, %tokens {axis = 0} : tensor<[t]x2xf32>
    %x0, %c0 = call @layer %x, donate %k0, %past : tensor<[t]x2xf32>, tensor<16x1x2xf32>
    %x1, %c1 = call @layer %x0, donate %k1, %past : tensor<[t]x2xf32>, tensor<16x1x2xf32>
    %s = softmax %x1 {axis = -1} : tensor<[t]x2xf32>
    return %s, %c0, %c1, %past
  }
}
";

fn model() -> Module {
    parse_and_verify(MODEL).unwrap()
}

#[test]
fn the_last_calls_go_to_the_gpu() {
    let main = &model().funcs["main"];
    // splat, gather, two calls, softmax.
    let table = [(0, "ccccc"), (1, "cccgc"), (2, "ccggc"), (3, "ccggg"), (9, "ccggg")];
    for (n, want) in table {
        let devices = last_calls(main, n);
        let got: String = devices.iter().map(|d| &d.name()[..1]).collect();
        assert_eq!(got, want, "{n}");
    }
}

#[test]
fn a_model_in_two_parts() {
    let module = model();
    let devices = last_calls(&module.funcs["main"], 3);
    let placed = place(&module, "main", &devices).unwrap();
    assert_sound(&placed);
    insta::assert_snapshot!(print_module(&placed.module));
}

#[test]
fn independent_chains_change_devices_once() {
    let mut text = "module @m {\n  func @main(%a0: tensor<4xf32>, %b0: tensor<4xf32>) -> (tensor<4xf32>, tensor<4xf32>) {\n".to_owned();
    let mut devices = Vec::new();
    for i in 0..6 {
        for (name, device) in [("a", Device::Cpu), ("b", Device::Gpu)] {
            text += &format!("    %{name}{} = exp %{name}{i} : tensor<4xf32>\n", i + 1);
            devices.push(device);
        }
    }
    text += "    return %a6, %b6\n  }\n}\n";
    let placed = place(&parse_and_verify(&text).unwrap(), "main", &devices).unwrap();
    assert_sound(&placed);
    assert_eq!(placed.parts.len(), 2);
}

#[test]
fn a_length_whose_value_was_given_away_is_left_behind() {
    let text = "module @m {
  sym s in 1..=8
  func @main(%x: tensor<[s]x2xf32>) -> tensor<[s*2]xf32> {
    %f = reshape donate %x : tensor<[s*2]xf32>
    %e = exp donate %f : tensor<[s*2]xf32>
    return %e
  }
}
";
    let module = parse_and_verify(text).unwrap();
    let placed = place(&module, "main", &[Device::Cpu, Device::Gpu]).unwrap();
    assert_sound(&placed);
    let part = &placed.module.funcs[&placed.parts[0].func];
    assert!(part.body.iter().any(|inst| inst.op == Op::Splat), "{part:?}");
}

#[test]
fn what_cannot_be_placed_is_an_error() {
    let module = model();
    assert!(matches!(place(&module, "nobody", &[]), Err(PlaceError::NoFunction(_))));
    let error = place(&module, "main", &[]).unwrap_err();
    assert!(matches!(error, PlaceError::Devices { expected: 5, found: 0, .. }), "{error}");
    let text = "module @m {
  sym s in 1..=8
  func @main(%x: tensor<[s*2]xf32>) -> tensor<[s*2]xf32> {
    %e = exp %x : tensor<[s*2]xf32>
    return %e
  }
}
";
    let error = place(&parse_and_verify(text).unwrap(), "main", &[Device::Gpu]).unwrap_err();
    assert!(matches!(&error, PlaceError::Symbol { symbol, .. } if &**symbol == "s"), "{error}");
}
