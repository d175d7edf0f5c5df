//! Reductions over any axes.

use aether_ir::{DType, Inst, Op, Symbol, SymbolRange, TensorType};
use half::{bf16, f16};
use indexmap::IndexMap;

use super::{Lower, Lowered, Site, View, max_count};
use crate::kernels::reduce::{self, Fold, Greatest, PARTS, Plan, Product, Smallest, Sum};
use crate::kernels::strided::MAX_AXES;

/// Results above which a reduction is never split within results.
const FEW: usize = 1 << 14;

/// Room for the parts of so many results, in wide numbers; some even for none.
fn part_bytes(results: usize) -> usize {
    results.max(1) * PARTS * 8
}

/// Scratch bytes of a reduction, for the planner: room for the parts of a few results.
pub(crate) fn scratch_bytes(
    inst: &Inst,
    out: &TensorType,
    symbols: &IndexMap<Symbol, SymbolRange>,
) -> u64 {
    let results = max_count(&out.shape.0, symbols);
    let reduces = matches!(
        inst.op,
        Op::ReduceSum | Op::ReduceMean | Op::ReduceProd | Op::ReduceMax | Op::ReduceMin
    );
    if reduces && results <= FEW { part_bytes(results) as u64 } else { 0 }
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let x = &site.inputs[0];
    if x.ty.rank() > MAX_AXES {
        return Ok(false);
    }
    macro_rules! numbers {
        ($fold:ident) => {
            match x.ty.dtype {
                DType::F32 => emit::<$fold<f32>>(lower, site),
                DType::F64 => emit::<$fold<f64>>(lower, site),
                DType::F16 => emit::<$fold<f16>>(lower, site),
                DType::Bf16 => emit::<$fold<bf16>>(lower, site),
                DType::I8 => emit::<$fold<i8>>(lower, site),
                DType::I16 => emit::<$fold<i16>>(lower, site),
                DType::I32 => emit::<$fold<i32>>(lower, site),
                DType::I64 => emit::<$fold<i64>>(lower, site),
                DType::U8 => emit::<$fold<u8>>(lower, site),
                DType::U32 => emit::<$fold<u32>>(lower, site),
                _ => Ok(false),
            }
        };
    }
    type Total<E> = Sum<E, false>;
    match site.inst.op {
        Op::ReduceSum => numbers!(Total),
        Op::ReduceProd => numbers!(Product),
        Op::ReduceMax => numbers!(Greatest),
        Op::ReduceMin => numbers!(Smallest),
        Op::ReduceMean => match x.ty.dtype {
            DType::F32 => emit::<Sum<f32, true>>(lower, site),
            DType::F64 => emit::<Sum<f64, true>>(lower, site),
            DType::F16 => emit::<Sum<f16, true>>(lower, site),
            DType::Bf16 => emit::<Sum<bf16, true>>(lower, site),
            _ => Ok(false),
        },
        _ => Ok(false),
    }
}

/// The reduced axes.
fn mask(site: &Site, x: &View) -> Result<Vec<bool>, String> {
    let mut mask = vec![false; x.dims.len()];
    for &axis in site.inst.attrs.ints("axes").unwrap_or_default() {
        mask[x.ty.shape.axis(axis).ok_or("an axis is out of range")?] = true;
    }
    Ok(mask)
}

fn emit<F: Fold>(lower: &mut Lower, site: &Site) -> Lowered {
    let (x, out) = (&site.inputs[0], &site.outputs[0]);
    let mask = mask(site, x)?;
    let dims = x.dims.clone();
    let plan = move |symbols: &[usize]| {
        Plan::new(dims.iter().zip(&mask).map(|(d, &reduced)| (d.get(symbols), reduced)))
    };
    let isa = lower.opts.isa;
    let (x, out) = (x.loc, out.loc);
    let results = max_count(&site.outputs[0].ty.shape.0, &lower.module.symbols);
    if results > FEW {
        lower.emit(
            &site.label,
            site.reads(),
            site.writes(),
            Box::new(move |ctx, work| {
                let plan = plan(ctx.symbols);
                work.chunks(plan.units(), plan.units_per_claim(), |r| {
                    // SAFETY: operand and result have the plan's shapes; units are claimed once.
                    unsafe {
                        reduce::reduce::<F>(isa, &plan, r, ctx.ptr(x).cast(), ctx.ptr(out).cast());
                    }
                });
            }),
        );
        return Ok(true);
    }
    // Whether parts are needed is known only with the lengths: the second step then finds
    // nothing to do.
    let scratch = site.scratch(part_bytes(results))?;
    let again = plan.clone();
    lower.emit(
        &site.label,
        site.reads(),
        site.writes().into_iter().chain([scratch.range]),
        Box::new(move |ctx, work| {
            let plan = plan(ctx.symbols);
            if plan.wants_parts() {
                work.chunks(PARTS, 1, |r| {
                    for part in r {
                        // SAFETY: as below; the scratch holds the parts, each is claimed once.
                        unsafe {
                            let wide = ctx.ptr(scratch.loc);
                            reduce::reduce_part::<F>(isa, &plan, part, ctx.ptr(x).cast(), wide);
                        }
                    }
                });
                return;
            }
            work.chunks(plan.units(), plan.units_per_claim(), |r| {
                // SAFETY: operand and result have the plan's shapes; units are claimed once.
                unsafe {
                    reduce::reduce::<F>(isa, &plan, r, ctx.ptr(x).cast(), ctx.ptr(out).cast());
                }
            });
        }),
    );
    let can_split = site.inputs[0].numel().is_const().is_none_or(|n| n > 1 << 16);
    if can_split {
        lower.emit(
            &format!("{} (parts)", site.label),
            [scratch.range],
            site.writes(),
            Box::new(move |ctx, work| {
                let plan = again(ctx.symbols);
                if plan.wants_parts() {
                    work.chunks(plan.results(), 256, |r| {
                        // SAFETY: the step before made the parts.
                        unsafe {
                            let wide = ctx.ptr(scratch.loc).cast_const();
                            reduce::join_parts::<F>(&plan, r, wide, ctx.ptr(out).cast());
                        }
                    });
                }
            }),
        );
    }
    Ok(true)
}
