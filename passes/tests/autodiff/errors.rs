//! What cannot be differentiated is refused, with the place and advice.

use aether_ir::{Op, ValueId, parse_and_verify};
use aether_passes::{GenericTarget, PassCtx, Pipeline, autodiff};

const MODULE: &str = "module @m {
  func @loss(%x: tensor<2x32xf32>, %ids: tensor<2xi32>, %table: tensor<4x32xq8_0>) -> (tensor<f32>, tensor<2xf32>) {
    %y = exp %x : tensor<2x32xf32>
    %s = reduce_sum %y {axes = [0, 1]} : tensor<f32>
    %r = reduce_sum %y {axes = [1]} : tensor<2xf32>
    return %s, %r
  }
  func @matrix(%x: tensor<2x32xf32>) -> tensor<2x32xf32> {
    %y = exp %x : tensor<2x32xf32>
    return %y
  }
  func @packed(%x: tensor<4x32xf32>, %w: tensor<8x32xf32>) -> tensor<f32> {
    %p = pack %w : tensor<8x32xf32, r16>
    %y = matmul %x, %p {transpose_b = true} : tensor<4x8xf32>
    %s = reduce_sum %y {axes = [0, 1]} : tensor<f32>
    return %s
  }
  func @indices(%x: tensor<2xf32>) -> tensor<i32> {
    %i = argmax %x {axis = 0} : tensor<i32>
    return %i
  }
}
";

#[test]
fn what_has_no_gradient_is_refused() {
    let table: &[(&str, &str, &str)] = &[
        ("autodiff{func=los,wrt=x}", "@los", "there is no function @los; did you mean `loss`?"),
        ("autodiff{func=loss,wrt=y}", "", "@loss has no parameter `y`; did you mean `x`?"),
        ("autodiff{func=loss,wrt=quite}", "", "has no parameter `quite`; there are x, ids, table"),
        ("autodiff{func=loss,wrt=x|ids}", "", "tensor<2xi32> has no gradient: only floating-point"),
        ("autodiff{func=loss,wrt=table}", "", "tensor<4x32xq8_0> has no gradient"),
        ("autodiff{func=matrix,wrt=x}", "", "found tensor<2x32xf32>; reduce it first"),
        ("autodiff{func=indices,wrt=x}", "", "tensor<i32>"),
        ("autodiff{func=packed,wrt=w}", "", "`pack` of %p: packed layouts have no gradient"),
        ("autodiff{func=packed,wrt=x}", "", "the weight is packed"),
        ("autodiff{func=loss,wrt=x,result=1}", "", "found tensor<2xf32>"),
        ("autodiff{func=loss,wrt=x,result=2}", "", "found 2 results"),
        ("autodiff{func=loss,wrt=x,form=grat}", "", "no form `grat`; there are grad, vjp"),
    ];
    for (pipeline, about, message) in table {
        let mut module = parse_and_verify(MODULE).unwrap();
        let pipeline = Pipeline::parse(pipeline).unwrap();
        let error = pipeline.run(&mut module, &PassCtx::new(&GenericTarget), &mut ());
        let error = error.expect_err(message).to_string();
        assert!(error.contains(message) && error.contains(about), "{error}");
    }
}

#[test]
fn a_refusal_knows_its_place_in_the_text() {
    let mut module = parse_and_verify(MODULE).unwrap();
    match autodiff::gradient(&mut module, "packed", &["w"]) {
        Err(autodiff::AutodiffError::Refused { op: Op::Pack, span, .. }) => {
            let text = &MODULE[span.start as usize..span.end as usize];
            assert!(text.starts_with("%p = pack"), "{text}");
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn values_that_do_not_fit_are_refused() {
    let mut module = parse_and_verify(MODULE).unwrap();
    let mut func = module.funcs["loss"].clone();
    let untouched = func.clone();
    let (scalar, row) = (func.returns[0], func.returns[1]);
    for (output, wrt) in [(row, func.params[0]), (scalar, func.params[1]), (scalar, ValueId(99))] {
        assert!(autodiff::append(&mut module, &mut func, output, &[wrt]).is_err());
    }
    assert_eq!(func, untouched);
}
