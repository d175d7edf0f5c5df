//! Windows that slide over the trailing axes of a tensor, and the pools that are made of them.
//!
//! [`Window`] is the geometry of one axis, with the terms of XLA: the operand is spread by
//! `lhs_dilation` (that many steps between neighbours, zeros between them), padded by `lo` and
//! `hi` (negative padding crops), and a window of `size` elements, `dilation` apart, is moved over
//! it in steps of `stride`. Convolution uses the same geometry, and so do the kernels.
//!
//! Meanings: floats are accumulated in f64 in row-major order of the window and rounded once,
//! integers in i64, wrapping to their width.

use super::InferCtx;
use super::sort::precedes;
use crate::attr::Attrs;
use crate::dim::Dim;
use crate::dtype::DType;
use crate::tensor::{EvalCtx, EvalError, Evaluated, Tensor, reserve};
use crate::types::TensorType;

type Types = Result<Vec<TensorType>, String>;

/// Greatest window, stride, dilation and padding.
const LIMIT: i64 = i32::MAX as i64;

/// A window along one axis. `size`, `stride`, `dilation` and `lhs_dilation` lie in
/// `1..=i32::MAX`, the paddings within as much on either side of zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    pub size: i64,
    pub stride: i64,
    pub lo: i64,
    pub hi: i64,
    pub dilation: i64,
    pub lhs_dilation: i64,
}

impl Window {
    /// The windows of the attributes `stride`, `padding` (`lo, hi` of each axis), `dilation` and
    /// `lhs_dilation`, one for each of `sizes`.
    ///
    /// # Errors
    /// Names the attribute that has the wrong number of entries, or one out of range.
    pub fn of(attrs: &Attrs, sizes: &[i64]) -> Result<Vec<Window>, String> {
        let axes = sizes.len();
        let steps = |name: &str| -> Result<Vec<i64>, String> {
            let list = attrs.ints(name).map_or_else(|| vec![1; axes], <[i64]>::to_vec);
            entries(name, &list, axes, axes, 1)
        };
        let (stride, dilation) = (steps("stride")?, steps("dilation")?);
        let lhs_dilation = steps("lhs_dilation")?;
        let padding = attrs.ints("padding").map_or_else(|| vec![0; 2 * axes], <[i64]>::to_vec);
        let padding = entries("padding", &padding, 2 * axes, axes, -LIMIT)?;
        let sizes = entries("window", sizes, axes, axes, 1)?;
        let windows = (0..axes).map(|i| Window {
            size: sizes[i],
            stride: stride[i],
            lo: padding[2 * i],
            hi: padding[2 * i + 1],
            dilation: dilation[i],
            lhs_dilation: lhs_dilation[i],
        });
        Ok(windows.collect())
    }

    /// Steps from the window's first element to behind its last.
    fn reach(&self) -> i64 {
        (self.size - 1) * self.dilation + 1
    }

    /// The number of windows over an axis of that length.
    ///
    /// A symbolic length needs stride 1 and lhs_dilation 1.
    ///
    /// # Errors
    /// When no window fits, the arithmetic overflows, or the length is symbolic and has to be
    /// divided.
    pub fn count(&self, length: &Dim) -> Result<Dim, String> {
        let Some(n) = length.as_const() else {
            if self.stride != 1 || self.lhs_dilation != 1 {
                return Err(format!(
                    "the axis of symbolic length {length} needs stride 1 and lhs_dilation 1"
                ));
            }
            let change = self.lo + self.hi - (self.reach() - 1);
            let size = Dim::new(change.unsigned_abs());
            return Ok(if change < 0 { length - &size } else { length + &size });
        };
        let overflow = || format!("windows over {n} elements overflow");
        let n = i64::try_from(n).map_err(|_| overflow())?;
        let spread = match n {
            0 => 0,
            n => (n - 1)
                .checked_mul(self.lhs_dilation)
                .and_then(|s| s.checked_add(1))
                .ok_or_else(overflow)?,
        };
        let room = spread.checked_add(self.lo + self.hi).ok_or_else(overflow)?;
        if room < self.reach() {
            return Err(format!(
                "a window that reaches over {} does not fit the {room} elements of an axis of \
                 length {n} with its padding",
                self.reach()
            ));
        }
        Ok(Dim::new(((room - self.reach()) / self.stride) as u64 + 1))
    }

    /// The elements of an axis of length `n` that window number `at` holds, in rising order: index
    /// in the axis and in the window. Takes no more steps than the smaller of both has elements.
    pub fn taps(&self, n: usize, at: usize) -> impl Iterator<Item = (usize, usize)> + use<> {
        let Window { size, dilation, lhs_dilation, .. } = *self;
        // Both fit: the type rule has seen the number of windows.
        let first = at as i64 * self.stride - self.lo;
        let n = n as i64;
        let by_window = size <= n;
        (0..if by_window { size } else { n }).filter_map(move |step| {
            let (i, j) = if by_window {
                let position = first + step * dilation;
                (position.checked_rem(lhs_dilation)? == 0)
                    .then_some((position / lhs_dilation, step))?
            } else {
                let offset = step * lhs_dilation - first;
                (offset % dilation == 0).then_some((step, offset / dilation))?
            };
            ((0..n).contains(&i) && (0..size).contains(&j)).then_some((i as usize, j as usize))
        })
    }
}

/// `list` when it has `want` entries from `least` to [`LIMIT`].
fn entries(
    name: &str,
    list: &[i64],
    want: usize,
    axes: usize,
    least: i64,
) -> Result<Vec<i64>, String> {
    if list.len() != want {
        return Err(format!("{name} {list:?} needs {want} entries for {axes} axes"));
    }
    if let Some(v) = list.iter().find(|v| !(least..=LIMIT).contains(v)) {
        return Err(format!("{name} {list:?}: {v} is not in {least}..={LIMIT}"));
    }
    Ok(list.to_vec())
}

/// Walks over the row-major positions of a shape.
pub(super) struct Positions<'a> {
    shape: &'a [usize],
    at: Vec<usize>,
    left: usize,
}

impl<'a> Positions<'a> {
    pub(super) fn new(shape: &'a [usize]) -> Self {
        Positions { shape, at: vec![0; shape.len()], left: shape.iter().product() }
    }

    /// The next position, from all zeros on.
    pub(super) fn next(&mut self) -> Option<&[usize]> {
        if self.left == 0 {
            return None;
        }
        let total: usize = self.shape.iter().product();
        if self.left < total {
            for axis in (0..self.shape.len()).rev() {
                self.at[axis] += 1;
                if self.at[axis] < self.shape[axis] {
                    break;
                }
                self.at[axis] = 0;
            }
        }
        self.left -= 1;
        Some(&self.at)
    }
}

/// Row-major offsets, in the plane of `shape` and in the window, of what the window at `at` holds.
pub(super) fn offsets(windows: &[Window], shape: &[usize], at: &[usize]) -> Vec<(usize, usize)> {
    let mut all = vec![(0usize, 0usize)];
    for ((window, &n), &at) in windows.iter().zip(shape).zip(at) {
        let taps: Vec<_> = window.taps(n, at).collect();
        let size = window.size as usize;
        all = all
            .iter()
            .flat_map(|&(plane, inside)| {
                // The place in the window is not used where its size overflows.
                taps.iter()
                    .map(move |&(i, j)| (plane * n + i, inside.wrapping_mul(size).wrapping_add(j)))
            })
            .collect();
    }
    all
}

/// The windows of a pool, over as many trailing axes of `x` as `window` has entries.
fn pool_windows(ctx: &InferCtx) -> Result<Vec<Window>, String> {
    let x = ctx.operands[0];
    if x.dtype.is_quantized() || x.dtype == DType::Bool {
        return Err(format!("expected a number type, found {x}"));
    }
    let sizes = ctx.attrs.ints("window").unwrap_or_default();
    if sizes.is_empty() || sizes.len() > x.rank() {
        return Err(format!("window {sizes:?} needs one to {} entries for {x}", x.rank()));
    }
    Window::of(ctx.attrs, sizes)
}

/// Trailing axes become the numbers of windows.
fn pool_type(x: &TensorType, windows: &[Window]) -> Result<TensorType, String> {
    let mut shape = x.shape.clone();
    let first = x.rank() - windows.len();
    for (dim, window) in shape.0[first..].iter_mut().zip(windows) {
        *dim = window.count(dim)?;
    }
    Ok(TensorType::with_shape(x.dtype, shape))
}

/// Windows counted along the trailing axes.
pub fn infer_window_sum(ctx: &InferCtx) -> Types {
    Ok(vec![pool_type(ctx.operands[0], &pool_windows(ctx)?)?])
}

/// As [`infer_window_sum`], and the i32 places; every window holds an element.
pub fn infer_window_max(ctx: &InferCtx) -> Types {
    let (x, windows) = (ctx.operands[0], pool_windows(ctx)?);
    for window in &windows {
        for (name, padding) in [("lo", window.lo), ("hi", window.hi)] {
            if !(0..window.size).contains(&padding) {
                return Err(format!(
                    "padding {name} = {padding} leaves a window of {} without an element, or crops",
                    window.size
                ));
            }
        }
    }
    let plane = &x.shape.0[x.rank() - windows.len()..];
    if plane.iter().any(|d| d.is(0)) {
        return Err(format!("a window of {x} holds no element"));
    }
    let size = plane.iter().filter_map(Dim::as_const).try_fold(1u64, |n, d| n.checked_mul(d));
    if size.is_none_or(|n| n > i32::MAX as u64) {
        return Err(format!("places in the trailing axes of {x} overflow i32"));
    }
    let ty = pool_type(x, &windows)?;
    let places = ty.with_dtype(DType::I32);
    Ok(vec![ty, places])
}

/// For each plane of trailing axes and each window: the plane's first element, and the places in
/// the plane that the window holds.
fn each_window(
    ctx: &EvalCtx,
    mut f: impl FnMut(usize, &[(usize, usize)]) -> Result<(), EvalError>,
) -> Result<(), EvalError> {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let sizes = ctx.attrs.ints("window").unwrap_or_default();
    let windows = Window::of(ctx.attrs, sizes).map_err(EvalError)?;
    let first = x
        .shape()
        .len()
        .checked_sub(windows.len())
        .ok_or_else(|| EvalError("more windows than axes".to_owned()))?;
    let (outer, plane) = x.shape().split_at(first);
    let plane_size: usize = plane.iter().product();
    for o in 0..outer.iter().product() {
        let mut positions = Positions::new(&ty.shape[first..]);
        while let Some(at) = positions.next() {
            f(o * plane_size, &offsets(&windows, plane, at))?;
        }
    }
    Ok(())
}

/// Sum over windows.
pub fn eval_window_sum(ctx: &EvalCtx) -> Evaluated {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let numel = ty.numel().unwrap_or(usize::MAX);
    let no_memory = || EvalError(format!("no memory for {ty}"));
    if x.dtype().is_float() {
        let values = x.to_f64_vec()?;
        let mut sums = reserve(numel).ok_or_else(no_memory)?;
        each_window(ctx, |base, held| {
            sums.push(held.iter().map(|(i, _)| values[base + i]).fold(0.0, |a, b| a + b));
            Ok(())
        })?;
        return Ok(vec![Tensor::from_f64(ty.dtype, &ty.shape, &sums)?]);
    }
    let values = x.to_i64_vec()?;
    let mut sums = reserve(numel).ok_or_else(no_memory)?;
    each_window(ctx, |base, held| {
        sums.push(held.iter().map(|(i, _)| values[base + i]).fold(0, i64::wrapping_add));
        Ok(())
    })?;
    Ok(vec![Tensor::from_i64(ty.dtype, &ty.shape, &sums)?])
}

/// Greatest of windows and where it stands.
pub fn eval_window_max(ctx: &EvalCtx) -> Evaluated {
    let (x, ty) = (ctx.operands[0], &ctx.results[0]);
    let before = precedes(x, true)?;
    let size = x.dtype().block_bytes();
    let (mut values, mut places) = (Vec::new(), Vec::new());
    each_window(ctx, |base, held| {
        let best = held
            .iter()
            .map(|&(i, _)| i)
            .reduce(|best, i| if before(base + i, base + best) { i } else { best });
        let best =
            best.ok_or_else(|| EvalError(format!("a window of {} holds no element", x.ty())))?;
        let at = (base + best) * size;
        values.extend_from_slice(&x.bytes()[at..at + size]);
        places.push(best as i64);
        Ok(())
    })?;
    Ok(vec![
        Tensor::new(ty.clone(), values)?,
        Tensor::from_i64(DType::I32, &ctx.results[1].shape, &places)?,
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Taps by the definition: every place of the padded, spread axis is looked at.
    fn slow(w: &Window, n: usize, at: usize) -> Vec<(usize, usize)> {
        let mut taps = Vec::new();
        for j in 0..w.size {
            let position = at as i64 * w.stride + j * w.dilation - w.lo;
            for i in 0..n {
                if i as i64 * w.lhs_dilation == position {
                    taps.push((i, j as usize));
                }
            }
        }
        taps
    }

    #[test]
    fn taps_are_those_of_the_definition() {
        let mut rng = fastrand::Rng::with_seed(5);
        let mut seen = 0;
        for _ in 0..500 {
            let w = Window {
                size: rng.i64(1..5),
                stride: rng.i64(1..4),
                lo: rng.i64(-3..4),
                hi: rng.i64(-3..4),
                dilation: rng.i64(1..4),
                lhs_dilation: rng.i64(1..4),
            };
            let n = rng.usize(0..7);
            let Ok(count) = w.count(&Dim::from(n)) else { continue };
            for at in 0..count.as_const().unwrap() as usize {
                assert_eq!(w.taps(n, at).collect::<Vec<_>>(), slow(&w, n, at), "{w:?} {n} {at}");
                seen += 1;
            }
        }
        assert!(seen > 500);
    }

    #[test]
    fn huge_windows_take_few_steps() {
        let w =
            Window { size: LIMIT, stride: 1, lo: LIMIT - 1, hi: 0, dilation: 1, lhs_dilation: 1 };
        assert_eq!(w.count(&Dim::new(3)), Ok(Dim::new(3)));
        assert_eq!(w.taps(3, 1).map(|t| t.0).collect::<Vec<_>>(), [0, 1]);
    }

    #[test]
    fn symbolic_lengths_are_shifted_only() {
        let w = Window { size: 3, stride: 1, lo: 1, hi: 0, dilation: 2, lhs_dilation: 1 };
        assert_eq!(w.count(&Dim::from("s")), Ok(&Dim::from("s") - &Dim::new(3)));
        let same = Window { hi: 3, ..w };
        assert_eq!(same.count(&Dim::from("s")), Ok(Dim::from("s")));
        assert!(Window { stride: 2, ..w }.count(&Dim::from("s")).is_err());
    }
}
