//! What goes wrong on purpose: every fault is an error that names it, soon, and no more.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aether_codegen_wgsl::GpuTarget;
use aether_ir::{Tensor, parse_and_verify};
use aether_llm::engine::{
    Context, EngineError, GenOptions, LoadOptions, Model, generate, generate_or,
};
use aether_llm::sample::SamplerOptions;
use aether_runtime::gpu::{Gpu, GpuError, GpuExecutable, GpuOptions, Weights};
use aether_runtime::{Executable, Files, Options, RunError, RuntimeError, run_executable};

use super::support::gpu;
use super::tiny::{QUANTIZED, Tiny};

fn open(memory: Option<u64>) -> Arc<Gpu> {
    Gpu::open(&GpuOptions { memory, ..GpuOptions::default() }).unwrap_or_else(|e| panic!("{e}"))
}

fn lost(error: &EngineError) -> bool {
    matches!(error, EngineError::Run(RunError::Gpu(GpuError::Lost(_))))
}

/// Steps end with an error when the device goes away under them, with all weights on it and with
/// some that pass through.
#[test]
fn a_device_that_is_lost_in_a_step() {
    let load = |gpu: &Arc<Gpu>| {
        let options =
            LoadOptions { context: 64, batch: 4, gpu: Some(gpu.clone()), ..LoadOptions::default() };
        let tiny = Tiny { n_embd: 256, n_layers: 4, ..Tiny::llama(QUANTIZED) };
        Model::from_memory(tiny.gguf(), &options).map_err(|e| e.to_string())
    };
    let whole = load(&open(None)).unwrap();
    let exe = whole.executable().gpu().unwrap();
    let limit = exe.session_bytes() + exe.constant_bytes() / 2;
    for memory in [None, Some(limit)] {
        let gpu = open(memory);
        let model = load(&gpu).unwrap();
        let streamed = model.executable().gpu().unwrap().streamed_bytes() > 0;
        assert_eq!(streamed, memory.is_some());
        let mut context = Context::new(&model).unwrap();
        context.prefill(&[1, 2, 3]).unwrap();
        let at = gpu.clone();
        let other = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(60));
            at.destroy();
        });
        let begun = Instant::now();
        let error = loop {
            assert!(begun.elapsed() < Duration::from_secs(60), "steps go on without a device");
            if context.room() == 0 {
                context.truncate(3);
            }
            match context.decode(5) {
                Ok(_) => {}
                Err(e) => break e,
            }
        };
        other.join().unwrap();
        assert!(lost(&error), "{error}");
        assert!(error.to_string().contains("lost") && error.to_string().contains("--device cpu"));
        // It stays so, for this context and for others.
        assert!(lost(&context.decode(5).map(|_| ()).unwrap_err()));
        let error = Context::new(&model).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains("lost"), "{error}");
        let error = load(&gpu).map(|_| ()).unwrap_err();
        assert!(error.contains("lost"), "{error}");
    }
    // Another device of the same adapter is none the worse.
    let mut context = Context::new(&load(&open(None)).unwrap()).unwrap();
    context.prefill(&[1, 2, 3]).unwrap();
}

/// The CPU goes on where the GPU was, and one that may not gives the error.
#[test]
fn another_context_takes_over() {
    let load = |gpu: Option<Arc<Gpu>>| {
        let options = LoadOptions { context: 64, batch: 4, gpu, ..LoadOptions::default() };
        let model = Model::from_memory(Tiny::llama(QUANTIZED).gguf(), &options).unwrap();
        Context::new(&model).unwrap()
    };
    let sampler = SamplerOptions { temperature: 0.0, ..SamplerOptions::default() };
    let options = GenOptions { n: 12, sampler, ignore_eos: true, ..GenOptions::default() };
    let prompt = [1, 2, 3, 4, 5, 6];
    let whole = generate(&mut load(None), &prompt, &options, &mut |_| ControlFlow::Continue(()));
    let want = whole.unwrap().tokens;
    for may in [true, false] {
        let gpu = open(None);
        let mut context = load(Some(gpu.clone()));
        let (mut tokens, mut told) = (Vec::new(), 0);
        let outcome = generate_or(
            &mut context,
            &prompt,
            &options,
            &mut |token| {
                tokens.push(token);
                if tokens.len() == 5 {
                    gpu.destroy();
                }
                ControlFlow::Continue(())
            },
            &mut |error| {
                assert!(error.is_device_lost(), "{error}");
                told += 1;
                if may { Some(Ok(load(None))) } else { None }
            },
        );
        assert_eq!(told, 1);
        match outcome {
            Ok(out) => assert_eq!((out.tokens, may), (want.clone(), true)),
            Err(e) => assert!(!may && lost(&e), "{e}"),
        }
        assert_eq!(tokens, want[..tokens.len()]);
    }
}

const SILU: &str = "module @m {
  func @main(%x: tensor<64xf32>) -> tensor<64xf32> {
    %a = silu %x : tensor<64xf32>
    return %a
  }
}
";

/// The shader is broken behind the generator's back, which validates what it writes.
#[test]
fn a_shader_that_is_not_valid() {
    let gpu = gpu();
    let module = parse_and_verify(SILU).unwrap();
    let plan = aether_passes::plan(&module, &GpuTarget { adapter: gpu.adapter() }).unwrap();
    let files = Files::new();
    let good = aether_codegen_wgsl::compile(&module, &plan, "main", &files, gpu.adapter()).unwrap();
    for (what, wgsl) in [
        ("no text of WGSL", "@compute fn main( {".to_owned()),
        ("types that do not fit", good.shaders[0].wgsl.replace("u32;", "u32 = 1.5;")),
        ("another entry", good.shaders[0].wgsl.replace("fn main", "fn other")),
    ] {
        let mut bad = good.clone();
        bad.shaders = good
            .shaders
            .iter()
            .map(|s| {
                let mut shader = s.clone();
                shader.wgsl = format!("{wgsl}\nconst broken: f32 = vec2<u32>();").into();
                shader
            })
            .collect();
        let outcome = GpuExecutable::load(gpu.clone(), bad, &module, &files, &Weights::default());
        let error = outcome.map(|_| ()).unwrap_err();
        let named = matches!(&error, RuntimeError::Gpu(GpuError::Shader { name, .. })
            if *name == good.shaders[0].name);
        assert!(named, "{what}: {error}");
    }
    // The device is as it was.
    let options = Options { gpu: Some(gpu), ..Options::default() };
    let exe = Executable::compile(module, &files, &options).unwrap();
    let x = Tensor::from_f32(&[64], &[1.0; 64]).unwrap();
    run_executable(&Arc::new(exe), vec![x]).unwrap();
}

#[test]
fn more_memory_than_the_device_has() {
    // Caches of some terabytes; nothing of the kind is allocated.
    let options =
        LoadOptions { context: 1 << 30, batch: 4, gpu: Some(gpu()), ..LoadOptions::default() };
    let error = match Model::from_memory(Tiny::llama(QUANTIZED).gguf(), &options) {
        Ok(model) => Context::new(&model).map(|_| ()).unwrap_err().to_string(),
        Err(e) => e.to_string(),
    };
    assert!(error.contains("bytes") && error.contains("GPU"), "{error}");
}

#[test]
fn an_adapter_that_is_not_there() {
    let options = GpuOptions { name: Some("no such card".to_owned()), ..GpuOptions::default() };
    let error = Gpu::open(&options).map(|_| ()).unwrap_err();
    assert!(
        matches!(&error, GpuError::NoSuchAdapter { found, .. } if !found.is_empty()),
        "{error}"
    );
}
