//! Fusion and the arena, on and off: what a module means does not depend on them.

use aether_ir::{Bindings, Interpreter, Op};
use aether_runtime::{Arena, run_executable};

use super::graphs;
use super::support::{SWITCHES, arguments, compile, difference};

#[test]
fn random_modules() {
    let (mut fused, mut smaller, mut ran) = (0, 0, 0);
    for seed in 100..130 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let module = graphs::module(&mut rng, 8);
        let main = &module.funcs["main"];
        let bindings = Bindings::from([("s".into(), rng.u64(1..=graphs::S_MAX))]);
        let args = arguments(main, &bindings, seed);
        let Ok(want) = Interpreter::new(&module).run("main", args.clone()) else { continue };
        let mut frames = Vec::new();
        for (pipeline, arena) in SWITCHES {
            let exe = compile(&module, pipeline, arena).unwrap();
            let body = exe.module().funcs.values().flat_map(|f| &f.body);
            fused += body.filter(|inst| inst.op == Op::Fused).count();
            frames.push(exe.plan().funcs["main"].frame_bytes);
            let got = run_executable(&exe, args.clone()).unwrap();
            for (i, (g, w)) in got.iter().zip(&want).enumerate() {
                if let Some(why) = difference(g, w) {
                    panic!("seed {seed}, {pipeline}, {arena:?}, result {i}: {why}");
                }
            }
            if arena == Arena::Separate {
                let [.., shared, separate] = frames[..] else { continue };
                assert!(shared <= separate, "seed {seed}: {shared} {separate}");
                smaller += usize::from(shared < separate);
            }
        }
        ran += 1;
    }
    assert!(ran > 15 && fused > 10 && smaller > 10, "{ran} {fused} {smaller}");
}
