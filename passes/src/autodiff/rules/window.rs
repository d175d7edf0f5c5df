//! Convolution and pools.
//!
//! A window of `size` elements, `dilation` apart, moves in steps of `stride` over an operand that
//! is spread by `lhs_dilation` and padded. The adjoint moves over the gradient, spread by the
//! stride, in steps of the operand's dilation (Dumoulin and Visin 2016); only how far it reaches
//! behind the end has to be worked out, so that the lengths come out right.

use aether_ir::op::window::Window;
use aether_ir::{Attrs, Dim, Op, Shape};

use super::super::emit::Val;
use super::super::vjp::Vjp;
use super::index::{Index, scatter};

type Ruled = Result<(), String>;

/// The windows of an instruction, one for each of the trailing axes.
fn windows(v: &Vjp, sizes: &[i64]) -> Result<Vec<Window>, String> {
    Window::of(v.attrs(), sizes)
}

/// Attributes that describe these windows.
fn attrs(windows: &[Window]) -> Attrs {
    let list = |f: fn(&Window) -> i64| windows.iter().map(f).collect::<Vec<i64>>();
    let padding = windows.iter().flat_map(|w| [w.lo, w.hi]).collect::<Vec<i64>>();
    let mut attrs = Attrs::new();
    for (name, values, default) in [
        ("stride", list(|w| w.stride), 1),
        ("padding", padding, 0),
        ("dilation", list(|w| w.dilation), 1),
        ("lhs_dilation", list(|w| w.lhs_dilation), 1),
    ] {
        if values.iter().any(|&v| v != default) {
            attrs = attrs.with(name, values);
        }
    }
    attrs
}

fn reach(w: &Window) -> i64 {
    (w.size - 1) * w.dilation + 1
}

/// The window that moves over the gradient of `outputs` elements and gives that of `inputs`.
fn adjoint(w: &Window, inputs: &Dim, outputs: &Dim) -> Window {
    let lo = (w.size - 1) * w.dilation - w.lo;
    let hi = match (inputs.as_const(), outputs.as_const()) {
        (Some(n), Some(m)) => {
            let spread = (m as i64 - 1) * w.stride + 1;
            (n as i64 - 1) * w.lhs_dilation + reach(w) - spread - lo
        }
        // A symbolic length has stride 1 and lhs_dilation 1.
        _ => reach(w) - 1 - w.hi,
    };
    Window { lo, hi, stride: w.lhs_dilation, lhs_dilation: w.stride, ..*w }
}

/// The window of the gradient of `outputs` elements, as a kernel over the operand, that gives the
/// gradient of the kernel.
fn over_operand(w: &Window, inputs: u64, outputs: u64) -> Window {
    let spread = (inputs as i64 - 1) * w.lhs_dilation + 1;
    let size = outputs as i64;
    let reach = (size - 1) * w.stride + 1;
    let hi = (w.size - 1) * w.dilation + reach - spread - w.lo;
    Window { size, stride: w.dilation, dilation: w.stride, hi, ..*w }
}

/// Both gradients are convolutions: that of x of the gradient with the kernel turned round, that
/// of w of x with the gradient.
pub(crate) fn conv(v: &Vjp) -> Ruled {
    let (g, x, w) = (v.g(), v.x(0), v.x(1));
    let kernel = numbers(&w.shape().0[2..]).ok_or("the kernel has an axis of symbolic length")?;
    let windows = windows(v, &kernel)?;
    let groups = Dim::new(v.attrs().int("groups", 1) as u64);
    let with_groups = |attrs: Attrs| match groups.is(1) {
        true => attrs,
        false => attrs.with("groups", v.attrs().int("groups", 1)),
    };
    let spatial: Vec<usize> = (2..x.rank()).collect();
    if v.needs(0) {
        let sides = spatial.iter().map(|&a| (x.dim(a), g.dim(a)));
        let back: Vec<Window> =
            windows.iter().zip(sides).map(|(w, (n, m))| adjoint(w, &n, &m)).collect();
        let turned = flip(w.cast(g.dtype()), &spatial);
        let turned = exchange(turned, 0, 1, &groups);
        v.give(0, v.e.op(Op::Conv, &[g, turned], with_groups(attrs(&back)), None));
    }
    if v.needs(1) {
        let (Some(n), Some(m)) = (numbers(&x.shape().0[2..]), numbers(&g.shape().0[2..])) else {
            return Err("a kernel has a gradient only over axes of known length".to_owned());
        };
        let sides = n.into_iter().zip(m);
        let over: Vec<Window> = windows
            .iter()
            .zip(sides)
            .map(|(w, (n, m))| over_operand(w, n as u64, m as u64))
            .collect();
        let swap: Vec<usize> = [1, 0].into_iter().chain(spatial.iter().copied()).collect();
        let images = exchange(x, 1, 0, &groups);
        let found =
            v.e.op(Op::Conv, &[images, g.transpose(&swap)], with_groups(attrs(&over)), None);
        v.give(1, found.transpose(&swap));
    }
    Ok(())
}

fn numbers(dims: &[Dim]) -> Option<Vec<i64>> {
    dims.iter().map(|d| d.as_const().map(|n| n as i64)).collect()
}

fn flip<'e>(x: Val<'e>, axes: &[usize]) -> Val<'e> {
    if axes.iter().all(|&a| x.dim(a).is(1)) {
        return x;
    }
    let list: Vec<i64> = axes.iter().map(|&a| a as i64).collect();
    x.emitter().op(Op::Flip, &[x], Attrs::new().with("axes", list), None)
}

/// Of the first two axes, one holds `groups` parts. The parts move to the other, and both change
/// places: `[G·o, i, …]` becomes `[G·i, o, …]`, and `[n, G·i, …]` becomes `[i, G·n, …]`.
fn exchange<'e>(x: Val<'e>, from: usize, to: usize, groups: &Dim) -> Val<'e> {
    let shape = x.shape();
    let rest = &shape.0[2..];
    let Some(part) = shape.0[from].exact_div(groups) else { return x };
    let other = shape.0[1 - from].clone();
    let mut split = vec![groups.clone(), part.clone()];
    split.insert(if from == 0 { 2 } else { 0 }, other.clone());
    split.extend(rest.iter().cloned());
    // Axes of the split tensor: the groups, their part, the other.
    let (g, p, o) = if from == 0 { (0, 1, 2) } else { (1, 2, 0) };
    let order = if to == 1 { [g, o, p] } else { [p, g, o] };
    let perm: Vec<usize> = order.into_iter().chain(3..3 + rest.len()).collect();
    let grown = groups * &other;
    let mut joined = if to == 1 { vec![grown, part] } else { vec![part, grown] };
    joined.extend(rest.iter().cloned());
    if groups.is(1) {
        let swap: Vec<usize> = [1, 0].into_iter().chain(2..shape.rank()).collect();
        return x.transpose(&swap);
    }
    x.reshape(Shape(split)).transpose(&perm).reshape(Shape(joined))
}

/// The adjoint windows over the gradient.
pub(crate) fn window_sum(v: &Vjp) -> Ruled {
    let (g, x) = (v.g(), v.x(0));
    let sizes = v.attrs().ints("window").unwrap_or_default();
    let windows = windows(v, sizes)?;
    let first = x.rank() - sizes.len();
    let sides = (first..x.rank()).map(|a| (x.dim(a), g.dim(a)));
    let back: Vec<Window> =
        windows.iter().zip(sides).map(|(w, (n, m))| adjoint(w, &n, &m)).collect();
    let mut all = Attrs::new().with("window", sizes.to_vec());
    all.0.extend(attrs(&back).0);
    v.give(0, v.e.op(Op::WindowSum, &[g], all, None));
    Ok(())
}

/// To the element that was picked, whose place in the trailing axes the second result says.
pub(crate) fn window_max(v: &Vjp) -> Ruled {
    let Some(g) = v.cotangent(0) else { return Ok(()) };
    let shape = v.x(0).shape();
    let first = shape.rank() - v.attrs().ints("window").unwrap_or_default().len();
    let (lead, plane) = shape.0.split_at(first);
    let (lead, plane) = (Shape(lead.to_vec()), Shape(plane.to_vec()).numel());
    let index = Index::over(v.e, &shape);
    let row = index.rows(&lead, g.rank()) * index.size(&plane);
    v.give(0, scatter(g, row + index.cast(v.y(1)), &shape));
    Ok(())
}
