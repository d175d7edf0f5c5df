//! Products with weights: packed quantised ones, and f32, f16 or bf16 rows.
//!
//! A product is two steps: the left operand is prepared once (8-bit activations for quantised
//! weights, panels for dense ones when there are many tokens), then all weights that read it are
//! worked through as one list of row groups, which the workers claim.

use aether_ir::{DType, Layout, Op, TensorType};

use super::{Count, Lower, Lowered, Site, View};
use crate::kernels::act_quant::{self, QActs, Scaling};
use crate::kernels::elementwise::{self, Binary, Unary};
use crate::kernels::gemm::{self, Load, Weights};
use crate::kernels::isa::Isa;
use crate::kernels::packed::{self, PackedMatrix};
use crate::kernels::qmatmul::{self, Epilogue, Gate, OutPtr};
use crate::program::{Loc, RunCtx};
use crate::size::Size;

/// Rows of a plain product after which its epilogue follows; whole register tiles.
const FINISH_ROWS: usize = 48;

/// Rows that one claim unit covers; the packed layout's group.
const GROUP: usize = packed::GROUP;

/// Whether a weight is read by the packed quantised kernels.
pub(crate) fn is_packed(weight: &TensorType) -> bool {
    weight.layout == Layout::R16 && weight.dtype.is_quantized()
}

fn is_dense(weight: &TensorType) -> bool {
    weight.layout == Layout::RowMajor
        && matches!(weight.dtype, DType::F32 | DType::F16 | DType::Bf16)
}

/// One scratch buffer of a product: 8-bit activations, then panels, then room for each worker.
#[derive(Clone, Copy, Debug, Default)]
struct ScratchPlan {
    acts: usize,
    panels: usize,
    per_worker: usize,
    total: usize,
}

impl ScratchPlan {
    fn new(isa: Isa, threads: usize, tokens: usize, k: usize, packed: bool, dense: bool) -> Self {
        let round = |n: usize| n.next_multiple_of(256);
        let acts = if packed {
            round(act_quant::act_bytes(tokens, k).unwrap_or(usize::MAX / 2))
        } else {
            0
        };
        let (panels, per_worker) = if dense {
            let panels = gemm::packed_len(isa, tokens, k).saturating_mul(4);
            (round(panels), round(gemm::scratch_len(isa, tokens) * 4))
        } else {
            (0, 0)
        };
        let total = acts.saturating_add(panels).saturating_add(per_worker * threads);
        ScratchPlan { acts, panels, per_worker, total }
    }
}

/// Scratch bytes of a product op, for the planner.
pub(crate) fn scratch_bytes(isa: Isa, threads: usize, tokens: usize, types: &[&TensorType]) -> u64 {
    let [x, weights @ ..] = types else { return 0 };
    let k = x.shape.0.last().and_then(|d| d.as_const()).unwrap_or(0) as usize;
    let packed = weights.iter().any(|w| is_packed(w));
    let dense = weights.iter().any(|w| w.rank() == 2 && is_dense(w));
    ScratchPlan::new(isa, threads, tokens, k, packed, dense).total as u64
}

/// One weight of a product with what happens to its sums.
#[derive(Clone, Debug)]
struct Part {
    weight: Loc,
    dtype: DType,
    packed: bool,
    rows: usize,
    out: Loc,
    bias: Option<Loc>,
    residual: Option<Loc>,
    act: Option<Unary>,
    /// The second matrix of a gated product.
    up: Option<(Loc, DType)>,
    gate: Gate,
}

impl Part {
    fn groups(&self) -> usize {
        self.rows.div_ceil(GROUP)
    }

    /// Whether a packed weight of the part wants activations with one scale per 256 elements.
    fn is_super(&self) -> bool {
        let dtypes = [Some(self.dtype), self.up.map(|(_, dtype)| dtype)];
        let per_super = |d: DType| qmatmul::scaling(d) == Scaling::PerSuper;
        self.packed && dtypes.into_iter().flatten().any(per_super)
    }
}

pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let x = &site.inputs[0];
    if x.ty.dtype != DType::F32 {
        return Ok(false);
    }
    let may_be_plain = matches!(site.inst.op, Op::Matmul | Op::MatmulAct);
    if may_be_plain && !site.inst.attrs.bool("transpose_b", false) {
        return plain_matmul(lower, site);
    }
    let count = match site.inst.op {
        Op::MatmulGated => 2,
        Op::MatmulMulti => usize::try_from(site.inst.attrs.int("weights", 0)).unwrap_or(0),
        _ => 1,
    };
    let weights = &site.inputs[1..1 + count];
    let known = |w: &View| w.ty.rank() == 2 && w.ty.shape.as_const().is_some();
    if !weights.iter().all(|w| known(w) && (is_packed(&w.ty) || is_dense(&w.ty))) {
        return Ok(false);
    }
    let Some(parts) = parts(site, weights)? else { return Ok(false) };
    let k = x.ty.shape.0.last().and_then(|d| d.as_const()).ok_or("k must be a number")? as usize;
    let tokens = x.rows();
    let max_tokens = super::max_count(&x.ty.shape.0[..x.ty.rank() - 1], &lower.module.symbols);
    let any_packed = parts.iter().any(|p| p.packed);
    let any_dense = parts.iter().any(|p| !p.packed);
    // All parts read the same activations. Scales per 256 suit weights in smaller blocks too.
    let any_super = parts.iter().any(Part::is_super);
    let scaling = if any_super { Scaling::PerSuper } else { Scaling::PerBlock };
    let isa = lower.opts.isa;
    let plan = ScratchPlan::new(isa, lower.opts.threads, max_tokens, k, any_packed, any_dense);
    let scratch = site.scratch(plan.total)?;
    prepare(
        lower,
        site,
        scratch.loc,
        scratch.range,
        plan,
        (tokens.clone(), k),
        (any_packed.then_some(scaling), any_dense),
    );

    let x_loc = x.loc;
    let base = scratch.loc;
    let mut reads = site.reads();
    reads.push(scratch.range);
    let total: usize = parts.iter().map(Part::groups).sum();
    lower.emit(
        &site.label,
        reads,
        site.writes(),
        Box::new(move |ctx, work| {
            let tokens = tokens.get(ctx.symbols);
            if tokens == 0 {
                return;
            }
            let input =
                Input { ctx, isa, x: x_loc, base, plan, tokens, k, scaling, worker: work.index };
            // Small claims balance workers on a busy machine; a group of a large product is
            // long enough by itself.
            work.split(total, 16, |range| {
                let mut first = 0;
                for part in &parts {
                    let groups = part.groups();
                    let start = range.start.max(first);
                    let end = range.end.min(first + groups);
                    if start < end
                        && let Err(e) = input.run(part, start - first..end - first)
                    {
                        ctx.fail(|| e);
                        return;
                    }
                    first += groups;
                }
            });
        }),
    );
    Ok(true)
}

/// The weights of a product op with their epilogues; `None` when some combination has no kernel.
fn parts(site: &Site, weights: &[View]) -> Result<Option<Vec<Part>>, String> {
    let rows = |w: &View| {
        w.ty.shape.0[0].as_const().map(|n| n as usize).ok_or("the weight's rows must be a number")
    };
    let part = |w: &View, out: &View| -> Result<Part, String> {
        Ok(Part {
            weight: w.loc,
            dtype: w.ty.dtype,
            packed: is_packed(&w.ty),
            rows: rows(w)?,
            out: out.loc,
            bias: None,
            residual: None,
            act: None,
            up: None,
            gate: Gate::Silu,
        })
    };
    let mut parts = Vec::with_capacity(weights.len());
    match site.inst.op {
        Op::MatmulGated => {
            let mut gated = part(&weights[0], &site.outputs[0])?;
            if !(gated.packed && is_packed(&weights[1].ty)) {
                return Ok(None);
            }
            gated.gate = match site.inst.attrs.str("act") {
                Some("silu") => Gate::Silu,
                Some("gelu_tanh") => Gate::GeluTanh,
                _ => return Ok(None),
            };
            gated.up = Some((weights[1].loc, weights[1].ty.dtype));
            parts.push(gated);
        }
        Op::MatmulAdd | Op::MatmulAct => {
            let mut sum = part(&weights[0], &site.outputs[0])?;
            (sum.bias, sum.residual) = addend(site);
            if site.inst.op == Op::MatmulAct {
                sum.act = Some(activation(site)?);
            }
            parts.push(sum);
        }
        _ => {
            for (w, out) in weights.iter().zip(&site.outputs) {
                parts.push(part(w, out)?);
            }
            let biases = site.inst.attrs.ints("biases").unwrap_or_default();
            for (bias, &i) in site.inputs[1 + weights.len()..].iter().zip(biases) {
                let slot = usize::try_from(i).ok().and_then(|i| parts.get_mut(i));
                let slot = slot.ok_or("a bias names no weight")?;
                match (bias.ty.rank() == 1, slot.bias.is_none(), slot.residual.is_none()) {
                    (true, true, _) => slot.bias = Some(bias.loc),
                    (false, _, true) => slot.residual = Some(bias.loc),
                    _ => return Ok(None),
                }
            }
        }
    }
    Ok(Some(parts))
}

/// The third operand of a product as a bias, a number per column, or as a residual.
fn addend(site: &Site) -> (Option<Loc>, Option<Loc>) {
    match site.inputs.get(2) {
        Some(r) if r.ty.rank() == 1 && site.outputs[0].ty.rank() > 1 => (Some(r.loc), None),
        Some(r) => (None, Some(r.loc)),
        None => (None, None),
    }
}

fn activation(site: &Site) -> Result<Unary, String> {
    let name = site.inst.attrs.str("act").unwrap_or_default();
    let op = Op::from_name(name).and_then(crate::kernels::tiles::map::unary);
    op.ok_or_else(|| format!("unknown activation `{name}`"))
}

/// What follows a dense product, on `n` neighbouring elements of a row of the result.
///
/// # Safety
/// The pointers cover `n` elements; those read are not those written.
unsafe fn finish(
    isa: Isa,
    to: *mut f32,
    addends: [Option<*const f32>; 2],
    act: Option<Unary>,
    n: usize,
) {
    // SAFETY: the caller's promise.
    unsafe {
        for addend in addends.into_iter().flatten() {
            elementwise::binary_raw(isa, Binary::Add, to, addend, to, n);
        }
        if let Some(act) = act {
            elementwise::unary_raw(isa, act, to, to, n);
        }
    }
}

/// The step that prepares the left operand for all weights.
fn prepare(
    lower: &mut Lower,
    site: &Site,
    base: Loc,
    range: Option<super::access::Range>,
    plan: ScratchPlan,
    (tokens, k): (Count, usize),
    (packed, dense): (Option<Scaling>, bool),
) {
    let (x, isa) = (&site.inputs[0], lower.opts.isa);
    let x_loc = x.loc;
    lower.emit(
        &format!("{} (input)", site.label),
        [x.range],
        [range],
        Box::new(move |ctx, work| {
            let tokens = tokens.get(ctx.symbols);
            let panels = if dense && gemm::wants_panels(isa, tokens) {
                gemm::panels(isa, tokens)
            } else {
                0
            };
            let rows = if packed.is_some() { tokens } else { 0 };
            work.split(rows + panels, 4, |r| {
                for i in r {
                    // SAFETY: the left operand has `tokens` rows of k; the scratch was planned
                    // for them, and each row or panel is claimed once.
                    unsafe {
                        let x = ctx.ptr(x_loc).cast::<f32>();
                        let base = ctx.ptr(base);
                        if let Some(scaling) = packed.filter(|_| i < rows) {
                            let row = std::slice::from_raw_parts(x.add(i * k), k);
                            act_quant::quantize_row_raw(base, tokens, i, row, scaling);
                        } else {
                            let x = std::slice::from_raw_parts(x, tokens * k);
                            let out = base.add(plan.acts).cast::<f32>();
                            gemm::pack_rows(isa, x, tokens, k, i - rows, out);
                        }
                    }
                }
            });
        }),
    );
}

/// A product's prepared left operand during a run.
struct Input<'a> {
    ctx: &'a RunCtx<'a>,
    isa: Isa,
    x: Loc,
    base: Loc,
    plan: ScratchPlan,
    tokens: usize,
    k: usize,
    scaling: Scaling,
    worker: usize,
}

impl Input<'_> {
    fn floats(&self, loc: Loc, n: usize) -> &[f32] {
        // SAFETY: callers ask for values of `n` f32 that were written before this step.
        unsafe { std::slice::from_raw_parts(self.ctx.ptr(loc).cast::<f32>(), n) }
    }

    fn matrix(&self, loc: Loc, dtype: DType, rows: usize) -> Result<PackedMatrix<'_>, String> {
        let bytes = packed::packed_bytes(dtype, rows, self.k).map_err(|e| e.to_string())?;
        // SAFETY: the weight's type says it is packed, and has these bytes.
        let data = unsafe { std::slice::from_raw_parts(self.ctx.ptr(loc), bytes) };
        PackedMatrix::new(dtype, rows, self.k, data).map_err(|e| e.to_string())
    }

    /// Computes the row groups `groups` of one part.
    fn run(&self, part: &Part, groups: std::ops::Range<usize>) -> Result<(), String> {
        if !part.packed {
            self.dense(part, groups);
            return Ok(());
        }
        let bytes = act_quant::act_bytes(self.tokens, self.k).unwrap_or(0);
        // SAFETY: the step before filled these bytes of the scratch.
        let acts = unsafe { std::slice::from_raw_parts(self.ctx.ptr(self.base), bytes) };
        let acts =
            QActs::new(acts, self.tokens, self.k, self.scaling).ok_or("k is no multiple of 32")?;
        let weights = self.matrix(part.weight, part.dtype, part.rows)?;
        let out = OutPtr { ptr: self.ctx.ptr(part.out).cast(), stride: part.rows };
        if let Some((up, dtype)) = part.up {
            let up = self.matrix(up, dtype, part.rows)?;
            // SAFETY: the result has `tokens` rows of `part.rows`; groups are claimed once.
            return unsafe {
                qmatmul::qmatmul_gated(self.isa, part.gate, &weights, &up, &acts, groups, out)
            }
            .map_err(|e| e.to_string());
        }
        let epilogue = Epilogue {
            bias: part.bias.map(|b| self.floats(b, part.rows)),
            residual: part
                .residual
                .map(|r| (self.ctx.ptr(r).cast::<f32>().cast_const(), part.rows)),
            act: part.act.map(|act| (self.isa, act)),
        };
        // SAFETY: as above; the residual has the result's shape, and is it or apart from it.
        unsafe { qmatmul::qmatmul(self.isa, &weights, &acts, groups, out, &epilogue) }
            .map_err(|e| e.to_string())
    }

    fn dense(&self, part: &Part, groups: std::ops::Range<usize>) {
        let range = groups.start * GROUP..(groups.end * GROUP).min(part.rows);
        match part.dtype {
            DType::F16 => self.dense_rows::<half::f16>(part, range.clone()),
            DType::Bf16 => self.dense_rows::<half::bf16>(part, range.clone()),
            _ => self.dense_rows::<f32>(part, range.clone()),
        }
    }

    fn dense_rows<E: Load>(&self, part: &Part, range: std::ops::Range<usize>) {
        let (rows, k, tokens) = (part.rows, self.k, self.tokens);
        let out = self.ctx.ptr(part.out).cast::<f32>();
        // The residual may be the output itself: what is added is kept until the product stands.
        let saved = part.residual.filter(|&r| self.ctx.ptr(r) == self.ctx.ptr(part.out));
        debug_assert!(saved.is_none(), "dense products never run in place");
        // SAFETY: the weight has `rows` rows of k, the result `tokens` rows of `rows`, of which
        // `range` is claimed once; scratch was planned for the panels and each worker.
        unsafe {
            let data = std::slice::from_raw_parts(self.ctx.ptr(part.weight).cast::<E>(), rows * k);
            let weights = Weights { data, rows, k };
            if gemm::wants_panels(self.isa, tokens) {
                let base = self.ctx.ptr(self.base).add(self.plan.acts);
                let len = gemm::packed_len(self.isa, tokens, k);
                let panels = std::slice::from_raw_parts(base.cast::<f32>(), len);
                let own = base.add(self.plan.panels + self.worker * self.plan.per_worker);
                let own =
                    std::slice::from_raw_parts_mut(own.cast::<f32>(), self.plan.per_worker / 4);
                let x = (panels, tokens);
                gemm::linear(self.isa, weights, range.clone(), x, (out, rows), own);
            } else {
                let x = (self.floats(self.x, tokens * k), tokens);
                gemm::gemv(self.isa, weights, range.clone(), x, (out, rows));
            }
            for t in 0..tokens {
                let at = t * rows + range.start;
                let read = |loc, i| self.ctx.ptr(loc).cast::<f32>().cast_const().add(i);
                let addends = [
                    part.bias.map(|bias| read(bias, range.start)),
                    part.residual.map(|residual| read(residual, at)),
                ];
                finish(self.isa, out.add(at), addends, part.act, range.len());
            }
        }
    }
}

/// `x · b` for f32 matrices without leading axes on the right.
fn plain_matmul(lower: &mut Lower, site: &Site) -> Lowered {
    let (a, b) = (&site.inputs[0], &site.inputs[1]);
    let plain = b.ty.dtype == DType::F32 && b.ty.rank() == 2 && b.ty.layout == Layout::RowMajor;
    if !plain {
        return Ok(false);
    }
    let isa = lower.opts.isa;
    let m = a.rows();
    let (k, n): (Size, Size) = (b.dims[0].clone(), b.dims[1].clone());
    let (k_max, n_max) = (
        super::max_count(&b.ty.shape.0[..1], &lower.module.symbols),
        super::max_count(&b.ty.shape.0[1..], &lower.module.symbols),
    );
    let panel_bytes = (gemm::packed_len(isa, n_max, k_max) * 4).next_multiple_of(256);
    let per_worker = (gemm::scratch_len(isa, n_max) * 4).next_multiple_of(256);
    let scratch = site.scratch(panel_bytes + per_worker * lower.opts.threads)?;
    let (a_loc, b_loc, c_loc) = (a.loc, b.loc, site.outputs[0].loc);
    let (bias, residual) = addend(site);
    let act = match site.inst.op {
        Op::MatmulAct => Some(activation(site)?),
        _ => None,
    };
    {
        let (k, n) = (k.clone(), n.clone());
        lower.emit(
            &format!("{} (right operand)", site.label),
            [b.range],
            [scratch.range],
            Box::new(move |ctx, work| {
                let (k, n) = (k.get(ctx.symbols), n.get(ctx.symbols));
                work.split(gemm::panels(isa, n), 4, |r| {
                    for p in r {
                        // SAFETY: the operand has k · n elements, the scratch room for the
                        // panels; each is claimed once.
                        unsafe {
                            let b = std::slice::from_raw_parts(ctx.ptr(b_loc).cast::<f32>(), k * n);
                            gemm::pack_columns(isa, b, n, k, p, ctx.ptr(scratch.loc).cast());
                        }
                    }
                });
            }),
        );
    }
    let mut reads = site.reads();
    reads.push(scratch.range);
    lower.emit(
        &site.label,
        reads,
        site.writes(),
        Box::new(move |ctx, work| {
            let (m, k, n) = (m.get(ctx.symbols), k.get(ctx.symbols), n.get(ctx.symbols));
            // SAFETY: as above; rows are claimed once, scratch is each worker's own.
            unsafe {
                let a = std::slice::from_raw_parts(ctx.ptr(a_loc).cast::<f32>(), m * k);
                let base = ctx.ptr(scratch.loc);
                let len = gemm::packed_len(isa, n, k);
                let panels = std::slice::from_raw_parts(base.cast::<f32>(), len);
                let own = base.add(panel_bytes + work.index * per_worker).cast::<f32>();
                let own = std::slice::from_raw_parts_mut(own, per_worker / 4);
                let weights = Weights { data: a, rows: m, k };
                let c = ctx.ptr(c_loc).cast::<f32>();
                let rows_per_claim = m.div_ceil(work.count * 4).next_multiple_of(8);
                work.chunks(m, rows_per_claim, |r| {
                    // A few rows at a time, which are near still for what follows.
                    for start in r.clone().step_by(FINISH_ROWS) {
                        let r = start..r.end.min(start + FINISH_ROWS);
                        gemm::matmul(isa, weights, r.clone(), (panels, n), (c, n), own);
                        for row in r {
                            let read = |loc, i| ctx.ptr(loc).cast::<f32>().cast_const().add(i);
                            let addends = [
                                bias.map(|bias| read(bias, 0)),
                                residual.map(|residual| read(residual, row * n)),
                            ];
                            finish(isa, c.add(row * n), addends, act, n);
                        }
                    }
                });
            }
        }),
    );
    Ok(true)
}

/// Scratch bytes of [`plain_matmul`], for the planner.
pub(crate) fn plain_scratch_bytes(isa: Isa, threads: usize, k: usize, n: usize) -> u64 {
    let panels = (gemm::packed_len(isa, n, k) * 4).next_multiple_of(256);
    let per_worker = (gemm::scratch_len(isa, n) * 4).next_multiple_of(256);
    (panels + per_worker * threads) as u64
}
