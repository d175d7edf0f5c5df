//! Elementwise chains, and what is computed row by row.

use aether_ir::{Attrs, DType, Op};
use ndarray::{Array1, Axis};

use super::{Draft, Error, array, random, tensor, to_vec};
use crate::Case;

const MANY: usize = 10_000_000;

pub fn max_all(name: &'static str) -> Result<Case, Error> {
    let x = random(MANY, 1);
    let mut draft = Draft::new();
    let p = draft.input("x", &[MANY], &x);
    let y = draft.f.op(Op::ReduceMax, &[p], Attrs::new().with("axes", vec![0i64]))?;
    let (cx, nx) = (tensor(&x, &[MANY])?, Array1::from(x));
    let case = draft.case(name, y, move || Ok(vec![cx.max_all()?]))?;
    Ok(case.ndarray(move || vec![vec![nx.fold(f32::MIN, |a, &b| a.max(b))]]))
}

/// Eight ops of one read each: `relu(sqrt(abs((1.5 x + 0.25)² - x)) x)`.
pub fn chain(name: &'static str) -> Result<Case, Error> {
    let x = random(MANY, 7);
    let mut draft = Draft::new();
    let p = draft.input("x", &[MANY], &x);
    let (a, b) = (draft.splat(DType::F32, 1.5)?, draft.splat(DType::F32, 0.25)?);
    let y = draft.op(Op::Mul, &[p, a])?;
    let y = draft.op(Op::Add, &[y, b])?;
    let y = draft.op(Op::Mul, &[y, y])?;
    let y = draft.op(Op::Sub, &[y, p])?;
    let y = draft.op(Op::Abs, &[y])?;
    let y = draft.op(Op::Sqrt, &[y])?;
    let y = draft.op(Op::Mul, &[y, p])?;
    let y = draft.op(Op::Relu, &[y])?;
    let (cx, nx) = (tensor(&x, &[MANY])?, Array1::from(x));
    let case = draft.case(name, y, move || {
        let y = ((&cx * 1.5)? + 0.25)?.sqr()?;
        let y = y.sub(&cx)?.abs()?.sqrt()?;
        Ok(vec![y.mul(&cx)?.relu()?])
    })?;
    Ok(case.ndarray(move || {
        let mut y = &nx * 1.5;
        y += 0.25;
        y.mapv_inplace(|v| v * v);
        y -= &nx;
        y.mapv_inplace(f32::abs);
        y.mapv_inplace(f32::sqrt);
        y *= &nx;
        y.mapv_inplace(|v| v.max(0.0));
        vec![y.into_raw_vec_and_offset().0]
    }))
}

const ROWS: usize = 4096;
const COLUMNS: usize = 1024;

pub fn softmax(name: &'static str) -> Result<Case, Error> {
    let x = random(ROWS * COLUMNS, 8);
    let mut draft = Draft::new();
    let p = draft.input("x", &[ROWS, COLUMNS], &x);
    let y = draft.f.op(Op::Softmax, &[p], Attrs::new().with("axis", -1i64))?;
    let (cx, nx) = (tensor(&x, &[ROWS, COLUMNS])?, array(&x, ROWS, COLUMNS)?);
    let case = draft.case(name, y, move || Ok(vec![candle_nn::ops::softmax_last_dim(&cx)?]))?;
    Ok(case.ndarray(move || {
        let mut y = nx.clone();
        y.axis_iter_mut(Axis(0)).for_each(|mut row| {
            let top = row.fold(f32::MIN, |a, &b| a.max(b));
            row.mapv_inplace(|v| (v - top).exp());
            let sum = row.sum();
            row /= sum;
        });
        vec![to_vec(y)]
    }))
}

pub fn layer_norm(name: &'static str) -> Result<Case, Error> {
    let x = random(ROWS * COLUMNS, 9);
    let (w, b) = (random(COLUMNS, 10), random(COLUMNS, 11));
    let mut draft = Draft::new();
    let p = draft.input("x", &[ROWS, COLUMNS], &x);
    let (pw, pb) = (draft.input("w", &[COLUMNS], &w), draft.input("b", &[COLUMNS], &b));
    let y = draft.f.op(Op::LayerNorm, &[p, pw, pb], Attrs::new().with("eps", 1e-5))?;
    let (cx, nx) = (tensor(&x, &[ROWS, COLUMNS])?, array(&x, ROWS, COLUMNS)?);
    let (cw, cb) = (tensor(&w, &[COLUMNS])?, tensor(&b, &[COLUMNS])?);
    let (nw, nb) = (Array1::from(w), Array1::from(b));
    let case =
        draft.case(name, y, move || Ok(vec![candle_nn::ops::layer_norm(&cx, &cw, &cb, 1e-5)?]))?;
    Ok(case.ndarray(move || {
        let mut y = nx.clone();
        y.axis_iter_mut(Axis(0)).for_each(|mut row| {
            let mean = row.mean().unwrap_or(0.0);
            row -= mean;
            let var = row.fold(0.0, |a, &v| a + v * v) / COLUMNS as f32;
            row *= 1.0 / (var + 1e-5).sqrt();
            row *= &nw;
            row += &nb;
        });
        vec![to_vec(y)]
    }))
}
