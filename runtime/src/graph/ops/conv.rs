//! Convolution and pooling over the trailing axes of x [n, channels, spatial…].

use aether_ir::{Attr, Attrs, Op, ValueId};

use crate::graph::Tensor;
use crate::graph::tensor::Scope;

/// How a convolution's kernel moves over `N` spatial axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv<const N: usize> {
    /// Steps between neighbouring places of the kernel.
    pub stride: [usize; N],
    /// Zeros before and behind each axis.
    pub padding: [(usize, usize); N],
    /// Steps between neighbouring elements of the kernel.
    pub dilation: [usize; N],
    /// Parts into which the channels fall; each sees its own inputs only.
    pub groups: usize,
}

impl<const N: usize> Default for Conv<N> {
    fn default() -> Self {
        Conv { stride: [1; N], padding: [(0, 0); N], dilation: [1; N], groups: 1 }
    }
}

impl<const N: usize> Conv<N> {
    /// So many zeros on every side.
    pub fn padded(n: usize) -> Self {
        Conv { padding: [(n, n); N], ..Conv::default() }
    }
}

/// How a pool's window moves over `N` spatial axes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pool<const N: usize> {
    pub window: [usize; N],
    /// Steps between neighbouring windows.
    pub stride: [usize; N],
    /// Elements before and behind each axis. They are never the greatest, and count as zeros in
    /// an average.
    pub padding: [(usize, usize); N],
}

impl<const N: usize> Pool<N> {
    /// Windows side by side.
    pub fn tiles(window: [usize; N]) -> Self {
        Pool { window, stride: window, padding: [(0, 0); N] }
    }
}

fn ints(list: &[usize]) -> Vec<i64> {
    list.iter().map(|&n| i64::try_from(n).unwrap_or(i64::MAX)).collect()
}

fn padding<const N: usize>(attrs: Attrs, pads: [(usize, usize); N]) -> Attrs {
    if pads == [(0, 0); N] {
        return attrs;
    }
    let flat: Vec<usize> = pads.iter().flat_map(|&(low, high)| [low, high]).collect();
    attrs.with("padding", ints(&flat))
}

fn unless_one<const N: usize>(attrs: Attrs, name: &str, steps: [usize; N]) -> Attrs {
    if steps == [1; N] { attrs } else { attrs.with(name, ints(&steps)) }
}

fn expect_rank(s: &Scope, x: ValueId, rank: usize) -> Result<(), String> {
    let ty = s.ty(x);
    if ty.rank() != rank {
        return Err(format!("expected [n, channels, …] with {rank} axes, found {ty}"));
    }
    Ok(())
}

impl Tensor {
    /// Convolution (cross-correlation) of x [n, c_in, length] with w [c_out, c_in / groups, k].
    #[must_use]
    #[track_caller]
    pub fn conv1d(&self, weight: &Tensor, conv: Conv<1>) -> Tensor {
        self.conv("conv1d", weight, conv)
    }

    /// Convolution (cross-correlation) of x [n, c_in, height, width] with
    /// w [c_out, c_in / groups, kh, kw].
    #[must_use]
    #[track_caller]
    pub fn conv2d(&self, weight: &Tensor, conv: Conv<2>) -> Tensor {
        self.conv("conv2d", weight, conv)
    }

    #[track_caller]
    fn conv<const N: usize>(&self, name: &'static str, weight: &Tensor, conv: Conv<N>) -> Tensor {
        Tensor::build(name, &[self, weight], |s| {
            let operands = s.args.clone();
            for &v in &operands {
                expect_rank(s, v, N + 2)?;
            }
            let attrs = unless_one(Attrs::new(), "stride", conv.stride);
            let attrs = padding(attrs, conv.padding);
            let mut attrs = unless_one(attrs, "dilation", conv.dilation);
            if conv.groups != 1 {
                attrs = attrs.with("groups", ints(&[conv.groups])[0]);
            }
            s.op(Op::Conv, &operands, attrs)
        })
    }

    /// The greatest of each window of x [n, channels, length].
    #[must_use]
    #[track_caller]
    pub fn max_pool1d(&self, pool: Pool<1>) -> Tensor {
        self.max_pool("max_pool1d", pool)
    }

    /// The greatest of each window of x [n, channels, height, width].
    #[must_use]
    #[track_caller]
    pub fn max_pool2d(&self, pool: Pool<2>) -> Tensor {
        self.max_pool("max_pool2d", pool)
    }

    /// The mean of each window of x [n, channels, length].
    #[must_use]
    #[track_caller]
    pub fn avg_pool1d(&self, pool: Pool<1>) -> Tensor {
        self.avg_pool("avg_pool1d", pool)
    }

    /// The mean of each window of x [n, channels, height, width].
    #[must_use]
    #[track_caller]
    pub fn avg_pool2d(&self, pool: Pool<2>) -> Tensor {
        self.avg_pool("avg_pool2d", pool)
    }

    #[track_caller]
    fn max_pool<const N: usize>(&self, name: &'static str, pool: Pool<N>) -> Tensor {
        Tensor::build(name, &[self], |s| {
            expect_rank(s, s.args[0], N + 2)?;
            Ok(s.multi(Op::WindowMax, &[s.args[0]], window(&pool))?[0])
        })
    }

    #[track_caller]
    fn avg_pool<const N: usize>(&self, name: &'static str, pool: Pool<N>) -> Tensor {
        Tensor::build(name, &[self], |s| {
            let x = s.args[0];
            expect_rank(s, x, N + 2)?;
            let sum = s.op(Op::WindowSum, &[x], window(&pool))?;
            let n: f64 = pool.window.iter().map(|&n| n as f64).product();
            let dtype = s.ty(x).dtype;
            if !dtype.is_float() {
                return Err("expected a floating-point operand".to_owned());
            }
            let share = s.scalar(dtype, Attr::Float(1.0 / n))?;
            s.plain(Op::Mul, &[sum, share])
        })
    }
}

fn window<const N: usize>(pool: &Pool<N>) -> Attrs {
    let attrs = Attrs::new().with("window", ints(&pool.window));
    padding(unless_one(attrs, "stride", pool.stride), pool.padding)
}
