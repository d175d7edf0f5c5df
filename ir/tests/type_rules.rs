//! Type rules that refuse: wrong uses of the ops that take windows, indices, amounts and states,
//! with what the reader is told at the instruction; and symbolic lengths that they accept.

use aether_ir::diag::Loc;
use aether_ir::text::parse_and_verify;
use aether_ir::{Diagnostic, Module};

/// A function with these parameters and one instruction.
fn check(params: &str, inst: &str) -> Result<Module, Vec<Diagnostic>> {
    parse_and_verify(&format!(
        "module @m {{\n  sym s in 1..=64\n  func @f({params}) -> () {{\n    {inst}\n    return\n  }}\n}}\n"
    ))
}

#[test]
fn wrong_uses_are_refused_at_the_instruction() {
    const X: &str = "%x: tensor<1x2x5xf32>, %w: tensor<4x2x3xf32>, %y: tensor<4x1x3xf32>";
    const M: &str =
        "%x: tensor<2x3xf32>, %i: tensor<2xi32>, %u: tensor<2x3xf32>, %b: tensor<2xbool>";
    const S: &str = "%x: tensor<[s]x4xf32>";
    const Q: &str = "%q: tensor<2x32xq8_0>, %x: tensor<2x32xf32>, %h: tensor<2x32xf16>";
    let table: &[(&str, &str, &str)] = &[
        (X, "%0 = conv %x, %y : tensor<1x4x3xf32>", "channels differ"),
        (S, "%0 = transfer %x {to = \"disk\"} : tensor<[s]x4xf32>", "found `disk`"),
        (X, "%0 = conv %x, %w {groups = 0} : tensor<1x4x3xf32>", "groups = 0 must be positive"),
        (X, "%0 = conv %x, %w {groups = -1} : tensor<1x4x3xf32>", "groups = -1 must be positive"),
        (
            "%x: tensor<1x6x5xf32>, %w: tensor<4x2x3xf32>",
            "%0 = conv %x, %w {groups = 3} : tensor<1x4x3xf32>",
            "the 4 output channels of tensor<4x2x3xf32> are not 3 groups",
        ),
        (
            X,
            "%0 = conv %x, %w {stride = [1, 1]} : tensor<1x4x3xf32>",
            "stride [1, 1] needs 1 entries for 1 axes",
        ),
        (X, "%0 = conv %x, %w {stride = [0]} : tensor<1x4x3xf32>", "0 is not in 1..=2147483647"),
        (X, "%0 = conv %x, %w {dilation = [-2]} : tensor<1x4x3xf32>", "-2 is not in 1..="),
        (X, "%0 = conv %x, %w {lhs_dilation = [0]} : tensor<1x4x3xf32>", "lhs_dilation [0]: 0"),
        (
            X,
            "%0 = conv %x, %w {padding = [1]} : tensor<1x4x3xf32>",
            "padding [1] needs 2 entries for 1 axes",
        ),
        (
            X,
            "%0 = conv %x, %w {padding = [0, 9223372036854775807]} : tensor<1x4x3xf32>",
            "9223372036854775807 is not in -2147483647..=2147483647",
        ),
        (
            X,
            "%0 = conv %x, %w {padding = [-2, -2]} : tensor<1x4x3xf32>",
            "a window that reaches over 3 does not fit the 1 elements of an axis of length 5",
        ),
        (
            X,
            "%0 = conv %x, %w {dilation = [2147483647]} : tensor<1x4x3xf32>",
            "a window that reaches over 4294967295 does not fit",
        ),
        (
            "%x: tensor<1x1x8589934592xf32>, %w: tensor<1x1x1xf32>",
            "%0 = conv %x, %w {lhs_dilation = [2147483647]} : tensor<1x1x3xf32>",
            "windows over 8589934592 elements overflow",
        ),
        (
            "%x: tensor<2x3xf32>, %w: tensor<2x3xf32>",
            "%0 = conv %x, %w : tensor<2x3xf32>",
            "of one rank from 3 on",
        ),
        (
            "%x: tensor<1x2x5xi32>, %w: tensor<4x2x3xi32>",
            "%0 = conv %x, %w : tensor<1x4x3xi32>",
            "expected floating-point operands",
        ),
        (
            "%x: tensor<1x2x[s]xf32>, %w: tensor<4x2x3xf32>",
            "%0 = conv %x, %w {stride = [2]} : tensor<1x4x3xf32>",
            "the axis of symbolic length s needs stride 1 and lhs_dilation 1",
        ),
        (
            "%x: tensor<1x2x5xf32>, %w: tensor<4x2x[s]xf32>",
            "%0 = conv %x, %w : tensor<1x4x3xf32>",
            "needs numbers as lengths",
        ),
        (
            "%x: tensor<1x2x5xf32>, %w: tensor<4x2x0xf32>",
            "%0 = conv %x, %w : tensor<1x4x6xf32>",
            "0 is not in 1..=2147483647",
        ),
        (
            M,
            "%0 = window_sum %x {window = []} : tensor<2x3xf32>",
            "window [] needs one to 2 entries",
        ),
        (
            M,
            "%0 = window_sum %x {window = [1, 1, 1]} : tensor<2x3xf32>",
            "window [1, 1, 1] needs one to 2 entries",
        ),
        (M, "%0 = window_sum %x {window = [4]} : tensor<2x1xf32>", "does not fit the 3 elements"),
        (M, "%0 = window_sum %b {window = [1]} : tensor<2xbool>", "expected a number type"),
        (
            M,
            "%0, %1 = window_max %x {window = [2], padding = [2, 0]} : tensor<2x4xf32>, tensor<2x4xi32>",
            "padding lo = 2 leaves a window of 2 without an element",
        ),
        (
            M,
            "%0, %1 = window_max %x {window = [2], padding = [0, -1]} : tensor<2x1xf32>, tensor<2x1xi32>",
            "padding hi = -1",
        ),
        (
            "%x: tensor<2x0xf32>",
            "%0, %1 = window_max %x {window = [2], padding = [1, 1]} : tensor<2x1xf32>, tensor<2x1xi32>",
            "holds no element",
        ),
        (
            "%x: tensor<65536x65536xi8>",
            "%0, %1 = window_max %x {window = [65536, 65536]} : tensor<1x1xi8>, tensor<1x1xi32>",
            "overflow i32",
        ),
        (M, "%0 = cumsum %x {axis = 2} : tensor<2x3xf32>", "axis 2 is out of range for rank 2"),
        (M, "%0 = cumsum %b {axis = 0} : tensor<2xbool>", "expected a number type"),
        (M, "%0, %1 = sort %x {axis = -3} : tensor<2x3xf32>, tensor<2x3xi32>", "axis -3 is out of"),
        (
            "%x: tensor<4294967296xi8>",
            "%0, %1 = sort %x {axis = 0} : tensor<4294967296xi8>, tensor<4294967296xi32>",
            "overflow i32",
        ),
        (
            M,
            "%0 = scatter_add %x, %i, %u {axis = 1} : tensor<2x3xf32>",
            "expected updates of tensor<2x2xf32>, found tensor<2x3xf32>",
        ),
        (
            M,
            "%0 = scatter_add %x, %u, %u {axis = 0} : tensor<2x3xf32>",
            "expected i32 or i64 indices",
        ),
        (M, "%0 = scatter_add %b, %i, %b {axis = 0} : tensor<2xbool>", "expected a number type"),
        (M, "%0 = scatter_add %x, %i, %u {axis = 5} : tensor<2x3xf32>", "axis 5 is out of range"),
        (
            "%x: tensor<1x1x1x1x1x1x1x2xf32>, %i: tensor<2x2xi32>",
            "%0 = scatter_add %x, %i, %x {axis = 0} : tensor<1x1x1x1x1x1x1x2xf32>",
            "more than 8 axes",
        ),
        (M, "%0 = pad %x {low = [0], high = [0, 0]} : tensor<2x3xf32>", "one entry for each of 2"),
        (
            M,
            "%0 = pad %x {low = [0, -1], high = [0, 0]} : tensor<2x2xf32>",
            "cannot pad axis 1 by -1; `slice` makes it shorter",
        ),
        (
            M,
            "%0 = pad %x {low = [9223372036854775807, 0], high = [1, 0]} : tensor<2x3xf32>",
            "the padding of axis 0 overflows",
        ),
        (
            Q,
            "%0 = pad %q {low = [0, 0], high = [1, 0]} : tensor<3x32xq8_0>",
            "cannot pad the quantised",
        ),
        (M, "%0 = flip %x {axes = [0, 0]} : tensor<2x3xf32>", "axis 0 is named twice"),
        (M, "%0 = flip %x {axes = [2]} : tensor<2x3xf32>", "axis 2 is out of range"),
        (Q, "%0 = flip %q {axes = [0]} : tensor<2x32xq8_0>", "cannot flip the quantised"),
        (
            M,
            "%0, %1 = rng_bits %i : tensor<3xu32>, tensor<4xu32>",
            "expected a state of tensor<4xu32>",
        ),
        (
            "%s: tensor<4xu32>",
            "%0, %1 = rng_bits %s : tensor<3xi32>, tensor<4xu32>",
            "random bits are u32, not tensor<3xi32>",
        ),
        (Q, "%0 = quantize %h : tensor<2x32xq8_0>", "expected an f32 operand"),
        (Q, "%0 = quantize %x : tensor<2x32xf16>", "f16 is not a quantised type; use `cast`"),
        (
            S,
            "%0 = window_sum %x {window = [2, 2], stride = [2, 2]} : tensor<1x2xf32>",
            "symbolic length s",
        ),
    ];
    for (params, inst, message) in table {
        let diagnostics = check(params, inst).expect_err(inst);
        let [d] = &diagnostics[..] else { panic!("{inst}: {diagnostics:?}") };
        assert_eq!((d.code, d.loc), (Some("V27"), Loc::Op(0, 0)), "{inst}: {}", d.message);
        assert!(d.message.contains(message), "{inst}: {}", d.message);
    }
}

/// Sizes that fit no type are found where the type is written.
#[test]
fn results_that_are_too_large_are_refused() {
    let table = [
        (
            "%x: tensor<2x3xf32>",
            "%0 = pad %x {low = [4611686018427387904, 4611686018427387904], high = [0, 0]} : \
             tensor<4611686018427387906x4611686018427387907xf32>",
        ),
        (
            "%s: tensor<4xu32>",
            "%0, %1 = rng_bits %s : tensor<4611686018427387904x8xu32>, tensor<4xu32>",
        ),
    ];
    for (params, inst) in table {
        let diagnostics = check(params, inst).expect_err(inst);
        assert!(diagnostics.iter().all(|d| d.code == Some("V05")), "{diagnostics:?}");
    }
}

#[test]
fn symbolic_lengths_are_accepted_where_nothing_divides_them() {
    let table = [
        (
            "%x: tensor<[s]x2x5x6xf32>, %w: tensor<4x2x3x3xf32>",
            "%0 = conv %x, %w {stride = [2, 1]} : tensor<[s]x4x2x4xf32>",
        ),
        (
            "%x: tensor<1x2x[s]xf32>, %w: tensor<4x2x3xf32>",
            "%0 = conv %x, %w {padding = [2, 0]} : tensor<1x4x[s]xf32>",
        ),
        (
            "%x: tensor<1x2x[s]xf32>, %w: tensor<4x2x3xf32>",
            "%0 = conv %x, %w {padding = [3, 3], dilation = [2]} : tensor<1x4x[s+2]xf32>",
        ),
        // The gradient with respect to the weights sums over a symbolic batch.
        (
            "%x: tensor<1x[2*s]x5xf32>, %w: tensor<4x[s]x3xf32>",
            "%0 = conv %x, %w {groups = 2} : tensor<1x4x3xf32>",
        ),
        (
            "%x: tensor<[s]x4x4xf32>",
            "%0, %1 = window_max %x {window = [2, 2], stride = [2, 2]} : tensor<[s]x2x2xf32>, tensor<[s]x2x2xi32>",
        ),
        (
            "%x: tensor<[s]x4xf32>",
            "%0 = pad %x {low = [1, 0], high = [2, 0]} : tensor<[s+3]x4xf32>",
        ),
        ("%x: tensor<[s]x4xf32>", "%0 = flip %x {axes = [0]} : tensor<[s]x4xf32>"),
        ("%x: tensor<[s]x4xf32>", "%0 = cumsum %x {axis = 0} : tensor<[s]x4xf32>"),
        (
            "%x: tensor<[s]x4xf32>",
            "%0, %1 = sort %x {axis = 0} : tensor<[s]x4xf32>, tensor<[s]x4xi32>",
        ),
        (
            "%x: tensor<8x4xf32>, %i: tensor<[s]xi32>, %u: tensor<[s]x4xf32>",
            "%0 = scatter_add %x, %i, %u {axis = 0} : tensor<8x4xf32>",
        ),
        ("%s: tensor<4xu32>", "%0, %1 = rng_bits %s : tensor<[s]x4xu32>, tensor<4xu32>"),
        ("%x: tensor<[s]x32xf32>", "%0 = quantize %x : tensor<[s]x32xq8_0>"),
        (
            "%x: tensor<[s]xf32>, %q: tensor<2x32xq8_0>",
            "%0, %1 = barrier %x, %q : tensor<[s]xf32>, tensor<2x32xq8_0>",
        ),
        ("%x: tensor<[s]xbool>", "%0 = stop_gradient %x : tensor<[s]xbool>"),
        ("%x: tensor<[s]xi64>", "%0 = transfer %x {to = \"gpu\"} : tensor<[s]xi64>"),
    ];
    for (params, inst) in table {
        if let Err(diagnostics) = check(params, inst) {
            panic!("{inst}: {diagnostics:?}");
        }
    }
}
