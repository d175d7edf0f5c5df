//! Products of stacks of f32 matrices, a right operand for each; one right operand of known size for
//! all rows is a layer's product.

use aether_ir::{DType, Inst, Layout, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use super::{Lower, Lowered, Site, max_count};
use crate::kernels::gemm::{self, Weights};
use crate::kernels::isa::Isa;
use crate::kernels::strided::MAX_AXES;
use crate::size::Size;

/// Rows of the left operand below which a product is not split.
const FEW_ROWS: usize = 64;

fn plain(ty: &TensorType) -> bool {
    ty.dtype == DType::F32 && ty.layout == Layout::RowMajor
}

/// Whether a product is one of stacks of f32 matrices. A single matrix counts where the kernels of
/// layers do not take it: when it is read by rows and a symbol says how long they are, or how many.
fn handles(x: &TensorType, w: &TensorType, transpose_b: bool) -> bool {
    plain(x) && plain(w) && (w.rank() > 2 || transpose_b && w.shape.as_const().is_none())
}

/// Scratch bytes of a product of stacks, for the planner; `None` for others. Each worker packs the
/// right operand that it multiplies with.
pub(crate) fn scratch_bytes(
    inst: &Inst,
    (x, w): (&TensorType, &TensorType),
    symbols: &IndexMap<Symbol, SymbolRange>,
    (isa, threads): (Isa, usize),
) -> Option<u64> {
    let transpose_b = inst.attrs.bool("transpose_b", false);
    if inst.op != Op::Matmul || !handles(x, w, transpose_b) {
        return None;
    }
    let [.., rows, columns] = w.shape.0.as_slice() else { return None };
    let (k, n) = if transpose_b { (columns, rows) } else { (rows, columns) };
    let max = |d: &aether_ir::Dim| max_count(std::slice::from_ref(d), symbols);
    let panels = gemm::packed_len(isa, max(n), max(k));
    let floats = panels.saturating_add(gemm::scratch_len(isa, max(n)));
    let each = floats.saturating_mul(4).next_multiple_of(256);
    Some(each.saturating_mul(threads) as u64)
}

/// `x · w` or `x · wᵀ` of stacks; other products are left to others.
pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let transpose_b = site.inst.attrs.bool("transpose_b", false);
    if !handles(&site.inputs[0].ty, &site.inputs[1].ty, transpose_b) {
        return Ok(false);
    }
    stacked(lower, site, transpose_b)
}

/// The stack of matrices of an operand, broadcast to that of the result.
struct Stack {
    dims: Vec<Size>,
}

impl Stack {
    /// The number of the operand's matrix for each of the result's, whose stack is `lead`.
    fn offset(&self, lead: &[usize], symbols: &[usize], mut index: usize) -> usize {
        let (mut offset, mut stride) = (0, 1);
        for (i, &len) in lead.iter().enumerate().rev() {
            let position = index % len;
            index /= len;
            let own = (i + self.dims.len()).checked_sub(lead.len()).map(|j| &self.dims[j]);
            if let Some(own) = own.map(|d| d.get(symbols)) {
                offset += if own == 1 { 0 } else { position * stride };
                stride *= own;
            }
        }
        offset
    }
}

fn stacked(lower: &mut Lower, site: &Site, transpose_b: bool) -> Lowered {
    let (a, b, c) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    if c.dims.len() > MAX_AXES {
        return Ok(false);
    }
    let isa = lower.opts.isa;
    let threads = lower.opts.threads;
    let symbols = &lower.module.symbols;
    let bytes = scratch_bytes(site.inst, (&a.ty, &b.ty), symbols, (isa, threads)).unwrap_or(0);
    let per_worker = bytes as usize / threads;
    let scratch = site.scratch(bytes as usize)?;
    let split = |v: &super::View| v.dims.split_at(v.dims.len() - 2).0.to_vec();
    let (a_stack, b_stack, lead) = (Stack { dims: split(a) }, Stack { dims: split(b) }, split(c));
    let (m, k) = (a.dims[a.dims.len() - 2].clone(), a.dims[a.dims.len() - 1].clone());
    let n = c.dims[c.dims.len() - 1].clone();
    let (a, b, c) = (a.loc, b.loc, c.loc);
    lower.emit(
        &site.label,
        site.reads(),
        site.writes().into_iter().chain([scratch.range]),
        Box::new(move |ctx, work| {
            let get = |d: &Size| d.get(ctx.symbols);
            let (m, k, n) = (get(&m), get(&k), get(&n));
            let mut lens = [1; MAX_AXES];
            lens.iter_mut().zip(&lead).for_each(|(len, d)| *len = get(d));
            let lead = &lens[..lead.len()];
            let matrices: usize = lead.iter().product();
            let parts = (2 * work.count).div_ceil(matrices.max(1)).clamp(1, (m / FEW_ROWS).max(1));
            // SAFETY: each worker has `per_worker` bytes of the scratch.
            let own = unsafe {
                let own = ctx.ptr(scratch.loc).add(work.index * per_worker);
                std::slice::from_raw_parts_mut(own.cast::<f32>(), per_worker / 4)
            };
            let (panels, own) = own.split_at_mut(gemm::packed_len(isa, n, k));
            let mut packed = None;
            work.chunks(matrices * parts, 1, |r| {
                for unit in r {
                    let (matrix, part) = (unit / parts, unit % parts);
                    let from = b_stack.offset(lead, ctx.symbols, matrix);
                    // SAFETY: matrices lie within their operands; rows of the result are claimed
                    // once.
                    unsafe {
                        let floats = |loc, matrix: usize, len: usize| {
                            let first = ctx.ptr(loc).cast::<f32>().add(matrix * len);
                            std::slice::from_raw_parts(first.cast_const(), len)
                        };
                        if packed.replace(from) != Some(from) {
                            let b = floats(b, from, k * n);
                            for p in 0..gemm::panels(isa, n) {
                                let out = panels.as_mut_ptr();
                                if transpose_b {
                                    gemm::pack_rows(isa, b, n, k, p, out);
                                } else {
                                    gemm::pack_columns(isa, b, n, k, p, out);
                                }
                            }
                        }
                        let a = floats(a, a_stack.offset(lead, ctx.symbols, matrix), m * k);
                        let weights = Weights { data: a, rows: m, k };
                        let rows = m * part / parts..m * (part + 1) / parts;
                        let c = ctx.ptr(c).cast::<f32>().add(matrix * m * n);
                        gemm::matmul(isa, weights, rows, (panels, n), (c, n), own);
                    }
                }
            });
        }),
    );
    Ok(true)
}
