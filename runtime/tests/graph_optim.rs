//! Optimisers, clipping and schedules against optax (scripts/oracles/optim.py).

use std::collections::BTreeMap;

use aether_ir::DType;
use aether_runtime::graph::*;

const TOLERANCE: f32 = 2e-5;

struct Setup {
    graph: Graph,
    x: Tensor,
    y: Tensor,
    loss: Tensor,
}

fn setup() -> Setup {
    let graph = Graph::new();
    let x = graph.param("x", &Array::new(&[1.5f32, -2.0, 0.5], [3]).unwrap());
    let y = graph.param("y", &Array::new(&[0.3f32, -0.7], [2]).unwrap());
    let a = graph.tensor(vec![1.0, 0.5, 2.0], [3]);
    let b = graph.tensor(vec![0.5, -1.0, 3.0], [3]);
    let c = graph.tensor(vec![1.0, 3.0], [2]);
    let loss = (&a * &x - b).square().sum_all()
        + x.sin().sum_all()
        + (y.square() * c).sum_all()
        + x.index(0, 0) * y.index(0, 0);
    Setup { graph, x, y, loss }
}

fn optimizer(name: &str) -> Box<dyn Optimizer> {
    let constant = Schedule::constant;
    let cosine = Schedule::Cosine { rate: 0.1, steps: 6, floor: 0.1 };
    match name {
        "sgd" | "clip_norm" | "clip_value" => Box::new(Sgd::new(constant(0.1))),
        "sgd_momentum" => Box::new(Sgd::new(constant(0.05)).with_momentum(0.9)),
        "sgd_nesterov_decay" => Box::new(Sgd {
            nesterov: true,
            weight_decay: 0.01,
            ..Sgd::new(constant(0.05)).with_momentum(0.9)
        }),
        "adam" => Box::new(Adam::new(constant(0.1))),
        "adamw_cosine" => Box::new(Adam::with_decay(cosine, 0.05)),
        "adam_warmup_step" => Box::new(Adam::new(Schedule::step(0.2, 2, 0.5).with_warmup(3))),
        other => panic!("{other}"),
    }
}

#[test]
fn eight_steps_of_each_optimiser_are_those_of_optax() {
    let cases: BTreeMap<String, Vec<[f32; 5]>> =
        serde_json::from_str(include_str!("data/optim.json")).unwrap();
    assert_eq!(cases.len(), 8);
    for (name, rows) in cases {
        let Setup { graph, x, y, loss } = setup();
        let params = [&x, &y];
        let mut gradients = loss.backward_to(&params).unwrap();
        match &*name {
            "clip_norm" => gradients = gradients.clip_by_norm(0.5),
            "clip_value" => gradients = gradients.clip_by_value(0.3),
            _ => {}
        }
        let updates = optimizer(&name).updates(&gradients, &params).unwrap();
        let mut step = graph.compile_with(&[&loss], &updates, Device::Cpu).unwrap();
        for (i, want) in rows.iter().enumerate() {
            step.run(&[]).unwrap();
            let mut found = x.get().unwrap().to_vec::<f32>().unwrap();
            found.extend(y.get().unwrap().to_vec::<f32>().unwrap());
            for (f, w) in found.iter().zip(want) {
                let close = (f - w).abs() <= TOLERANCE * w.abs().max(1.0);
                assert!(close, "{name}, step {i}: {found:?} is not {want:?}");
            }
        }
    }
}

#[test]
fn a_step_updates_everything_in_place() {
    let Setup { graph, x, y, loss } = setup();
    let params = [&x, &y];
    let gradients = loss.backward_to(&params).unwrap();
    let updates = optimizer("adam").updates(&gradients, &params).unwrap();
    let step = graph.compile_with(&[&loss], &updates, Device::Cpu).unwrap();
    // The loss has a buffer of its own; the counter, two parameters and four moments keep theirs.
    let aliases = step.executable().result_aliases();
    assert_eq!(aliases.len(), 8);
    let own = aliases.iter().filter(|a| a.is_none()).count();
    assert!(own <= 2, "{aliases:?}\n{}", aether_ir::print_module(step.module()));
}

#[test]
fn a_parameter_without_gradient_or_a_second_optimiser_of_one_name_is_an_error() {
    let Setup { x, y, loss, .. } = setup();
    let gradients = loss.backward_to(&[&x]).unwrap();
    let adam = optimizer("adam");
    let missing = adam.updates(&gradients, &[&x, &y]).unwrap_err();
    assert!(matches!(missing, GraphError::NoGradient(name) if &*name == "y"));
    let again = adam.updates(&gradients, &[&x]).unwrap_err().to_string();
    assert!(again.contains("`adam.step` is taken"), "{again}");
}

#[test]
fn a_schedule_is_a_tensor_of_the_step() {
    let g = Graph::new();
    let steps = g.arange(DType::F64, 7);
    let rates = |s: Schedule| s.at(&steps).run(Device::Cpu).unwrap().to_vec::<f64>().unwrap();
    assert_eq!(rates(Schedule::constant(0.5)), [0.5; 7]);
    assert_eq!(rates(Schedule::step(1.0, 3, 0.5)), [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25]);
    let warm = rates(Schedule::step(1.0, 2, 0.5).with_warmup(4));
    assert_eq!(warm, [0.0, 0.25, 0.5, 0.75, 1.0, 1.0, 0.5]);
    let cosine = rates(Schedule::cosine(2.0, 4));
    for (f, w) in cosine.iter().zip([2.0, 1.0 + 0.5f64.sqrt(), 1.0, 1.0 - 0.5f64.sqrt(), 0.0, 0.0])
    {
        assert!((f - w).abs() < 1e-9, "{cosine:?}");
    }
}
