//! The library API on the whole road: graph, module, passes, code, numbers.

use aether_ir::{DType, Shape, parse_module};
use aether_runtime::graph::*;

fn close(found: &[f32], want: &[f32]) {
    assert_eq!(found.len(), want.len(), "{found:?} {want:?}");
    for (f, w) in found.iter().zip(want) {
        assert!((f - w).abs() <= 1e-5 * w.abs().max(1.0), "{found:?} is not {want:?}");
    }
}

#[test]
fn the_example_of_the_readme_gives_its_value() {
    let g = Graph::new();
    let x = g.tensor(vec![1.0, 2.0, 3.0, 4.0], Shape::new(vec![2, 2]));
    let w = g.tensor(vec![2.0, 0.0, 0.0, 2.0], Shape::new(vec![2, 2]));
    let y = x.matmul(w).softmax();
    let e = 1.0 / (1.0 + 2f32.exp());
    let rows = y.run(Device::Cpu).unwrap();
    close(&rows.to_vec::<f32>().unwrap(), &[e, 1.0 - e, e, 1.0 - e]);
    close(&[y.sum_all().run(Device::Cpu).unwrap().item().unwrap()], &[2.0]);
}

#[test]
fn operators_take_tensors_references_and_numbers() {
    let g = Graph::new();
    let a = g.tensor(vec![1.0, 2.0, 3.0], [3]);
    let b = g.tensor(vec![10.0], [1]);
    let y = -(2.0 * &a + &b * 0.5 - 1i32) / (&a - 4.0f32) + 1.0 / &b;
    let want: Vec<f32> =
        [1f32, 2.0, 3.0].iter().map(|a| -(2.0 * a + 5.0 - 1.0) / (a - 4.0) + 0.1).collect();
    close(&y.run(Device::Cpu).unwrap().to_vec().unwrap(), &want);
    let whole = g.tensor_of(vec![7i64, -7], [2]) / 2;
    assert_eq!(whole.run(Device::Cpu).unwrap().to_vec::<i64>().unwrap(), [3, -3]);
    let opposite = !a.gt(1.5);
    assert_eq!(opposite.run(Device::Cpu).unwrap().to_vec::<bool>().unwrap(), [true, false, false]);
}

#[test]
fn an_error_names_the_line_and_both_shapes_and_comes_out_of_run() {
    let g = Graph::new();
    let a = g.tensor(vec![0.0; 6], [2, 3]);
    let b = g.tensor(vec![0.0; 20], [4, 5]);
    let line = line!() + 1;
    let wrong = a.matmul(&b);
    let later = (wrong + 1.0).softmax().sum_all();
    for error in [later.run(Device::Cpu).unwrap_err(), later.to_text().unwrap_err()] {
        let text = error.to_string();
        let place = format!("{}:{line}:", file!());
        for part in [&*place, "`matmul`", "tensor<2x3xf32>", "tensor<4x5xf32>", "inner"] {
            assert!(text.contains(part), "{part} is not in: {text}");
        }
    }
    let sum = (&a + &b).sum(..).run(Device::Cpu).unwrap_err().to_string();
    assert!(sum.contains("`add` of tensor<2x3xf32> and tensor<4x5xf32>"), "{sum}");
    let mixed = (&a * g.tensor_of(vec![1i32], [1])).run(Device::Cpu).unwrap_err().to_string();
    assert!(mixed.contains("element types differ"), "{mixed}");
}

#[test]
fn tensors_of_other_graphs_are_refused() {
    let (g, h) = (Graph::new(), Graph::new());
    let (a, b) = (g.tensor(vec![1.0], [1]), h.tensor(vec![1.0], [1]));
    let error = (&a + &b).run(Device::Cpu).unwrap_err().to_string();
    assert!(error.contains("different graphs"), "{error}");
    assert!(matches!(g.compile(&[&b], Device::Cpu), Err(GraphError::OtherGraph)));
}

#[test]
fn compiled_once_runs_many_times_with_new_inputs_of_any_length() {
    let g = Graph::new();
    let n = g.symbol("n", 1, 64);
    let x = g.input("x", DType::F32, [n, 2usize.into()]);
    let w = g.param("w", &Array::new(&[1f32, 2.0, 3.0, 4.0], [2, 2]).unwrap());
    let mut f = x.matmul(&w).compile(Device::Cpu).unwrap();
    assert_eq!(f.inputs().collect::<Vec<_>>(), ["x"]);
    for rows in [1usize, 5, 64] {
        let x = Array::new(&vec![1f32; rows * 2], [rows, 2]).unwrap();
        let y = f.run(&[("x", &x)]).unwrap().remove(0);
        assert_eq!(y.shape(), [rows, 2]);
        close(&y.to_vec().unwrap(), &[4.0, 6.0].repeat(rows));
    }
    let long = Array::new(&[1f32; 130], [65, 2]).unwrap();
    assert!(f.run(&[("x", &long)]).unwrap_err().to_string().contains("1..=64"));
}

#[test]
fn inputs_that_do_not_fit_are_errors() {
    let g = Graph::new();
    let x = g.input("x", DType::F32, [2]);
    let mut f = (&x + &x).compile(Device::Cpu).unwrap();
    let one = Array::new(&[1f32, 2.0], [2]).unwrap();
    let wide = Array::new(&[1f64, 2.0], [2]).unwrap();
    assert!(matches!(f.run(&[]), Err(GraphError::MissingInput(_))));
    assert!(matches!(f.run(&[("x", &one), ("x", &one)]), Err(GraphError::InputTwice(_))));
    assert!(matches!(f.run(&[("x", &one), ("z", &one)]), Err(GraphError::UnknownInput { .. })));
    assert!(matches!(f.run(&[("x", &wide)]), Err(GraphError::InputType { .. })));
    assert!(f.run(&[("x", &Array::new(&[1f32; 3], [3]).unwrap())]).is_err());
    assert!(g.input("x", DType::F32, [2]).ty().unwrap_err().to_string().contains("taken"));
    assert!(f.run(&[("x", &one)]).is_ok());
}

#[test]
fn parameters_are_updated_in_place_and_swap_without_mixing() {
    let g = Graph::new();
    let a = g.param("a", &Array::new(&[1f32, 2.0], [2]).unwrap());
    let b = g.param("b", &Array::new(&[10f32, 20.0], [2]).unwrap());
    let x = g.input("x", DType::F32, [2]);
    let updates =
        [Update { param: a.clone(), value: &a + &x }, Update { param: b.clone(), value: &a * &b }];
    let mut step = g.compile_with(&[&a.sum_all()], &updates, Device::Cpu).unwrap();
    let x = Array::new(&[0.5f32, 1.0], [2]).unwrap();
    close(&step.run(&[("x", &x)]).unwrap()[0].to_vec().unwrap(), &[3.0]);
    close(&a.get().unwrap().to_vec().unwrap(), &[1.5, 3.0]);
    close(&b.get().unwrap().to_vec().unwrap(), &[10.0, 40.0]);
    close(&step.run(&[("x", &x)]).unwrap()[0].to_vec().unwrap(), &[4.5]);
    close(&b.get().unwrap().to_vec().unwrap(), &[15.0, 120.0]);

    let swap = [
        Update { param: a.clone(), value: b.clone() },
        Update { param: b.clone(), value: a.clone() },
    ];
    let before = (a.get().unwrap(), b.get().unwrap());
    g.compile_with(&[], &swap, Device::Cpu).unwrap().run(&[]).unwrap();
    assert_eq!((b.get().unwrap(), a.get().unwrap()), before);
}

#[test]
fn an_update_of_one_parameter_takes_its_buffer_over() {
    let g = Graph::new();
    let w = g.param("w", &Array::new(&[1f32; 1000], [1000]).unwrap());
    let update = Update { param: w.clone(), value: &w * 0.5 };
    let mut step = g.compile_with(&[], &[update], Device::Cpu).unwrap();
    assert_eq!(step.executable().result_aliases(), [Some(0)]);
    step.run(&[]).unwrap();
    assert_eq!(w.get().unwrap().to_vec::<f32>().unwrap(), [0.5; 1000]);
}

#[test]
fn updates_that_do_not_fit_are_errors() {
    let g = Graph::new();
    let w = g.param("w", &Array::new(&[1f32; 2], [2]).unwrap());
    let sum = Update { param: w.clone(), value: w.sum_all() };
    assert!(matches!(g.compile_with(&[], &[sum], Device::Cpu), Err(GraphError::ParamType { .. })));
    let twice = Update { param: w.clone(), value: &w + 1.0 };
    assert!(matches!(
        g.compile_with(&[], &[twice.clone(), twice.clone()], Device::Cpu),
        Err(GraphError::UpdatedTwice(_))
    ));
    let computed = Update { param: &w + 1.0, value: w.clone() };
    assert!(matches!(g.compile_with(&[], &[computed], Device::Cpu), Err(GraphError::NoParam)));
    assert!(w.set(&Array::scalar(1f32)).is_err());
}

#[test]
fn a_leaf_can_be_run_and_returned_twice() {
    let g = Graph::new();
    let x = g.tensor(vec![1.0, 2.0], [2]);
    assert_eq!(x.run(Device::Cpu).unwrap().to_vec::<f32>().unwrap(), [1.0, 2.0]);
    let both = g.compile(&[&x, &x, &(&x + 1.0)], Device::Cpu).unwrap().run(&[]).unwrap();
    assert_eq!(both[0], both[1]);
    assert_eq!(both[2].to_vec::<f32>().unwrap(), [2.0, 3.0]);
}

#[test]
fn the_text_of_a_value_reads_back_as_its_module() {
    let g = Graph::new();
    let n = g.symbol("n", 1, 8);
    let x = g.input("x", DType::F32, [n, 4usize.into()]);
    let unused = &x * 3.0;
    let c = g.constant(&Array::new(&[1f32, 2.0, 3.0, 4.0], [4]).unwrap());
    let y = (&x * &c).named("scaled").softmax();
    let text = y.to_text().unwrap();
    assert!(text.contains("%scaled = mul %x, %0") && text.contains("sym n in 1..=8"), "{text}");
    assert_eq!(text.matches("mul").count(), 1, "{text}");
    assert_eq!(parse_module(&text).unwrap().funcs.len(), 1);
    assert!(unused.to_text().unwrap().contains("splat {value = 3"));
}

#[test]
fn graphs_and_tensors_cross_threads() {
    let g = Graph::new();
    let x = g.tensor(vec![1.0; 16], [16]);
    let sums: Vec<f32> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|i| {
                let x = x.clone();
                scope.spawn(move || (x * i).sum_all().run(Device::Cpu).unwrap().item().unwrap())
            })
            .collect();
        threads.into_iter().map(|t| t.join().unwrap()).collect()
    });
    assert_eq!(sums, [0.0, 16.0, 32.0, 48.0]);
}

#[test]
fn independent_branches_do_not_wait_for_each_other() {
    let g = Graph::new();
    let x = g.tensor(vec![1.0; 4096], [64, 64]);
    let y = g.tensor(vec![2.0; 4096], [64, 64]);
    let (a, b) = (x.softmax(), y.softmax());
    let apart = g.compile(&[&a, &b], Device::Cpu).unwrap();
    assert_eq!(apart.executable().cpu().unwrap().step_counts(), (2, 0));
    let after = g.compile(&[&a, &a.log_softmax()], Device::Cpu).unwrap();
    assert_eq!(after.executable().cpu().unwrap().step_counts(), (2, 1));
}

#[test]
fn random_numbers_follow_from_their_state() {
    let g = Graph::new();
    let mut rng = g.rng(5);
    let (first, second) = (rng.uniform([1000]), rng.uniform([1000]));
    let run = |t: &Tensor| t.run(Device::Cpu).unwrap().to_vec::<f32>().unwrap();
    assert_eq!(run(&first), run(&g.rng(5).uniform([1000])));
    assert_ne!(run(&first), run(&second));
    assert_ne!(run(&first), run(&g.rng(6).uniform([1000])));
    assert!(run(&first).iter().all(|u| (0.0..1.0).contains(u)));

    let normal = run(&g.rng(1).normal([100, 100]));
    let mean = normal.iter().sum::<f32>() / 1e4;
    let variance = normal.iter().map(|v| (v - mean).powi(2)).sum::<f32>() / 1e4;
    // Five standard errors of the mean and of the variance.
    assert!(mean.abs() < 0.05 && (variance - 1.0).abs() < 0.071, "{mean} {variance}");

    let dropped = run(&g.ones(DType::F32, [10_000]).dropout(0.25, &mut rng));
    let kept = dropped.iter().filter(|&&v| v != 0.0).count();
    assert!(dropped.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-6));
    assert!((kept as f32 - 7500.0).abs() < 5.0 * (1e4f32 * 0.1875).sqrt(), "{kept}");
}

#[test]
fn quantised_weights_multiply_as_their_numbers_do() {
    let g = Graph::new();
    let w = g.arange(DType::F32, 128).reshape([4, 32]) / 16.0 - 4.0;
    let x = g.tensor((0..32).map(|i| i as f32 / 8.0).collect(), [1, 32]);
    let blocks = w.quantize(DType::Q8_0);
    let run = |t: &Tensor| t.run(Device::Cpu).unwrap().to_vec::<f32>().unwrap();
    for (a, b) in run(&blocks.dequantize()).iter().zip(run(&w)) {
        assert!((a - b).abs() <= 4.0 / 127.0, "{a} {b}");
    }
    for (a, b) in run(&x.linear(&blocks)).iter().zip(run(&x.linear(&blocks.dequantize()))) {
        assert!((a - b).abs() <= 0.02 * b.abs().max(10.0), "{a} {b}");
    }
    let turned = blocks.t().run(Device::Cpu).unwrap_err().to_string();
    assert!(turned.contains("q8_0"), "{turned}");
}

#[test]
fn wrong_shapes_are_errors_of_each_operation() {
    let g = Graph::new();
    let x = g.tensor(vec![0.0; 12], [3, 4]);
    let i = g.tensor_of(vec![0i32; 3], [3]);
    let table: Vec<(&str, Tensor)> = vec![
        ("reshape", x.reshape([5, -1])),
        ("reshape", x.reshape([-1, -1])),
        ("reshape", x.reshape([0, -1])),
        ("permute", x.permute([0, 0])),
        ("transpose", x.transpose(0, 2)),
        ("slice", x.slice_step(0, .., 0)),
        ("index", x.index(0, 3)),
        ("concat", Tensor::concat(&[&x, &i], 0)),
        ("stack", Tensor::stack(&[&x, &i], 0)),
        ("split", x.split(1, [1, 2]).remove(1)),
        ("squeeze", x.squeeze(0)),
        ("unsqueeze", x.unsqueeze(4)),
        ("expand", x.expand([2, 4])),
        ("sum", x.sum(2)),
        ("sum", x.sum([0, 0])),
        ("gather", x.gather(0, &i)),
        ("one_hot", x.one_hot(3, DType::F32)),
        ("conv2d", x.conv2d(&x, Conv::default())),
        ("max_pool1d", x.max_pool1d(Pool::tiles([2]))),
        ("group_norm", x.group_norm(3, &i, &i, 1e-5)),
        ("cross_entropy", x.cross_entropy(&x)),
        ("matmul", x.matmul(2.0)),
        ("split_heads", x.split_heads(3)),
        ("dropout", x.dropout(1.5, &mut g.rng(0))),
        ("add", &i + 0.5),
        ("select", x.select(&x, 0.0)),
        ("tensor", g.tensor(vec![1.0], [2])),
        ("full", g.full(DType::Q8_0, [32], 1.0)),
    ];
    for (name, t) in table {
        let text = t.run(Device::Cpu).unwrap_err().to_string();
        assert!(text.contains(&format!(": `{name}`")), "{name}: {text}");
        assert!(text.contains(file!()), "{name}: {text}");
    }
}

#[test]
fn an_index_out_of_range_fails_the_run() {
    let g = Graph::new();
    let x = g.tensor(vec![0.0; 12], [3, 4]);
    let beyond = g.tensor_of(vec![4i32; 3], [3, 1]);
    for t in [x.gather(1, &beyond), x.take(&beyond, 0), x.index_select(0, &beyond.squeeze(1))] {
        assert!(t.run(Device::Cpu).is_err());
    }
}
