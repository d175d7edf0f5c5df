//! Gradients through the library API.

use aether_ir::DType;
use aether_runtime::graph::*;

fn run(t: &Tensor) -> Vec<f32> {
    t.run(Device::Cpu).unwrap().to_vec().unwrap()
}

fn close(found: &[f32], want: &[f32]) {
    assert_eq!(found.len(), want.len(), "{found:?} {want:?}");
    for (f, w) in found.iter().zip(want) {
        assert!((f - w).abs() <= 1e-5 * w.abs().max(1.0), "{found:?} is not {want:?}");
    }
}

#[test]
fn the_example_of_the_readme_has_a_gradient_of_zero_and_its_parts_have_not() {
    let g = Graph::new();
    let x = g.tensor(vec![1.0, 2.0, 3.0, 4.0], [2, 2]);
    let w = g.tensor(vec![2.0, 0.0, 0.0, 2.0], [2, 2]);
    let p = x.matmul(&w).softmax();
    let y = p.sum_all();
    close(&run(&y), &[2.0]);
    let grads = y.backward().unwrap();
    assert_eq!(grads.len(), 2);
    assert!(run(&grads[&x.id()]).iter().all(|d| d.abs() < 1e-6));

    // d p_0 / d x = 2 p_0 p_1 (1, -1) in each row, as the logits of a row are 2 x.
    let first = p.slice(1, ..1).sum_all().backward().unwrap();
    let e = 1.0 / (1.0 + 2f32.exp());
    let d = 2.0 * e * (1.0 - e);
    close(&run(&first[&x.id()]), &[d, -d, d, -d]);
}

#[test]
fn gradients_of_gradients_are_gradients() {
    let g = Graph::new();
    let x = g.tensor(vec![1.0, -2.0, 0.5], [3]);
    let y = x.pow(3.0).sum_all();
    let dx = y.backward().unwrap()[&x.id()].clone();
    close(&run(&dx), &[3.0, 12.0, 0.75]);
    let ddx = dx.sum_all().backward().unwrap()[&x.id()].clone();
    close(&run(&ddx), &[6.0, -12.0, 3.0]);
    let dddx = ddx.sum_all().backward().unwrap()[&x.id()].clone();
    close(&run(&dddx), &[6.0; 3]);
}

#[test]
fn computed_tensors_and_strangers_have_gradients_when_asked_for() {
    let g = Graph::new();
    let x = g.tensor(vec![3.0, 4.0], [2]);
    let stranger = g.tensor(vec![1.0], [1]);
    let h = x.square();
    let y = (&h * 2.0).sum_all();
    let grads = y.backward_to(&[&h, &x, &stranger]).unwrap();
    close(&run(&grads[&h.id()]), &[2.0, 2.0]);
    close(&run(&grads[&x.id()]), &[12.0, 16.0]);
    close(&run(&grads[&stranger.id()]), &[0.0]);
    assert!(y.backward().unwrap().get(&stranger.id()).is_none());
    let stopped = (x.stop_gradient() * &x).sum_all().backward().unwrap();
    close(&run(&stopped[&x.id()]), &[3.0, 4.0]);
}

#[test]
fn indices_have_no_gradient_and_inputs_have() {
    let g = Graph::new();
    let table = g.param("table", &Array::new(&[0f32; 6], [3, 2]).unwrap());
    let rows = g.input("rows", DType::I32, [4]);
    let scale = g.input("scale", DType::F32, ());
    let y = (table.take(&rows, 0) * &scale).sum_all();
    let grads = y.backward().unwrap();
    assert!(grads.get(&rows.id()).is_none());
    let rows = Array::new(&[0, 2, 2, 2], [4]).unwrap();
    let d = grads[&table.id()]
        .run_with(&[("rows", &rows), ("scale", &Array::scalar(2f32))], Device::Cpu)
        .unwrap();
    close(&d.to_vec::<f32>().unwrap(), &[2.0, 2.0, 0.0, 0.0, 6.0, 6.0]);
    assert_eq!(grads[&scale.id()].shape().unwrap().rank(), 0);
}

#[test]
fn what_cannot_be_differentiated_is_an_error_with_the_line() {
    let g = Graph::new();
    let x = g.tensor(vec![3.0, 4.0], [2]);
    let line = line!() + 1;
    let error = x.square().backward().unwrap_err().to_string();
    assert!(error.contains(&format!("{}:{line}:", file!())), "{error}");
    assert!(error.contains("scalar") && error.contains("tensor<2xf32>"), "{error}");
    let wrong = (&x + g.tensor(vec![0.0; 3], [3])).sum_all();
    assert!(wrong.backward().unwrap_err().to_string().contains("`add`"));
    let whole = x.cast(DType::I32).sum_all();
    assert!(whole.backward().is_err());
    // What was written before the error still works.
    close(&run(&x.sum_all()), &[7.0]);
}
