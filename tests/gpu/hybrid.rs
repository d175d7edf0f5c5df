//! One module on two devices, against the reference interpreter.

use std::sync::Arc;

use aether_ir::{Bindings, DType, Interpreter, Module, Tensor, parse_and_verify};
use aether_runtime::{
    Arg, ArgData, Device, Executable, Files, Options, Placement, RuntimeError, Session, State,
    run_executable,
};

use super::graphs;
use super::support::{arguments, difference, floats, gpu};

fn compile(module: &Module, placement: Placement) -> Result<Arc<Executable>, RuntimeError> {
    let opts =
        Options { gpu: Some(gpu()), placement, verify: true, threads: 2, ..Options::default() };
    Executable::compile(module.clone(), &Files::new(), &opts).map(Arc::new)
}

fn parse(text: &str) -> Module {
    parse_and_verify(text).unwrap_or_else(|d| panic!("{d:?}"))
}

fn fixed(devices: &str) -> Placement {
    let device = |c| if c == 'g' { Device::Gpu } else { Device::Cpu };
    Placement::Fixed(devices.chars().map(device).collect())
}

/// The number of parts, and that the results are the interpreter's.
#[track_caller]
fn assert_runs(module: &Module, placement: Placement, args: &[Tensor]) -> usize {
    let want = Interpreter::new(module).run("main", args.to_vec()).unwrap();
    let exe = compile(module, placement).unwrap();
    // Twice: a second run must find nothing of the first.
    for _ in 0..2 {
        let got = run_executable(&exe, args.to_vec()).unwrap();
        assert_eq!(got.len(), want.len());
        for (i, (g, w)) in got.iter().zip(&want).enumerate() {
            if let Some(why) = difference(g, w) {
                panic!("result {i}: {why}");
            }
        }
    }
    exe.parts().len()
}

const F64: &str = "module @m {
  sym s in 1..=8
  func @main(%x: tensor<[s]x16xf32>, %y: tensor<[s]x16xf32>) -> (tensor<[s]x16xf32>, tensor<[s]x16xf64>, tensor<[s]x16xf32>) {
    %a = silu %x : tensor<[s]x16xf32>
    %w = cast %a : tensor<[s]x16xf64>
    %e = exp %w : tensor<[s]x16xf64>
    %b = cast %e : tensor<[s]x16xf32>
    %c = add %b, %y : tensor<[s]x16xf32>
    %d = softmax %c {axis = -1} : tensor<[s]x16xf32>
    %f = mul %d, %a : tensor<[s]x16xf32>
    return %f, %e, %y
  }
}
";

#[test]
fn what_the_gpu_has_no_numbers_for_runs_on_the_cpu() {
    let module = parse(F64);
    let args = [floats(&[5, 16], 1), floats(&[5, 16], 2)];
    assert_eq!(assert_runs(&module, Placement::Supported, &args), 3);
    let error = compile(&module, Placement::Whole).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("has no kernel on the GPU") && error.contains("hybrid"), "{error}");
}

#[test]
fn one_device_alone_is_not_split() {
    let module = parse(F64);
    let exe = compile(&module, fixed("ccccccc")).unwrap();
    assert!(exe.cpu().is_some() && exe.parts().is_empty());
    let text = "module @m {
  func @main(%x: tensor<8xf32>) -> tensor<8xf32> {
    %a = silu %x : tensor<8xf32>
    return %a
  }
}
";
    let exe = compile(&parse(text), Placement::Supported).unwrap();
    assert!(exe.gpu().is_some() && exe.parts().is_empty());
}

const CACHES: &str = "module @m {
  sym t in 1..=4
  func @main(%x: tensor<[t]x2x8xf32>, %past: tensor<i32>, %k: tensor<16x2x8xf32>, %v: tensor<16x2x8xf32>) -> (tensor<[t]x2x8xf32>, tensor<16x2x8xf32>, tensor<16x2x8xf32>) {
    %n = neg %k : tensor<16x2x8xf32>
    %k1 = kv_append donate %k, %x, %past : tensor<16x2x8xf32>
    %v1 = kv_append donate %v, %x, %past : tensor<16x2x8xf32>
    %y = attention %x, %k1, %v1, %past {scale = 0.5} : tensor<[t]x2x8xf32>
    %z = kv_append donate %n, %y, %past : tensor<16x2x8xf32>
    %q = attention %y, %z, %v1, %past {scale = 0.5} : tensor<[t]x2x8xf32>
    %v2 = kv_append donate %v1, %q, %past : tensor<16x2x8xf32>
    return %q, %k1, %v2
  }
}
";

#[test]
fn caches_cross_and_stay() {
    let module = parse(CACHES);
    let past = Tensor::from_i64(DType::I32, &[], &[5]).unwrap();
    let args = [floats(&[3, 2, 8], 1), past, floats(&[16, 2, 8], 2), floats(&[16, 2, 8], 3)];
    for devices in ["cgcgcgc", "gcgcgcg", "ccgggcc", "ggcccgg", "cggcccg", "gcccccg"] {
        assert!(assert_runs(&module, fixed(devices), &args) > 1, "{devices}");
    }
}

const STEPS: &str = "module @m {
  sym t in 1..=4
  func @main(%x: tensor<[t]x2x8xf32>, %past: tensor<i32>, %k: tensor<16x2x8xf32>, %v: tensor<16x2x8xf32>) -> (tensor<[t]x2x8xf32>, tensor<16x2x8xf32>, tensor<16x2x8xf32>) {
    %k1 = kv_append donate %k, %x, %past : tensor<16x2x8xf32>
    %y = attention %x, %k1, %k1, %past {scale = 0.5} : tensor<[t]x2x8xf32>
    %v1 = kv_append donate %v, %y, %past : tensor<16x2x8xf32>
    %z = attention %y, %v1, %k1, %past {scale = 0.5} : tensor<[t]x2x8xf32>
    return %z, %k1, %v1
  }
}
";

#[test]
fn states_stay_with_their_parts_over_many_runs() {
    let module = parse(STEPS);
    for (devices, on_gpu) in [("ccgg", [false, true]), ("ggcc", [true, false])] {
        let exe = compile(&module, fixed(devices)).unwrap();
        assert_eq!(exe.result_aliases(), [None, Some(2), Some(3)], "{devices}");
        let mut session = Session::new(exe.clone()).unwrap();
        // Every second run is one of the sibling: they share their states.
        let mut sibling = session.sibling(exe.clone()).unwrap();
        let mut states = [session.state(2).unwrap(), session.state(3).unwrap()];
        for (state, on_gpu) in states.iter().zip(on_gpu) {
            assert_eq!(matches!(state, State::Device(_)), on_gpu, "{devices}");
        }
        let empty = Tensor::from_f64(DType::F32, &[16, 2, 8], &[0.0; 256]).unwrap();
        let mut caches = [empty.clone(), empty];
        for step in 0..4 {
            let x = floats(&[2, 2, 8], step);
            let past = Tensor::from_i64(DType::I32, &[], &[2 * step as i64]).unwrap();
            let [k, v] = caches.clone();
            let want =
                Interpreter::new(&module).run("main", vec![x.clone(), past.clone(), k, v]).unwrap();
            let [k, v] = &mut states;
            let mut args = [
                Arg { shape: &[2, 2, 8], data: ArgData::Read(x.bytes()) },
                Arg { shape: &[], data: ArgData::Read(past.bytes()) },
                Arg { shape: &[16, 2, 8], data: ArgData::State(k) },
                Arg { shape: &[16, 2, 8], data: ArgData::State(v) },
            ];
            let session = if step % 2 == 0 { &mut session } else { &mut sibling };
            session.run(&mut args).unwrap();
            assert_eq!(session.result_shape(0), [2, 2, 8]);
            let got: Vec<f64> = session.result_f32(0).0.iter().map(|&v| v.into()).collect();
            let got = Tensor::from_f64(DType::F32, &[2, 2, 8], &got).unwrap();
            assert_eq!(difference(&got, &want[0]), None, "{devices}, step {step}");
            caches = [want[1].clone(), want[2].clone()];
            for (state, want) in states.iter().zip(&caches) {
                let mut bytes = vec![0; state.len()];
                state.read(&mut bytes).unwrap();
                let got = Tensor::new(want.ty(), bytes).unwrap();
                assert_eq!(difference(&got, want), None, "{devices}, step {step}");
            }
        }
    }
}

#[test]
fn random_modules_on_random_devices() {
    let (mut split, mut crossed) = (0, 0);
    for seed in 0..40 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let module = graphs::module(&mut rng, 8);
        let main = &module.funcs["main"];
        let devices: String = main.body.iter().map(|_| ["c", "g"][rng.usize(..2)]).collect();
        let bindings = Bindings::from([("s".into(), rng.u64(1..=graphs::S_MAX))]);
        let args = arguments(main, &bindings, seed);
        if Interpreter::new(&module).run("main", args.clone()).is_err() {
            continue;
        }
        let parts = assert_runs(&module, fixed(&devices), &args);
        split += usize::from(parts > 0);
        crossed += parts;
    }
    assert!(split > 10 && crossed > 40, "{split} {crossed}");
}

#[test]
fn a_fault_names_the_part() {
    let text = "module @m {
  func @main(%x: tensor<4x8xf32>, %i: tensor<2xi32>) -> tensor<2x8xf32> {
    %a = silu %x : tensor<4x8xf32>
    %g = gather %a, %i {axis = 0} : tensor<2x8xf32>
    %b = exp %g : tensor<2x8xf32>
    return %b
  }
}
";
    let module = parse(text);
    for (devices, part) in [("gcg", "@main.cpu.1"), ("cgc", "@main.gpu.1")] {
        let exe = compile(&module, fixed(devices)).unwrap();
        let indices = |i| Tensor::from_i64(DType::I32, &[2], &[0, i]).unwrap();
        let x = floats(&[4, 8], 1);
        let outcome = run_executable(&exe, vec![x.clone(), indices(7)]);
        let error = outcome.map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains('7'), "{devices}: {error}");
        assert_runs(&module, fixed(devices), &[x, indices(3)]);
    }
}

#[test]
fn wrong_arguments_are_refused() {
    let module = parse(STEPS);
    let exe = compile(&module, fixed("ccgg")).unwrap();
    let x = floats(&[5, 2, 8], 1);
    let past = Tensor::from_i64(DType::I32, &[], &[0]).unwrap();
    let cache = floats(&[16, 2, 8], 2);
    // More tokens than the symbol's range.
    let outcome =
        run_executable(&exe, vec![x, past.clone(), cache.clone(), cache.clone()]).map(|_| ());
    assert!(outcome.unwrap_err().to_string().contains("1..=4"));
    let mut session = Session::new(exe).unwrap();
    let x = floats(&[2, 2, 8], 1);
    let mut args = [
        Arg { shape: &[2, 2, 8], data: ArgData::Read(&x.bytes()[..8]) },
        Arg { shape: &[], data: ArgData::Read(past.bytes()) },
        Arg { shape: &[16, 2, 8], data: ArgData::Read(cache.bytes()) },
        Arg { shape: &[16, 2, 8], data: ArgData::Read(cache.bytes()) },
    ];
    let error = session.run(&mut args).unwrap_err().to_string();
    assert!(error.contains("argument 0"), "{error}");
    args[0].data = ArgData::Read(x.bytes());
    let error = session.run(&mut args).unwrap_err().to_string();
    assert!(error.contains("argument 2 is donated"), "{error}");
    let own = compile(&module, fixed("ggcc")).unwrap();
    assert!(session.sibling(own).is_err());
}
