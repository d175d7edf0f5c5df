//! Products of plain numbers, by the templates for both operands in one type.

use aether_ir::{DType, Dim, Layout, Op};

use super::{Lower, Site, View};
use crate::error::CompileError;
use crate::templates::dense::{Addend, Dense};

/// The product that an instruction is; `None` when the templates have no such form.
fn form(lower: &Lower, site: &Site) -> Option<Dense> {
    let inst = site.inst;
    let [x, w] = [0, 1].map(|i| &site.inputs[i]);
    let out = &site.outputs[0];
    let dtype = x.ty.dtype;
    let transposed = match inst.op {
        Op::MatmulAdd => true,
        Op::Matmul | Op::MatmulAct => inst.attrs.bool("transpose_b", false),
        _ => return None,
    };
    let addend = site.inputs.get(2);
    let plain = |v: &&View| v.ty.dtype == dtype && v.ty.layout == Layout::RowMajor;
    if !matches!(dtype, DType::F32 | DType::F16)
        || !site.inputs.iter().collect::<Vec<_>>().iter().all(plain)
    {
        return None;
    }
    let (xr, wr, rank) = (x.ty.rank(), w.ty.rank(), out.ty.rank());
    let number = |v: &View, axis: usize| v.dims()[axis].as_const().map(|d| d as usize);
    let (n, k) = (number(out, rank - 1)?, number(x, xr - 1)?);
    let product = |dims: &[Dim]| dims.iter().fold(Dim::new(1), |acc, d| &acc * d);
    // Leading axes: all of x are rows when w has none, else those of both are the stack.
    let (stack, rows) = if wr == 2 {
        (Dim::new(1), product(&x.dims()[..xr - 1]))
    } else if x.dims()[..xr - 2] == w.dims()[..wr - 2] {
        (product(&x.dims()[..xr - 2]), x.dims()[xr - 2].clone())
    } else {
        return None;
    };
    let addend = match addend {
        None => None,
        Some(r) if r.ty.shape == out.ty.shape => Some(Addend::Whole),
        Some(r) if r.ty.rank() == 1 => Some(Addend::Row),
        Some(_) => return None,
    };
    let most = |d: &Dim| d.upper_bound(&lower.module.symbols);
    // Indices of vectors are 32-bit numbers.
    let all = most(&stack)?.checked_mul(most(&rows)?.max(n as u64))?.checked_mul(n.max(k) as u64)?;
    if all > u64::from(u32::MAX) || most(&stack)? > u64::from(lower.adapter.workgroups_per_axis) {
        return None;
    }
    let act = inst.attrs.str("act").map(str::to_owned);
    let most_rows = most(&rows)? as usize;
    let shared = wr == 2;
    Some(Dense {
        dtype,
        stack,
        rows,
        most_rows,
        columns: n,
        depth: k,
        transposed,
        shared,
        addend,
        act,
    })
}

/// Lowers a product when there is a template for it; `false` leaves it to another way.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<bool, CompileError> {
    let Some(dense) = form(lower, site).filter(|d| d.is_supported(&lower.adapter)) else {
        return Ok(false);
    };
    lower.templates(site, |t| dense.launch(t).into_iter().collect())?;
    Ok(true)
}
