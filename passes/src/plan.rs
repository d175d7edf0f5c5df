//! The memory plan: exact liveness, then ranges by first fit over decreasing size.
//!
//! A function is one straight list of instructions, so a value is alive from the instruction that
//! writes it to the last that reads it, both included. Values that share bytes (a reshape, an
//! operand written over) form one group with one range. What the plan promises to code generators
//! stands in [`aether_ir::plan`]; [`crate::plan_check`] proves it independently.
//!
//! Sharing is decided in one walk over the body:
//! - `reshape`, `broadcast` to as many elements, `stop_gradient`, `transfer` and a `barrier` of one
//!   operand are the same bytes, unless the result is given away while the operand is not, or the operand is
//!   given away while the result lives;
//! - a donated cache of `kv_append` or `rope_append` is written over, a donated operand of a call when the
//!   callee returns it; never when it is a constant, or a parameter that some caller keeps;
//! - an operand that dies is written over when the target's kernel can do that; by `fused`, when
//!   the result has the space of its loop.
//!
//! Functions that only `fused` names have no plan: their values never are in memory.
//!
//! Sizes are taken at the upper bounds of the symbols.
//!
//! [`Arena::Separate`] switches the sharing off that is only for saving memory: a result is then
//! wrong alike with and without it, or the plan is to blame.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::sync::Arc;

use aether_ir::fusion::{Fusion, Place};
use aether_ir::plan::{ALIGNMENT, FuncPlan, MemoryPlan, Storage, Temporary};
use aether_ir::target::Target;
use aether_ir::{Func, Inst, Layout, Module, Op, TensorType, ValueId};

use crate::arena::{self, Interval};
use crate::pass::{Pass, PassCtx, PassError, PassStats};
use crate::util::{call_graph, entries, uncalled_bodies};

/// Greatest frame and greatest value, in bytes.
pub const MAX_FRAME: u64 = 1 << 40;

/// Whether values share memory that do not live at the same time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Arena {
    /// Ranges are used again, and operands that die are written over.
    #[default]
    Shared,
    /// Every value and every callee's frame has a range of its own. What is given away is still
    /// taken over: that is the meaning of giving away.
    Separate,
}

/// The module cannot be planned.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// A value has no size, or too great a one, at the upper bounds of its symbols.
    #[error(
        "in @{func}: {value} of type {ty} has no size below 2^40 bytes; give its symbols smaller ranges"
    )]
    Size { func: Arc<str>, value: String, ty: TensorType },
    /// All values and callees' frames together are too great.
    #[error("in @{0}: the frame exceeds 2^40 bytes; give the symbols smaller ranges")]
    Frame(Arc<str>),
    /// A function calls itself, directly or through others.
    #[error("@{0} calls itself; calls must not form a cycle")]
    Recursion(Arc<str>),
    /// A call names no function.
    #[error("in @{func}: there is no function @{callee}")]
    Callee { func: Arc<str>, callee: Arc<str> },
}

/// The pass `plan`: makes and checks the plan, and counts what came out. The module stays as it is.
pub struct PlanPass;

impl Pass for PlanPass {
    fn name(&self) -> &'static str {
        "plan"
    }

    fn doc(&self) -> &'static str {
        "Makes the memory plan and proves it; the module stays as it is."
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let made = plan(module, ctx.target).map_err(|e| PassError::Module(e.to_string()))?;
        crate::plan_check::check(module, &made, ctx.target)
            .map_err(|e| PassError::Module(format!("the plan is wrong: {e}")))?;
        let mut stats = PassStats::default();
        for f in entries(module) {
            let name = module.funcs.get_index(f).map(|(name, _)| name);
            let Some(plan) = name.and_then(|name| made.funcs.get(name)) else { continue };
            stats.note("frame_bytes", plan.frame_bytes);
            stats.note("lower_bound", plan.lower_bound);
        }
        Ok(stats)
    }
}

/// Plans every function of a verified module.
///
/// # Errors
/// When a size overflows or calls form a cycle.
pub fn plan(module: &Module, target: &dyn Target) -> Result<MemoryPlan, PlanError> {
    plan_in(module, target, Arena::Shared)
}

/// As [`plan`], with or without sharing.
///
/// # Errors
/// As [`plan`].
pub fn plan_in(
    module: &Module,
    target: &dyn Target,
    arena: Arena,
) -> Result<MemoryPlan, PlanError> {
    let order = callees_first(module)?;
    let owned = owned_params(module, &order);
    let mut plans: Vec<Option<FuncPlan>> = vec![None; module.funcs.len()];
    let bodies = uncalled_bodies(module);
    for &f in &order {
        if module.funcs.get_index(f).is_some_and(|(name, _)| bodies.contains(name)) {
            continue;
        }
        let planner = Planner::new(module, target, arena, f, &owned, &plans)?;
        plans[f] = Some(planner.run()?);
    }
    let funcs = module.funcs.keys().cloned().zip(plans).filter_map(|(name, p)| Some((name, p?)));
    Ok(MemoryPlan { funcs: funcs.collect() })
}

fn callees_first(module: &Module) -> Result<Vec<usize>, PlanError> {
    for (name, func) in &module.funcs {
        for inst in func.body.iter().filter(|inst| inst.op.is_call()) {
            let callee = inst.symbol.clone().unwrap_or_else(|| "".into());
            if !module.funcs.contains_key(&callee) {
                return Err(PlanError::Callee { func: name.clone(), callee });
            }
        }
    }
    let graph = call_graph(module);
    let mut order = petgraph::algo::toposort(&graph, None).map_err(|cycle| {
        let name = module.funcs.get_index(graph[cycle.node_id()]).map(|(name, _)| name.clone());
        PlanError::Recursion(name.unwrap_or_else(|| "".into()))
    })?;
    order.reverse();
    Ok(order.into_iter().map(|n| graph[n]).collect())
}

/// What an instruction computes from constants alone, whenever the module is loaded.
pub(crate) fn load_time(func: &Func) -> Vec<bool> {
    let mut is = vec![false; func.values.len()];
    for inst in &func.body {
        let fixed = !inst.op.is_call()
            && inst.inputs().all(|v| is[v.index()])
            && inst.results.iter().all(|&r| func.ty(r).shape.as_const().is_some());
        if fixed {
            inst.results.iter().for_each(|r| is[r.index()] = true);
        }
    }
    is
}

/// Whether the only result is the operand's bytes, if under another shape.
fn same_bytes(func: &Func, inst: &Inst) -> bool {
    let ([operand], [result]) = (inst.operands.as_slice(), inst.results.as_slice()) else {
        return false;
    };
    let (x, y) = (func.ty(operand.value), func.ty(*result));
    let moves_nothing = matches!(
        inst.op,
        Op::Reshape | Op::Broadcast | Op::StopGradient | Op::Barrier | Op::Transfer
    );
    moves_nothing
        && x.layout == Layout::RowMajor
        && y.layout == Layout::RowMajor
        && x.dtype == y.dtype
        && x.shape.numel() == y.shape.numel()
}

/// Per function and parameter, whether the function may write over the parameter's buffer: in an
/// entry if the body gives it away, elsewhere if every call gives away what is its caller's own.
fn owned_params(module: &Module, callees_first: &[usize]) -> Vec<Vec<bool>> {
    let mut called = HashSet::new();
    for inst in module.funcs.values().flat_map(|f| &f.body).filter(|i| i.op == Op::Call) {
        called.extend(inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s)));
    }
    let mut owned: Vec<Vec<bool>> =
        module.funcs.values().map(|f| vec![true; f.params.len()]).collect();
    for (f, func) in module.funcs.values().enumerate() {
        if !called.contains(&f) {
            let given: HashSet<ValueId> = func
                .body
                .iter()
                .flat_map(|inst| &inst.operands)
                .filter(|o| o.donated)
                .map(|o| o.value)
                .collect();
            owned[f] = func.params.iter().map(|p| given.contains(p)).collect();
        }
    }
    // Callers come first here: what they own is settled when their calls are looked at.
    for &f in callees_first.iter().rev() {
        let func = &module.funcs[f];
        let mut own = vec![false; func.values.len()];
        for (j, p) in func.params.iter().enumerate() {
            own[p.index()] = owned[f][j];
        }
        let constant = load_time(func);
        for inst in &func.body {
            let shares = same_bytes(func, inst) && inst.operands.iter().all(|o| o.donated);
            for r in &inst.results {
                own[r.index()] =
                    !constant[r.index()] && (!shares || inst.inputs().all(|v| own[v.index()]));
            }
            if inst.op != Op::Call {
                continue;
            }
            let Some(g) = inst.symbol.as_ref().and_then(|s| module.funcs.get_index_of(s)) else {
                continue;
            };
            for (j, operand) in inst.operands.iter().enumerate().take(owned[g].len()) {
                let once = inst.inputs().filter(|&v| v == operand.value).count() == 1;
                owned[g][j] &= operand.donated && own[operand.value.index()] && once;
            }
        }
    }
    owned
}

/// Values that share bytes.
#[derive(Clone, Copy)]
struct Group {
    root: ValueId,
    /// Where the bytes come from.
    home: Home,
    /// First and last position at which they hold something that is needed.
    first: usize,
    last: usize,
    /// Greatest size of a member, in bytes.
    bytes: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Param(usize),
    Const,
    Local,
    Unused,
}

struct Planner<'a> {
    module: &'a Module,
    target: &'a dyn Target,
    arena: Arena,
    func: &'a Func,
    owned: &'a [Vec<bool>],
    f: usize,
    plans: &'a [Option<FuncPlan>],
    constant: Vec<bool>,
    /// Last position that reads a value; the body's length when it is returned.
    last_use: Vec<Option<usize>>,
    groups: Vec<Group>,
    group_of: Vec<usize>,
    storage: Vec<Storage>,
}

const NO_GROUP: usize = usize::MAX;

impl<'a> Planner<'a> {
    fn new(
        module: &'a Module,
        target: &'a dyn Target,
        arena: Arena,
        f: usize,
        owned: &'a [Vec<bool>],
        plans: &'a [Option<FuncPlan>],
    ) -> Result<Self, PlanError> {
        let func = &module.funcs[f];
        let n = func.values.len();
        let mut last_use = vec![None; n];
        for (at, inst) in func.body.iter().enumerate() {
            for v in inst.inputs() {
                last_use[v.index()] = Some(at);
            }
        }
        for v in &func.returns {
            last_use[v.index()] = Some(func.body.len());
        }
        Ok(Planner {
            module,
            target,
            arena,
            func,
            owned,
            f,
            plans,
            constant: load_time(func),
            last_use,
            groups: Vec::new(),
            group_of: vec![NO_GROUP; n],
            storage: vec![Storage::Unused; n],
        })
    }

    fn size(&self, v: ValueId) -> Result<u64, PlanError> {
        let ty = self.func.ty(v);
        ty.max_bytes(&self.module.symbols).filter(|&b| b <= MAX_FRAME).ok_or_else(|| {
            let value = match &self.func.values[v.index()].name {
                Some(name) => format!("%{name}"),
                None => format!("value {}", v.0),
            };
            PlanError::Size { func: self.func.name.clone(), value, ty: ty.clone() }
        })
    }

    fn new_group(&mut self, root: ValueId, home: Home, at: usize) -> Result<(), PlanError> {
        let bytes = self.size(root)?;
        let last = self.last_use[root.index()].unwrap_or(at).max(at);
        self.group_of[root.index()] = self.groups.len();
        self.groups.push(Group { root, home, first: at, last, bytes });
        Ok(())
    }

    fn join(&mut self, v: ValueId, of: ValueId, at: usize) {
        let g = self.group_of[of.index()];
        self.group_of[v.index()] = g;
        let last = self.last_use[v.index()].unwrap_or(at);
        self.groups[g].last = self.groups[g].last.max(last);
        self.storage[v.index()] = Storage::Alias(of);
    }

    /// For each value the last position that reads it or something that may share its bytes.
    fn extents(&self) -> Vec<usize> {
        let mut extent: Vec<usize> = self.last_use.iter().map(|u| u.unwrap_or(0)).collect();
        for inst in self.func.body.iter().rev().filter(|inst| same_bytes(self.func, inst)) {
            let (operand, result) = (inst.operands[0].value.index(), inst.results[0].index());
            extent[operand] = extent[operand].max(extent[result]);
        }
        extent
    }

    fn run(mut self) -> Result<FuncPlan, PlanError> {
        let func = self.func;
        for (j, &p) in func.params.iter().enumerate() {
            self.storage[p.index()] = Storage::Param(j);
            self.new_group(p, Home::Param(j), 0)?;
        }
        let extent = self.extents();
        let mut given_at: Vec<Option<usize>> = vec![None; func.values.len()];
        for (at, inst) in func.body.iter().enumerate() {
            for operand in inst.operands.iter().filter(|o| o.donated) {
                given_at[operand.value.index()] = Some(at);
            }
        }
        for (at, inst) in func.body.iter().enumerate() {
            if inst.results.iter().all(|r| self.constant[r.index()]) {
                for &r in &inst.results {
                    self.storage[r.index()] = Storage::Const;
                    self.new_group(r, Home::Const, at)?;
                }
                continue;
            }
            let used = inst.results.iter().any(|r| self.last_use[r.index()].is_some());
            if !used && inst.op != Op::Call {
                for &r in &inst.results {
                    self.new_group(r, Home::Unused, at)?;
                }
                continue;
            }
            if same_bytes(func, inst) {
                let (operand, result) = (inst.operands[0], inst.results[0]);
                let own_life = given_at[result.index()].is_some() && !operand.donated;
                let outlives = given_at[operand.value.index()]
                    .is_some_and(|given| given > at && extent[result.index()] >= given);
                if !own_life && !outlives {
                    self.join(result, operand.value, at);
                    continue;
                }
            }
            let overwritten = self.overwritten(at, inst);
            for (i, &r) in inst.results.iter().enumerate() {
                match overwritten.iter().find(|(result, _)| *result == i) {
                    Some((_, operand)) => self.join(r, inst.operands[*operand].value, at),
                    None => self.new_group(r, Home::Local, at)?,
                }
            }
        }
        self.place()
    }

    /// Pairs of result and operand such that the result takes over the operand's bytes.
    fn overwritten(&self, at: usize, inst: &Inst) -> Vec<(usize, usize)> {
        let func = self.func;
        match inst.op {
            Op::KvAppend | Op::RopeAppend => {
                let caches: &[(usize, usize)] =
                    if inst.op == Op::KvAppend { &[(0, 0)] } else { &[(1, 3), (2, 4)] };
                let can = |&(result, i): &(usize, usize)| {
                    let same = func.ty(inst.operands[i].value) == func.ty(inst.results[result]);
                    let donated = inst.operands[i].donated || self.target.in_place(inst.op, i);
                    same && donated && self.may_overwrite(at, inst, i)
                };
                caches.iter().copied().filter(|pair| can(pair)).collect()
            }
            Op::Call => {
                let Some((g, _, callee)) =
                    inst.symbol.as_ref().and_then(|s| self.module.funcs.get_full(s))
                else {
                    return Vec::new();
                };
                let Some(plan) = &self.plans[g] else { return Vec::new() };
                result_params(callee, plan)
                    .into_iter()
                    .enumerate()
                    .filter_map(|(i, param)| Some((i, param?)))
                    .collect()
            }
            Op::Fused => self.overwritten_by_fused(at, inst),
            _ => {
                let same_type =
                    |i: usize| func.ty(inst.operands[i].value) == func.ty(inst.results[0]);
                (0..inst.operands.len())
                    .find(|&i| {
                        inst.results.len() == 1
                            && self.target.in_place(inst.op, i)
                            && same_type(i)
                            && self.may_overwrite(at, inst, i)
                    })
                    .map(|i| (0, i))
                    .into_iter()
                    .collect()
            }
        }
    }

    /// Each wide result takes over the first operand that is free for it. Returned results choose
    /// first, in the order of the returns, and parameters are offered in their order: where state
    /// comes back in the order in which it was given, each new value lies where the old one was.
    fn overwritten_by_fused(&self, at: usize, inst: &Inst) -> Vec<(usize, usize)> {
        let Some(callee) = inst.symbol.as_ref().and_then(|s| self.module.funcs.get(s)) else {
            return Vec::new();
        };
        let Ok(fusion) = Fusion::of(callee) else { return Vec::new() };
        let mut results: Vec<usize> = (0..inst.results.len()).collect();
        results.sort_by_key(|&k| {
            let place = self.func.returns.iter().position(|&v| v == inst.results[k]);
            place.unwrap_or(usize::MAX)
        });
        let mut operands: Vec<usize> = (0..inst.operands.len()).collect();
        operands.sort_by_key(|&i| {
            match self.groups[self.group_of[inst.operands[i].value.index()]].home {
                Home::Param(j) => j,
                _ => usize::MAX,
            }
        });
        let mut taken: Vec<(usize, usize)> = Vec::new();
        for k in results {
            let (returned, result) = (callee.returns[k], &inst.results[k]);
            let wide = matches!(fusion.places[returned.index()], Place::Wide { .. });
            let free = |i: &usize| {
                self.func.ty(inst.operands[*i].value) == self.func.ty(*result)
                    && taken.iter().all(|(_, operand)| operand != i)
                    && self.target.in_place(inst.op, *i)
                    && self.may_overwrite(at, inst, *i)
            };
            if let Some(i) = operands.iter().copied().filter(|_| wide).find(free) {
                taken.push((k, i));
            }
        }
        taken
    }

    /// Whether nothing but operand `i` of this instruction needs the bytes of its group.
    fn may_overwrite(&self, at: usize, inst: &Inst, i: usize) -> bool {
        let operand = inst.operands[i];
        let g = self.group_of[operand.value.index()];
        let group = &self.groups[g];
        let own = match group.home {
            Home::Local => true,
            Home::Param(j) => operand.donated && self.owned[self.f][j],
            Home::Const | Home::Unused => false,
        };
        own && (operand.donated || self.arena == Arena::Shared)
            && group.last <= at
            && inst
                .operands
                .iter()
                .enumerate()
                .all(|(k, o)| k == i || self.group_of[o.value.index()] != g)
    }

    /// Gives every group its bytes.
    fn place(mut self) -> Result<FuncPlan, PlanError> {
        let func = self.func;
        let end = func.body.len();
        let mut copies = Vec::new();
        let mut taken = vec![false; self.groups.len()];
        for (i, &v) in func.returns.iter().enumerate() {
            let g = self.group_of[v.index()];
            let group = self.groups[g];
            let first = !std::mem::replace(&mut taken[g], true);
            match group.home {
                Home::Local if first => {
                    self.storage[group.root.index()] = Storage::Result(i);
                }
                Home::Param(j) if first && self.owned[self.f][j] => {}
                _ => copies.push((i, v)),
            }
        }

        let mut intervals = Vec::new();
        let mut framed = Vec::new();
        for group in &self.groups {
            let slot = &mut self.storage[group.root.index()];
            if group.home == Home::Local && *slot == Storage::Unused {
                intervals.push(Interval {
                    first: group.first,
                    last: group.last,
                    bytes: group.bytes.next_multiple_of(ALIGNMENT),
                });
                framed.push((group.root, group.bytes));
            }
        }
        let mut temporaries = Vec::new();
        for (at, inst) in func.body.iter().enumerate() {
            let runs = inst.results.iter().any(|r| {
                !matches!(self.groups[self.group_of[r.index()]].home, Home::Const | Home::Unused)
            });
            let bytes = match inst.op {
                _ if !runs => 0,
                Op::Call => inst
                    .symbol
                    .as_ref()
                    .and_then(|s| self.module.funcs.get_index_of(s))
                    .and_then(|g| self.plans[g].as_ref())
                    .map_or(0, |plan| plan.frame_bytes),
                _ => self.target.scratch_bytes(func, inst, &self.module.symbols),
            };
            if bytes > MAX_FRAME {
                return Err(PlanError::Frame(func.name.clone()));
            }
            if bytes > 0 {
                let rounded = bytes.next_multiple_of(ALIGNMENT);
                intervals.push(Interval { first: at, last: at, bytes: rounded });
                temporaries.push(Temporary { inst: at, offset: 0, bytes });
            }
        }
        if self.arena == Arena::Separate {
            for interval in &mut intervals {
                (interval.first, interval.last) = (0, end);
            }
        }
        let total = intervals.iter().try_fold(0u64, |sum, i| sum.checked_add(i.bytes));
        if total.is_none() {
            return Err(PlanError::Frame(func.name.clone()));
        }
        let lower_bound = arena::lower_bound(&intervals, end + 1);
        let placed = arena::place(&intervals, lower_bound);
        if placed.bytes > MAX_FRAME {
            return Err(PlanError::Frame(func.name.clone()));
        }
        for (&(root, bytes), &offset) in framed.iter().zip(&placed.offsets) {
            self.storage[root.index()] = Storage::Frame { offset, bytes };
        }
        for (temporary, &offset) in temporaries.iter_mut().zip(&placed.offsets[framed.len()..]) {
            temporary.offset = offset;
        }
        Ok(FuncPlan {
            storage: self.storage,
            temporaries,
            copies,
            frame_bytes: placed.bytes,
            lower_bound,
        })
    }
}

/// For each result the parameter whose buffer it is, if it is one's.
pub fn result_params(func: &Func, plan: &FuncPlan) -> Vec<Option<usize>> {
    func.returns
        .iter()
        .enumerate()
        .map(|(i, &v)| match plan.storage[plan.root(v).index()] {
            Storage::Param(j) if plan.copies.iter().all(|(copied, _)| *copied != i) => Some(j),
            _ => None,
        })
        .collect()
}

/// The plan as a table: for each function its frame, then values with place, size and life.
pub fn text(module: &Module, plan: &MemoryPlan) -> String {
    let mut out = String::new();
    for (name, p) in &plan.funcs {
        let Some(func) = module.funcs.get(name) else { continue };
        let percent = match p.lower_bound {
            0 => 0.0,
            bound => (p.frame_bytes as f64 / bound as f64 - 1.0) * 100.0,
        };
        // Writing to a string cannot fail.
        let _ = writeln!(
            out,
            "@{name}: frame {} bytes, lower bound {}, fragmentation {percent:.1} %",
            p.frame_bytes, p.lower_bound
        );
        func_text(&mut out, func, p);
    }
    out
}

fn func_text(out: &mut String, func: &Func, plan: &FuncPlan) {
    let mut life: Vec<Option<(usize, usize)>> = vec![None; func.values.len()];
    for (at, inst) in func.body.iter().enumerate() {
        for r in &inst.results {
            life[r.index()] = Some((at, at));
        }
        for v in inst.inputs() {
            let (first, _) = life[v.index()].unwrap_or((0, at));
            life[v.index()] = Some((first, at));
        }
    }
    for v in &func.returns {
        let (first, _) = life[v.index()].unwrap_or((0, 0));
        life[v.index()] = Some((first, func.body.len()));
    }
    let names = value_names(func);
    for (i, storage) in plan.storage.iter().enumerate() {
        let place = match storage {
            Storage::Param(j) => format!("param {j}"),
            Storage::Const => "const".to_owned(),
            Storage::Frame { offset, bytes } => format!("frame {offset}..{}", offset + bytes),
            Storage::Result(i) => format!("result {i}"),
            Storage::Alias(of) => format!("is {}", names[of.index()]),
            Storage::Unused => "unused".to_owned(),
        };
        let ty = &func.values[i].ty;
        let _ = match life[i] {
            Some((first, last)) => {
                writeln!(out, "  {} : {ty}  {place}  [{first}, {last}]", names[i])
            }
            None => writeln!(out, "  {} : {ty}  {place}", names[i]),
        };
    }
    for t in &plan.temporaries {
        let op = func.body.get(t.inst).map_or("?", |inst| inst.op.name());
        let end = t.offset + t.bytes;
        let _ = writeln!(out, "  temporary of {op}  frame {}..{end}  [{}]", t.offset, t.inst);
    }
    for (i, v) in &plan.copies {
        let _ = writeln!(out, "  result {i} is copied from {}", names[v.index()]);
    }
}

/// Names as printed: the given one, else a running number.
fn value_names(func: &Func) -> Vec<String> {
    let mut next = 0;
    func.values
        .iter()
        .map(|v| match &v.name {
            Some(name) => format!("%{name}"),
            None => {
                next += 1;
                format!("%{}", next - 1)
            }
        })
        .collect()
}
