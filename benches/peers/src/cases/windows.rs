//! Convolutions and pools.

use aether_ir::{Attrs, Op};

use super::{Draft, Error, random, tensor};
use crate::Case;

/// A convolution of `[n, c, size, size]` with `out` filters of k × k, padded by half of that.
pub fn conv(
    name: &'static str,
    [n, c, size]: [usize; 3],
    out: usize,
    k: usize,
    stride: usize,
    groups: usize,
) -> Result<Case, Error> {
    let (x, w) = ([n, c, size, size], [out, c / groups, k, k]);
    let data = [random(x.iter().product(), 1), random(w.iter().product(), 2)];
    let mut draft = Draft::new();
    let params = [draft.input("x", &x, &data[0]), draft.input("w", &w, &data[1])];
    let attrs = Attrs::new()
        .with("stride", vec![stride as i64; 2])
        .with("padding", vec![k as i64 / 2; 4])
        .with("groups", groups as i64);
    let y = draft.f.op(Op::Conv, &params, attrs)?;
    let (cx, cw) = (tensor(&data[0], &x)?, tensor(&data[1], &w)?);
    draft.case(name, y, move || Ok(vec![cx.conv2d(&cw, k / 2, stride, 1, groups)?]))
}

pub fn max_pool(name: &'static str) -> Result<Case, Error> {
    let x = [8, 64, 56, 56];
    let data = random(x.iter().product(), 1);
    let mut draft = Draft::new();
    let p = draft.input("x", &x, &data);
    let attrs = Attrs::new().with("window", vec![2i64, 2]).with("stride", vec![2i64, 2]);
    let y = draft.f.op_multi(Op::WindowMax, &[p], attrs, &[])?;
    let cx = tensor(&data, &x)?;
    draft.case(name, y[0], move || Ok(vec![cx.max_pool2d(2)?]))
}
