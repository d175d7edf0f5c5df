//! Instructions without a kernel: the reference meaning, by one worker, on copies.
//!
//! Correct for every op and type, slow, and it allocates; [`Program::by_reference`] lists what
//! runs this way.
//!
//! [`Program::by_reference`]: crate::Program::by_reference

use aether_ir::tensor::{ConcreteType, EvalCtx};
use aether_ir::{Layout, Tensor};

use super::{Lower, Site, View};
use crate::program::RunCtx;

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Result<(), String> {
    let eval = site.inst.op.info().eval.ok_or("has no reference meaning")?;
    if let Some(v) =
        site.inputs.iter().chain(&site.outputs).find(|v| v.ty.layout != Layout::RowMajor)
    {
        return Err(format!("no kernel takes {} here", v.ty));
    }
    let (inputs, outputs) = (site.inputs.clone(), site.outputs.clone());
    let attrs = site.inst.attrs.clone();
    lower.emit(
        &site.label,
        site.reads(),
        site.writes(),
        Box::new(move |ctx, work| {
            if !work.is_first() {
                return;
            }
            let operands: Result<Vec<Tensor>, String> =
                inputs.iter().map(|v| tensor(ctx, v)).collect();
            let operands = match operands {
                Ok(operands) => operands,
                Err(e) => return ctx.fail(|| e),
            };
            let operands: Vec<&Tensor> = operands.iter().collect();
            let results: Vec<ConcreteType> = outputs.iter().map(|v| concrete(ctx, v)).collect();
            let eval_ctx = EvalCtx { operands: &operands, attrs: &attrs, results: &results };
            match eval(&eval_ctx) {
                Ok(values) => {
                    for (view, value) in outputs.iter().zip(&values) {
                        // SAFETY: the plan gives the result room for its bytes, and only this
                        // worker writes it.
                        unsafe {
                            let dst = ctx.ptr(view.loc);
                            let n = value.bytes().len();
                            std::ptr::copy_nonoverlapping(value.bytes().as_ptr(), dst, n);
                        }
                    }
                }
                Err(e) => ctx.fail(|| e.to_string()),
            }
        }),
    );
    Ok(())
}

fn concrete(ctx: &RunCtx, view: &View) -> ConcreteType {
    ConcreteType {
        dtype: view.ty.dtype,
        shape: view.dims.iter().map(|d| d.get(ctx.symbols)).collect(),
        layout: view.ty.layout,
    }
}

fn tensor(ctx: &RunCtx, view: &View) -> Result<Tensor, String> {
    let ty = concrete(ctx, view);
    let n = ty.shape.iter().product::<usize>() / ty.dtype.block_len() * ty.dtype.block_bytes();
    // SAFETY: the plan gives the value these bytes; a barrier lies behind whoever wrote them.
    let bytes = unsafe { std::slice::from_raw_parts(ctx.ptr(view.loc), n) };
    Tensor::new(ty, bytes.to_vec()).map_err(|e| e.to_string())
}
