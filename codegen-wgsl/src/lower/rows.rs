//! Rows of a quantised table by index. A table above the adapter's limit for a binding is read in
//! parts of its rows, a dispatch for each.

use aether_ir::{DType, Layout, Op};

use super::{Lower, Site};
use crate::error::CompileError;
use crate::kernel::Bind;
use crate::program::Binding;
use crate::templates::gather::GatherRows;
use crate::templates::{Operand, Site as Template};

/// Whether a gather is one of rows in planes.
pub fn handles(site: &Site) -> bool {
    site.inst.op == Op::Gather
        && site.inputs[0].ty.layout == Layout::Planes
        && site.inst.attrs.int("axis", 0) == 0
}

/// The gather.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (table, indices) = (&site.inputs[0], &site.inputs[1]);
    let dtype = table.ty.dtype;
    let sizes = table.ty.shape.as_const().filter(|d| d.len() == 2);
    let sizes = sizes.as_deref().and_then(|d| d.first_chunk::<2>()).copied();
    let row = sizes.and_then(|[_, k]| dtype.planes_row_bytes(k as usize));
    let (Some([rows, k]), Some(row), DType::I32) = (sizes, row, indices.ty.dtype) else {
        return site.unsupported(format!("rows of {} by {}", table.ty, indices.ty));
    };
    let most = lower.adapter.binding_bytes / row as u64;
    // Parts begin at multiples of 256 bytes.
    let step = if most >= rows { rows } else { most / 256 * 256 };
    if step == 0 {
        return site.unsupported(format!("rows of {row} bytes"));
    }
    let operands: Vec<Operand> = vec![site.operand(0), site.operand(1)];
    for first in (0..rows).step_by(step as usize) {
        let part = first..(first + step).min(rows);
        let gather = GatherRows {
            dtype,
            rows: rows as usize,
            k: k as usize,
            n: indices.numel(),
            part: part.start as usize..part.end as usize,
        };
        let launches = {
            let template =
                Template { adapter: &lower.adapter, symbols: &lower.symbols, operands: &operands };
            gather.launches(&template)
        };
        let Some(launches) = launches else {
            return site.unsupported(format!("rows of {}", table.ty));
        };
        lower.launch(site, launches, |bind| match bind {
            Bind::Operand(0) => Ok(Binding {
                offset: table.binding.offset + part.start * row as u64,
                bytes: (part.end - part.start) * row as u64,
                ..table.binding
            }),
            _ => site.binding(bind),
        })?;
    }
    Ok(())
}
