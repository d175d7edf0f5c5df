//! One loop over elements: `fused`, and single elementwise ops, which are fused bodies of one
//! instruction.
//!
//! The loop runs over tiles ([`kernels::tiles`](crate::kernels::tiles)): as many elements as keep
//! all values of the body in the first-level cache. Element by element without a reduction; row
//! by row when the last axes are reduced, several times over a row when results of a reduction
//! are read back; by columns when inner axes stay. Few long rows are reduced in parts first.
//! Tiles are on the worker's stack; nothing is allocated at run.

mod build;
mod stream;

use std::mem::MaybeUninit;
use std::ops::Range;

use aether_ir::fusion::{Fusion, Role};
use aether_ir::{Func, Layout, Op, ValueId};

use super::{Count, Lower, Lowered, Site};
use crate::kernels::isa::Isa;
use crate::kernels::tiles::{self, mem};
use crate::program::{Loc, RunCtx, Work};
use crate::size::Size;
use build::{Body, Kind, Steps, Store};

/// Bytes of tiles that a worker has room for.
const ROOM: usize = 96 << 10;
/// Bytes of tiles that leave room in the first-level cache for what streams by.
const NEAR: usize = 20 << 10;
/// Most elements of a tile.
const MAX_TILE: usize = 2048;
/// Tiles are whole vectors.
const TILE_STEP: usize = 16;
/// Most addresses that a program uses.
const MAX_SLOTS: usize = 512;
/// Elements that one claim covers when there are many: claiming costs nothing beside the work.
const CLAIM: usize = 16 << 10;
/// Accumulators of a program.
const MAX_ACCS: usize = aether_ir::fusion::MAX_BODY;

/// With fewer rows than this, rows are reduced in parts.
const FEW_ROWS: usize = 32;
/// Elements of a part of a row.
const PART: usize = 64 << 10;
/// Most parts of all rows together.
const MAX_PARTS: usize = 256;

/// Whether an op is lowered here: `fused`, and what computes element by element. Broadcasts and
/// reductions alone have kernels of their own.
pub(super) fn handles(op: Op) -> bool {
    let moves = matches!(op, Op::Broadcast | Op::Splat);
    op == Op::Fused || (!moves && matches!(Role::of(op), Some(Role::Map | Role::Source)))
}

/// Lowers `fused`, or a single op as if it were.
pub(super) fn lower(lower: &mut Lower, site: &Site) -> Lowered {
    let single;
    let func = if site.inst.op == Op::Fused {
        let name = site.inst.symbol.as_ref().ok_or("names no function")?;
        lower.module.funcs.get(name).ok_or_else(|| format!("there is no function @{name}"))?
    } else {
        let all = site.inputs.iter().chain(&site.outputs);
        if all.into_iter().any(|v| v.ty.dtype.is_quantized() || v.ty.layout != Layout::RowMajor) {
            return Ok(false);
        }
        single = alone(site);
        &single
    };
    let fusion = match Fusion::of(func) {
        Ok(fusion) => fusion,
        Err(e) if site.inst.op == Op::Fused => return Err(e.message),
        // A reduction of axes that are not neighbours.
        Err(_) => return Ok(false),
    };
    let params: Vec<Loc> = site.inputs.iter().map(|v| v.loc).collect();
    let Some(body) = build::build(func, &fusion, &params, &lower.symbols)? else {
        return Ok(false);
    };
    let count = |axes: Range<usize>| {
        Count(fusion.space.0[axes].iter().map(|d| Size::new(d, &lower.symbols)).collect())
    };
    let axes = fusion.reduced.clone().unwrap_or(0..0);
    let shape = Shape {
        outer: count(0..axes.start),
        reduced: count(axes.clone()),
        inner: count(axes.end..fusion.space.rank()),
    };
    let kernel = Kernel::new(lower.opts.isa, body, site.outputs.iter().map(|v| v.loc).collect())?;
    emit(lower, site, shape, kernel);
    Ok(true)
}

/// A function of one instruction.
fn alone(site: &Site) -> Func {
    let mut func = Func::new("");
    for v in &site.inputs {
        let id = func.add_value(v.ty.clone(), None);
        func.params.push(id);
    }
    let result = func.add_value(site.outputs[0].ty.clone(), None);
    let mut inst = site.inst.clone();
    for (i, operand) in inst.operands.iter_mut().enumerate() {
        *operand = ValueId(i as u32).into();
    }
    inst.results = vec![result];
    func.body.push(inst);
    func.returns = vec![result];
    func.result_types = vec![site.outputs[0].ty.clone()];
    func
}

/// The space as three groups of axes.
#[derive(Clone, Debug)]
struct Shape {
    outer: Count,
    reduced: Count,
    inner: Count,
}

fn emit(lower: &mut Lower, site: &Site, shape: Shape, kernel: Kernel) {
    let (reads, writes) = (site.reads(), site.writes());
    match kernel.body.kind {
        Kind::Map => lower.emit(
            &site.label,
            reads,
            writes,
            Box::new(move |ctx, work| {
                let n = [&shape.outer, &shape.reduced, &shape.inner];
                kernel.map(ctx, work, n.map(|c| c.get(ctx.symbols)).iter().product());
            }),
        ),
        Kind::Columns => lower.emit(
            &site.label,
            reads,
            writes,
            Box::new(move |ctx, work| {
                let n = [&shape.outer, &shape.reduced, &shape.inner];
                kernel.columns(ctx, work, n.map(|c| c.get(ctx.symbols)));
            }),
        ),
        Kind::Rows => {
            let few = shape.outer.is_const().is_none_or(|rows| rows < FEW_ROWS);
            let long = shape.reduced.is_const().is_none_or(|n| n >= 2 * PART);
            let once = kernel.body.steps.passes.len() == 1;
            if !(few && long && once) {
                return lower.emit(
                    &site.label,
                    reads,
                    writes,
                    Box::new(move |ctx, work| {
                        let n = [&shape.outer, &shape.reduced].map(|c| c.get(ctx.symbols));
                        kernel.rows(ctx, work, n);
                    }),
                );
            }
            let kernel = std::sync::Arc::new(kernel);
            let (partial, range) = lower.extra(MAX_PARTS * kernel.body.accs.len() * 8);
            let (first, sizes) = (kernel.clone(), shape.clone());
            lower.emit(
                &site.label,
                reads,
                writes.iter().copied().chain([range]).collect::<Vec<_>>(),
                Box::new(move |ctx, work| {
                    let n = [&sizes.outer, &sizes.reduced].map(|c| c.get(ctx.symbols));
                    match parts(n) {
                        1 => first.rows(ctx, work, n),
                        parts => first.row_parts(ctx, work, n, parts, partial),
                    }
                }),
            );
            lower.emit(
                &format!("{} (parts)", site.label),
                [range],
                writes,
                Box::new(move |ctx, work| {
                    let n = [&shape.outer, &shape.reduced].map(|c| c.get(ctx.symbols));
                    match parts(n) {
                        1 => {}
                        parts => kernel.join_parts(ctx, work, n, parts, partial),
                    }
                }),
            );
        }
    }
}

/// In how many parts each row is reduced; the same for any number of workers, so that sums are.
fn parts([rows, n]: [usize; 2]) -> usize {
    if rows == 0 || rows >= FEW_ROWS || n < 2 * PART {
        return 1;
    }
    n.div_ceil(PART).min(MAX_PARTS / rows)
}

/// A body with where its results go.
struct Kernel {
    isa: Isa,
    body: Body,
    outputs: Vec<Loc>,
    /// Elements of a tile.
    tile: usize,
}

/// Addresses of tiles, and accumulators.
struct Tiles {
    /// [`ROOM`] bytes.
    room: *mut u8,
    table: [*mut u8; MAX_SLOTS],
    accs: [u64; MAX_ACCS],
}

#[repr(align(64))]
struct Room {
    _bytes: [u8; ROOM],
}

impl Kernel {
    fn new(isa: Isa, body: Body, outputs: Vec<Loc>) -> Result<Kernel, String> {
        let temps = body.at_once.as_ref().map_or(0, |s| s.temps).max(body.steps.temps);
        let streams = body.streams.iter().filter(|s| !s.is_in_place()).count();
        let accs = if body.kind == Kind::Columns { body.accs.len() } else { 0 };
        let slots = temps + body.streams.len() + outputs.len() + accs;
        let bytes = ((temps + streams) * body.lane + accs * 8).max(body.lane);
        let fits = |room: usize| room / bytes / TILE_STEP * TILE_STEP;
        let tile = fits(NEAR).clamp(8 * TILE_STEP, MAX_TILE).min(fits(ROOM));
        if slots > MAX_SLOTS || tile == 0 {
            return Err(format!("{} values at once are too many for one loop", temps + streams));
        }
        Ok(Kernel { isa, body, outputs, tile })
    }

    /// Runs `each` with tiles whose addresses are set but for streams and results, and with what
    /// is filled once.
    fn with_tiles(&self, ctx: &RunCtx, steps: &Steps, each: impl FnOnce(&mut Tiles)) {
        let mut room = MaybeUninit::<Room>::uninit();
        let mut tiles = Tiles {
            room: room.as_mut_ptr().cast(),
            table: [std::ptr::null_mut(); MAX_SLOTS],
            accs: [0; MAX_ACCS],
        };
        let mut at = tiles.room;
        let mut next = |bytes: usize| {
            let this = at;
            at = at.wrapping_add(bytes);
            this
        };
        let bytes = self.tile * self.body.lane;
        for slot in &mut tiles.table[..steps.temps] {
            *slot = next(bytes);
        }
        for (i, stream) in self.body.streams.iter().enumerate() {
            if stream.is_in_place() {
                continue;
            }
            let room = next(bytes);
            tiles.table[steps.temps + i] = room;
            if stream.is_one() {
                // SAFETY: the room is a tile of its own; one element serves the whole space.
                unsafe { stream.tile(self.isa, ctx, 0, self.tile, room) };
            }
        }
        if self.body.kind == Kind::Columns {
            let first = steps.temps + self.body.streams.len() + self.outputs.len();
            for slot in &mut tiles.table[first..first + self.body.accs.len()] {
                *slot = next(self.tile * 8);
            }
        }
        each(&mut tiles);
    }

    /// The table as a program takes it, streams and results at the elements `flat..flat + n`.
    ///
    /// # Safety
    /// The elements lie within the space.
    unsafe fn point(&self, ctx: &RunCtx, steps: &Steps, tiles: &mut Tiles, flat: usize, n: usize) {
        // Rooms were laid out in this order.
        let bytes = self.tile * self.body.lane;
        let mut room = tiles.room.wrapping_add(steps.temps * bytes);
        for (i, stream) in self.body.streams.iter().enumerate() {
            let own = room;
            if !stream.is_in_place() {
                room = room.wrapping_add(bytes);
            }
            if !stream.is_one() {
                // SAFETY: the caller's promise; the room is the stream's own.
                let tile = unsafe { stream.tile(self.isa, ctx, flat, n, own) };
                tiles.table[steps.temps + i] = tile;
            }
        }
        let first = steps.temps + self.body.streams.len();
        for store in &steps.direct {
            let base = ctx.ptr(self.outputs[store.output]);
            let at = flat * store.dtype.block_bytes();
            tiles.table[first + store.output] = base.wrapping_add(at);
        }
    }

    /// Runs steps on one tile.
    ///
    /// # Safety
    /// The table is pointed at `n` elements.
    unsafe fn run(
        &self,
        ctx: &RunCtx,
        list: &[tiles::Step],
        tiles: &mut Tiles,
        n: usize,
        count: usize,
    ) -> bool {
        // SAFETY: the table has the tiles of these steps, with room for `n` lanes each; tiles of
        // values, streams and results are apart but where the plan lets a result take over an
        // operand, whose elements are then read before they are written.
        let outcome =
            unsafe { tiles::run(self.isa, list, &tiles.table, &mut tiles.accs, n, count) };
        if let Err(e) = outcome {
            ctx.fail(|| e.to_string());
        }
        outcome.is_ok()
    }

    /// Stores tiles as elements from `first` on.
    ///
    /// # Safety
    /// The results have these elements, and nobody else touches them.
    unsafe fn store(&self, ctx: &RunCtx, stores: &[Store], tiles: &Tiles, first: usize, n: usize) {
        for store in stores {
            let at = first * store.dtype.block_bytes();
            // SAFETY: the caller's promise.
            unsafe {
                let to = ctx.ptr(self.outputs[store.output]).add(at);
                mem::store(self.isa, store.dtype, tiles.table[store.slot as usize], to, n);
            }
        }
    }

    fn map(&self, ctx: &RunCtx, work: &Work, total: usize) {
        let Some(pass) = self.body.steps.passes.first() else { return };
        let claim = (total / (4 * work.count)).clamp(1, CLAIM).next_multiple_of(self.tile);
        self.with_tiles(ctx, &self.body.steps, |tiles| {
            work.chunks(total, claim, |range| {
                for flat in range.clone().step_by(self.tile) {
                    let n = self.tile.min(range.end - flat);
                    // SAFETY: the elements lie within the space and are claimed once.
                    unsafe {
                        self.point(ctx, &self.body.steps, tiles, flat, n);
                        if !self.run(ctx, &pass.wide, tiles, n, 1) {
                            return;
                        }
                        self.store(ctx, &pass.stores, tiles, flat, n);
                    }
                }
            });
        });
    }

    /// Accumulators before the first element.
    fn start(&self, tiles: &mut Tiles) {
        for (acc, (fold, dtype)) in tiles.accs.iter_mut().zip(&self.body.accs) {
            *acc = fold.start(*dtype);
        }
    }

    fn rows(&self, ctx: &RunCtx, work: &Work, [rows, n]: [usize; 2]) {
        let steps = match &self.body.at_once {
            Some(steps) if (1..=self.tile).contains(&n) => steps,
            _ => &self.body.steps,
        };
        self.with_tiles(ctx, steps, |tiles| {
            let claim = CLAIM.div_ceil(n.max(1)).min(rows.div_ceil(4 * work.count));
            work.chunks(rows, claim, |range| {
                for row in range {
                    self.start(tiles);
                    for pass in &steps.passes {
                        if !self.pass(ctx, steps, pass, tiles, row * n..(row + 1) * n, n) {
                            return;
                        }
                    }
                    // SAFETY: each row is claimed once.
                    unsafe { self.store(ctx, &steps.narrow_stores, tiles, row, 1) };
                }
            });
        });
    }

    /// One pass over elements of a row, and what follows it.
    fn pass(
        &self,
        ctx: &RunCtx,
        steps: &Steps,
        pass: &build::Pass,
        tiles: &mut Tiles,
        range: Range<usize>,
        count: usize,
    ) -> bool {
        for flat in range.clone().step_by(self.tile) {
            let n = self.tile.min(range.end - flat);
            // SAFETY: the elements lie within the space, and the row is this worker's.
            unsafe {
                self.point(ctx, steps, tiles, flat, n);
                if !self.run(ctx, &pass.wide, tiles, n, count) {
                    return false;
                }
                self.store(ctx, &pass.stores, tiles, flat, n);
            }
        }
        // What is spread may be read by tiles of any length.
        // SAFETY: steps after a pass read no element of the space.
        unsafe { self.run(ctx, &pass.after, tiles, self.tile, count) }
    }

    /// Reduces each row in `parts` parts.
    fn row_parts(
        &self,
        ctx: &RunCtx,
        work: &Work,
        [rows, n]: [usize; 2],
        parts: usize,
        partial: Loc,
    ) {
        let steps = &self.body.steps;
        let Some(pass) = steps.passes.first() else { return };
        let len = n.div_ceil(parts).next_multiple_of(self.tile);
        self.with_tiles(ctx, steps, |tiles| {
            work.chunks(rows * parts, 1, |range| {
                for item in range {
                    let (row, part) = (item / parts, item % parts);
                    let (from, to) = ((part * len).min(n), ((part + 1) * len).min(n));
                    self.start(tiles);
                    for flat in (row * n + from..row * n + to).step_by(self.tile) {
                        let m = self.tile.min(row * n + to - flat);
                        // SAFETY: the elements lie within the space; parts are claimed once.
                        unsafe {
                            self.point(ctx, steps, tiles, flat, m);
                            if !self.run(ctx, &pass.wide, tiles, m, n) {
                                return;
                            }
                            self.store(ctx, &pass.stores, tiles, flat, m);
                        }
                    }
                    let accs = &tiles.accs[..self.body.accs.len()];
                    // SAFETY: there is room for the accumulators of every part.
                    unsafe {
                        let to = ctx.ptr(partial).cast::<u64>().add(item * accs.len());
                        std::ptr::copy_nonoverlapping(accs.as_ptr(), to, accs.len());
                    }
                }
            });
        });
    }

    /// Makes one of the parts of each row, in their order.
    fn join_parts(
        &self,
        ctx: &RunCtx,
        work: &Work,
        [rows, n]: [usize; 2],
        parts: usize,
        partial: Loc,
    ) {
        let steps = &self.body.steps;
        let Some(pass) = steps.passes.first() else { return };
        self.with_tiles(ctx, steps, |tiles| {
            work.chunks(rows, 1, |range| {
                for row in range {
                    self.start(tiles);
                    for part in 0..parts {
                        for (i, (fold, dtype)) in self.body.accs.iter().enumerate() {
                            let Some(class) = tiles::Class::of(*dtype) else { continue };
                            let at = (row * parts + part) * self.body.accs.len() + i;
                            // SAFETY: written by the step before.
                            let value = unsafe { *ctx.ptr(partial).cast::<u64>().add(at) };
                            tiles.accs[i] = fold.join(class, tiles.accs[i], value);
                        }
                    }
                    // SAFETY: no element of the space is read; each row is claimed once.
                    unsafe {
                        if !self.run(ctx, &pass.after, tiles, self.tile, n) {
                            return;
                        }
                        self.store(ctx, &steps.narrow_stores, tiles, row, 1);
                    }
                }
            });
        });
    }

    fn columns(&self, ctx: &RunCtx, work: &Work, [outer, reduced, inner]: [usize; 3]) {
        let steps = &self.body.steps;
        let Some(pass) = steps.passes.first() else { return };
        // Some columns for every worker; what one column gives does not depend on their number.
        let share = inner.div_ceil(2 * work.count).next_multiple_of(TILE_STEP);
        let width = share.clamp(4 * TILE_STEP, self.tile.max(4 * TILE_STEP)).min(self.tile);
        let strips = inner.div_ceil(width);
        let first = steps.temps + self.body.streams.len() + self.outputs.len();
        self.with_tiles(ctx, steps, |tiles| {
            work.chunks(outer * strips, 1, |range| {
                for item in range {
                    let (o, from) = (item / strips, item % strips * width);
                    let n = width.min(inner - from);
                    for (i, (fold, dtype)) in self.body.accs.iter().enumerate() {
                        // SAFETY: an accumulator tile has room for `n` accumulators.
                        let acc = unsafe {
                            let at = tiles.table[first + i].cast::<u64>();
                            std::slice::from_raw_parts_mut(at.cast::<MaybeUninit<u64>>(), n)
                        };
                        acc.fill(MaybeUninit::new(fold.start(*dtype)));
                    }
                    for r in 0..reduced {
                        let flat = (o * reduced + r) * inner + from;
                        // SAFETY: the elements lie within the space; strips are claimed once.
                        unsafe {
                            self.point(ctx, steps, tiles, flat, n);
                            if !self.run(ctx, &pass.wide, tiles, n, reduced) {
                                return;
                            }
                            self.store(ctx, &pass.stores, tiles, flat, n);
                        }
                    }
                    // SAFETY: as above, for the elements of the results.
                    unsafe {
                        if !self.run(ctx, &pass.after, tiles, n, reduced) {
                            return;
                        }
                        self.store(ctx, &steps.narrow_stores, tiles, o * inner + from, n);
                    }
                }
            });
        });
    }
}
