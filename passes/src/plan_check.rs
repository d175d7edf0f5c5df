//! The independent checker of memory plans.
//!
//! It runs each function abstractly: every write puts a fresh token into the bytes it touches,
//! every value remembers the token it was written with, and a read must find that token. So it
//! needs no liveness and no intervals, and shares no code with the planner: whatever the planner
//! overlooks shows up as a read that finds another token.
//!
//! Proved per function, callees first: every value read was written and is intact, in its whole
//! length; a kernel's results and scratch do not touch its operands, except where the plan says
//! that the result takes over one operand and the op or the callee can do that; constants and
//! buffers that the caller keeps are never written; at the end each result is where the caller
//! looks for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use aether_ir::fusion::{self, Fusion};
use aether_ir::plan::{ALIGNMENT, FuncPlan, MemoryPlan, Storage};
use aether_ir::target::Target;
use aether_ir::{Func, Inst, Layout, Module, Op, ValueId};

/// A plan that would compute something else than its module.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("in @{func}{}: {message}", at.map(|at| format!(", instruction {at}")).unwrap_or_default())]
pub struct Violation {
    pub func: Arc<str>,
    /// Index into the body; `None` for the plan as a whole, and for what is wrong at the end.
    pub at: Option<usize>,
    pub message: String,
}

/// Proves that a plan is sound.
///
/// # Errors
/// The first violation.
pub fn check(module: &Module, plan: &MemoryPlan, target: &dyn Target) -> Result<(), Violation> {
    let mut done: HashMap<Arc<str>, Summary> = HashMap::new();
    // Functions whose callees are all checked, until none is left.
    // What only `fused` names runs inside of one instruction and has no values in memory.
    let names = |op: Op| -> HashSet<&str> {
        let insts = module.funcs.values().flat_map(|f| &f.body).filter(|inst| inst.op == op);
        insts.filter_map(|inst| inst.symbol.as_deref()).collect()
    };
    let (fused, called) = (names(Op::Fused), names(Op::Call));
    let inner = |f: &&Func| fused.contains(&*f.name) && !called.contains(&*f.name);
    let mut waiting: Vec<&Func> = module.funcs.values().filter(|f| !inner(f)).collect();
    while !waiting.is_empty() {
        let before = waiting.len();
        let mut later = Vec::new();
        for func in waiting {
            let ready = func
                .body
                .iter()
                .filter(|inst| inst.op == Op::Call)
                .all(|inst| inst.symbol.as_ref().is_some_and(|s| done.contains_key(s)));
            if !ready {
                later.push(func);
                continue;
            }
            let whole = |message: &str| Violation {
                func: func.name.clone(),
                at: None,
                message: message.to_owned(),
            };
            let Some(func_plan) = plan.funcs.get(&func.name) else {
                return Err(whole("the function has no plan"));
            };
            if func_plan.storage.len() != func.values.len() {
                return Err(whole("the plan is for another number of values"));
            }
            let entry = !called.contains(&*func.name);
            let run = Run::new(module, func, func_plan, target, &done, plan);
            done.insert(func.name.clone(), run.check(entry)?);
        }
        if later.len() == before {
            return Err(Violation {
                func: later[0].name.clone(),
                at: None,
                message: "a call leads nowhere or in a circle".to_owned(),
            });
        }
        waiting = later;
    }
    Ok(())
}

/// What callers must know of a checked function.
struct Summary {
    /// Per parameter, whether its buffer is written.
    writes: Vec<bool>,
    /// Per result, the parameter whose buffer it is.
    is_param: Vec<Option<usize>>,
}

/// What bytes hold: a number per write.
type Token = u64;

/// Where bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Param(usize),
    Result(usize),
    Frame(u64, u64),
    Const,
}

struct Run<'a> {
    module: &'a Module,
    func: &'a Func,
    plan: &'a FuncPlan,
    target: &'a dyn Target,
    done: &'a HashMap<Arc<str>, Summary>,
    plans: &'a MemoryPlan,
    /// Values computed from constants alone.
    fixed: HashSet<ValueId>,
    next: Token,
    /// What each value was written with.
    tokens: Vec<Option<Token>>,
    params: Vec<Token>,
    results: Vec<Option<Token>>,
    /// Disjoint ranges of the frame by start: end and token.
    frame: BTreeMap<u64, (u64, Token)>,
    writes: Vec<bool>,
}

type Checked<T> = Result<T, String>;

impl<'a> Run<'a> {
    fn new(
        module: &'a Module,
        func: &'a Func,
        plan: &'a FuncPlan,
        target: &'a dyn Target,
        done: &'a HashMap<Arc<str>, Summary>,
        plans: &'a MemoryPlan,
    ) -> Self {
        let mut run = Run {
            module,
            func,
            plan,
            target,
            done,
            plans,
            fixed: HashSet::new(),
            next: 0,
            tokens: vec![None; func.values.len()],
            params: Vec::new(),
            results: vec![None; func.returns.len()],
            frame: BTreeMap::new(),
            writes: vec![false; func.params.len()],
        };
        for &p in &func.params {
            let token = run.fresh();
            run.params.push(token);
            run.tokens[p.index()] = Some(token);
        }
        run
    }

    fn fresh(&mut self) -> Token {
        self.next += 1;
        self.next
    }

    fn check(mut self, entry: bool) -> Result<Summary, Violation> {
        let func = self.func;
        let violation = |at, message| Violation { func: func.name.clone(), at, message };
        self.check_form().map_err(|m| violation(None, m))?;
        for (at, inst) in func.body.iter().enumerate() {
            self.step(at, inst).map_err(|m| violation(Some(at), m))?;
        }
        let is_param = self.finish(entry).map_err(|m| violation(None, m))?;
        Ok(Summary { writes: self.writes, is_param })
    }

    /// What can be said without running: aliases end, ranges fit, parameters are where they are.
    fn check_form(&self) -> Checked<()> {
        for (i, storage) in self.plan.storage.iter().enumerate() {
            let v = ValueId(i as u32);
            match *storage {
                Storage::Frame { offset, bytes } => {
                    let needed = self.size(v)?;
                    if offset % ALIGNMENT != 0 || bytes < needed {
                        return Err(format!("{} needs {needed} aligned bytes", self.name(v)));
                    }
                    self.fits(offset, bytes)?;
                }
                Storage::Alias(_) => {
                    self.root(v)?;
                }
                Storage::Result(r) => {
                    let Some(&returned) = self.func.returns.get(r) else {
                        return Err(format!("there is no result {r}"));
                    };
                    if self.size(v)? > self.size(returned)? {
                        return Err(format!("{} is greater than result {r}", self.name(v)));
                    }
                }
                Storage::Param(j) => {
                    if self.func.params.get(j) != Some(&v) {
                        return Err(format!("{} is not parameter {j}", self.name(v)));
                    }
                }
                Storage::Const | Storage::Unused => {}
            }
        }
        for (j, p) in self.func.params.iter().enumerate() {
            if self.plan.storage[p.index()] != Storage::Param(j) {
                return Err(format!("parameter {j} is elsewhere"));
            }
        }
        if self.plan.lower_bound > self.plan.frame_bytes {
            return Err("the frame is smaller than its lower bound".to_owned());
        }
        if !self.plan.temporaries.is_sorted_by(|a, b| a.inst < b.inst) {
            return Err("temporaries are out of order".to_owned());
        }
        for t in &self.plan.temporaries {
            if t.offset % ALIGNMENT != 0 {
                return Err(format!("the temporary at {} is not aligned", t.offset));
            }
            self.fits(t.offset, t.bytes)?;
        }
        Ok(())
    }

    fn fits(&self, offset: u64, bytes: u64) -> Checked<()> {
        match offset.checked_add(bytes) {
            Some(end) if end <= self.plan.frame_bytes => Ok(()),
            _ => Err(format!("{bytes} bytes at {offset} leave the frame")),
        }
    }

    fn name(&self, v: ValueId) -> String {
        match self.func.values.get(v.index()).and_then(|value| value.name.as_ref()) {
            Some(name) => format!("%{name}"),
            None => format!("value {}", v.0),
        }
    }

    fn size(&self, v: ValueId) -> Checked<u64> {
        let ty = self.func.ty(v);
        ty.max_bytes(&self.module.symbols).ok_or_else(|| format!("{ty} has no size"))
    }

    fn root(&self, v: ValueId) -> Checked<ValueId> {
        let mut at = v;
        for _ in 0..=self.plan.storage.len() {
            match self.plan.storage.get(at.index()) {
                Some(Storage::Alias(of)) => at = *of,
                Some(_) => return Ok(at),
                None => return Err(format!("{} shares the bytes of nothing", self.name(v))),
            }
        }
        Err(format!("{} is an alias of itself", self.name(v)))
    }

    fn place(&self, v: ValueId) -> Checked<Place> {
        Ok(match self.plan.storage[self.root(v)?.index()] {
            Storage::Param(j) => Place::Param(j),
            Storage::Result(r) => Place::Result(r),
            Storage::Frame { offset, bytes } => Place::Frame(offset, bytes),
            Storage::Const => Place::Const,
            Storage::Unused | Storage::Alias(_) => {
                return Err(format!("{} has no bytes", self.name(v)));
            }
        })
    }

    /// What is at a place, when one write filled it.
    fn content(&self, place: Place) -> Option<Token> {
        match place {
            Place::Param(j) => self.params.get(j).copied(),
            Place::Result(r) => self.results[r],
            // A constant's token never changes; a range of no bytes holds anything.
            Place::Const => None,
            Place::Frame(start, bytes) => {
                let &(end, token) = self.frame.get(&start)?;
                (end == start + bytes).then_some(token)
            }
        }
    }

    fn read(&self, v: ValueId) -> Checked<()> {
        let place = self.place(v)?;
        let intact = match place {
            Place::Const => self.fixed.contains(&v),
            Place::Frame(_, 0) => true,
            _ => self.tokens[v.index()].is_some() && self.content(place) == self.tokens[v.index()],
        };
        if !intact {
            return Err(format!("{} is read where it is not, or no more", self.name(v)));
        }
        Ok(())
    }

    fn write(&mut self, place: Place, token: Token) -> Checked<()> {
        match place {
            Place::Const => return Err("a constant is written".to_owned()),
            Place::Param(j) => {
                self.params[j] = token;
                self.writes[j] = true;
            }
            Place::Result(r) => self.results[r] = Some(token),
            Place::Frame(_, 0) => {}
            Place::Frame(start, bytes) => {
                let end = start + bytes;
                // What is only partly overwritten is lost as a whole.
                let hit: Vec<u64> = self
                    .frame
                    .range(..end)
                    .rev()
                    .take_while(|(_, (e, _))| *e > start)
                    .map(|(s, _)| *s)
                    .collect();
                for s in hit {
                    self.frame.remove(&s);
                }
                self.frame.insert(start, (end, token));
            }
        }
        Ok(())
    }

    fn step(&mut self, at: usize, inst: &Inst) -> Checked<()> {
        let storage = |v: &ValueId| self.plan.storage[v.index()];
        let count = |s: Storage| inst.results.iter().filter(|r| storage(r) == s).count();
        let (constants, unused) = (count(Storage::Const), count(Storage::Unused));
        if constants > 0 {
            return self.load_step(inst, constants);
        }
        if unused > 0 {
            if unused < inst.results.len() || inst.op == Op::Call {
                return Err("an instruction that runs has a result without bytes".to_owned());
            }
            return Ok(());
        }
        for v in inst.inputs() {
            self.read(v)?;
        }
        if let Some((operand, result)) = self.reinterpreted(inst)? {
            self.tokens[result.index()] = self.tokens[operand.index()];
            return Ok(());
        }
        let takes = self.takeovers(inst)?;
        self.check_apart(at, inst, &takes)?;
        if let Some(t) = self.plan.temporary(at) {
            let token = self.fresh();
            self.write(Place::Frame(t.offset, t.bytes), token)?;
        }
        self.callee_writes(inst)?;
        for &r in &inst.results {
            let token = self.fresh();
            self.write(self.place(r)?, token)?;
            self.tokens[r.index()] = Some(token);
        }
        Ok(())
    }

    /// An instruction that runs when the module is loaded.
    fn load_step(&mut self, inst: &Inst, constants: usize) -> Checked<()> {
        let known = !inst.op.is_call() && inst.inputs().all(|v| self.fixed.contains(&v));
        let sized = inst.results.iter().all(|&r| self.func.ty(r).shape.as_const().is_some());
        if constants < inst.results.len() || !known || !sized {
            return Err("not computed from constants alone".to_owned());
        }
        self.fixed.extend(inst.results.iter().copied());
        Ok(())
    }

    /// Operand and result of an instruction that only looks at the same bytes differently.
    fn reinterpreted(&self, inst: &Inst) -> Checked<Option<(ValueId, ValueId)>> {
        let (
            Op::Reshape | Op::Broadcast | Op::StopGradient | Op::Barrier | Op::Transfer,
            [operand],
            [result],
        ) = (inst.op, &inst.operands[..], &inst.results[..])
        else {
            return Ok(None);
        };
        let (operand, result) = (operand.value, *result);
        if self.plan.storage[result.index()] != Storage::Alias(operand) {
            return Ok(None);
        }
        let (x, y) = (self.func.ty(operand), self.func.ty(result));
        let rows = x.layout == Layout::RowMajor && y.layout == Layout::RowMajor;
        if !rows || x.dtype != y.dtype || x.shape.numel() != y.shape.numel() {
            return Err(format!("{x} and {y} are not the same bytes"));
        }
        Ok(Some((operand, result)))
    }

    /// Pairs of result and operand index where the result is written over the operand.
    fn takeovers(&self, inst: &Inst) -> Checked<Vec<(usize, usize)>> {
        let mut pairs = Vec::new();
        let summary = match inst.op {
            Op::Call => inst.symbol.as_ref().and_then(|s| self.done.get(s)),
            _ => None,
        };
        for (i, &r) in inst.results.iter().enumerate() {
            let expected = summary.and_then(|s| s.is_param.get(i).copied().flatten());
            let Storage::Alias(of) = self.plan.storage[r.index()] else {
                if expected.is_some() {
                    return Err(format!("{} is a parameter of the callee", self.name(r)));
                }
                continue;
            };
            let Some(k) = inst.inputs().position(|v| v == of) else {
                return Err(format!("{} shares bytes with a stranger", self.name(r)));
            };
            let allowed = match inst.op {
                Op::Call => expected == Some(k) && inst.operands[k].donated,
                Op::KvAppend => {
                    k == 0 && (inst.operands[0].donated || self.target.in_place(inst.op, 0))
                }
                Op::RopeAppend => {
                    k == i + 2
                        && i > 0
                        && (inst.operands[k].donated || self.target.in_place(inst.op, k))
                }
                Op::Fused => self.target.in_place(inst.op, k) && self.is_whole_space(inst, i),
                op => inst.results.len() == 1 && self.target.in_place(op, k),
            };
            let (old, new) = (self.func.ty(of), self.func.ty(r));
            // A callee may return its parameter under another shape.
            let reshaped = inst.op == Op::Call
                && old.dtype == new.dtype
                && old.layout == new.layout
                && old.shape.numel() == new.shape.numel();
            if !allowed || !(old == new || reshaped) {
                return Err(format!("{} cannot be written over {}", self.name(r), self.name(of)));
            }
            pairs.push((i, k));
        }
        Ok(pairs)
    }

    /// Whether a result of `fused` has one element for each step of its loop: then the kernel
    /// has read an operand of the same type there before it writes.
    fn is_whole_space(&self, inst: &Inst, result: usize) -> bool {
        let body = inst.symbol.as_ref().and_then(|s| self.module.funcs.get(s));
        let form = body.and_then(|f| Some((f, Fusion::of(f).ok()?)));
        form.is_some_and(|(f, form)| {
            matches!(form.places[f.returns[result].index()], fusion::Place::Wide { .. })
        })
    }

    /// No two of results, temporary and operands touch, but for declared takeovers.
    fn check_apart(&self, at: usize, inst: &Inst, takes: &[(usize, usize)]) -> Checked<()> {
        let mut ranges: Vec<(Place, &str)> = Vec::new();
        for (i, &r) in inst.results.iter().enumerate() {
            let place = self.place(r)?;
            for (k, v) in inst.inputs().enumerate() {
                if overlap(place, self.place(v)?) && !takes.contains(&(i, k)) {
                    return Err(format!("{} touches {}", self.name(r), self.name(v)));
                }
            }
            ranges.push((place, "a result"));
        }
        let scratch = match inst.op {
            Op::Call => {
                let callee = inst.symbol.as_ref().and_then(|s| self.plans.funcs.get(s));
                callee.map_or(0, |p| p.frame_bytes)
            }
            _ => self.target.scratch_bytes(self.func, inst, &self.module.symbols),
        };
        match self.plan.temporary(at) {
            Some(t) if t.bytes >= scratch => {
                let place = Place::Frame(t.offset, t.bytes);
                for v in inst.inputs() {
                    if overlap(place, self.place(v)?) {
                        return Err(format!("the temporary touches {}", self.name(v)));
                    }
                }
                ranges.push((place, "the temporary"));
            }
            None if scratch == 0 => {}
            _ => return Err(format!("{scratch} temporary bytes are missing")),
        }
        for (i, (a, what)) in ranges.iter().enumerate() {
            for (b, other) in &ranges[i + 1..] {
                if overlap(*a, *b) {
                    return Err(format!("{what} touches {other}"));
                }
            }
        }
        Ok(())
    }

    /// What a call writes through its operands.
    fn callee_writes(&mut self, inst: &Inst) -> Checked<()> {
        let summary = match inst.op {
            Op::Call => inst.symbol.as_ref().and_then(|s| self.done.get(s)),
            _ => None,
        };
        let Some(summary) = summary else { return Ok(()) };
        for (j, operand) in inst.operands.iter().enumerate() {
            if !summary.writes.get(j).copied().unwrap_or(false) {
                continue;
            }
            let place = self.place(operand.value)?;
            let shared = inst
                .operands
                .iter()
                .enumerate()
                .any(|(k, o)| k != j && self.place(o.value).is_ok_and(|p| overlap(p, place)));
            if !operand.donated || shared {
                let name = self.name(operand.value);
                return Err(format!("the callee writes {name}, which is not its own"));
            }
            let token = self.fresh();
            self.write(place, token)?;
        }
        Ok(())
    }

    /// The state at the return; gives for each result the parameter whose buffer it is.
    fn finish(&mut self, entry: bool) -> Checked<Vec<Option<usize>>> {
        for &(i, v) in &self.plan.copies {
            if self.func.returns.get(i) != Some(&v) {
                return Err(format!("{} is not result {i}", self.name(v)));
            }
            self.read(v)?;
            let token = match self.place(v)? {
                // One number for a constant, however often it is copied.
                Place::Const => self.tokens[v.index()].unwrap_or_else(|| self.fresh()),
                _ => self.tokens[v.index()].unwrap_or(0),
            };
            self.tokens[v.index()] = Some(token);
            self.results[i] = Some(token);
        }
        let mut is_param = Vec::with_capacity(self.func.returns.len());
        for (i, &v) in self.func.returns.iter().enumerate() {
            let copied = self.plan.copies.iter().any(|(c, _)| *c == i);
            let place = self.place(v)?;
            let param = match place {
                Place::Param(j) if !copied => {
                    self.read(v)?;
                    Some(j)
                }
                _ => {
                    let token = self.tokens[v.index()];
                    if token.is_none() || self.results[i] != token {
                        return Err(format!("result {i} is not there at the end"));
                    }
                    None
                }
            };
            if param.is_some() && is_param.contains(&param) {
                return Err(format!("result {i} is a buffer that is another result already"));
            }
            is_param.push(param);
        }
        if entry {
            for (j, p) in self.func.params.iter().enumerate() {
                let touched = self.writes[j] || is_param.contains(&Some(j));
                let mut operands = self.func.body.iter().flat_map(|inst| &inst.operands);
                if touched && !operands.any(|o| o.value == *p && o.donated) {
                    return Err(format!("{} is taken but was not given", self.name(*p)));
                }
            }
        }
        Ok(is_param)
    }
}

/// Whether two places share a byte that something may be written to.
fn overlap(a: Place, b: Place) -> bool {
    match (a, b) {
        (Place::Frame(s, n), Place::Frame(t, m)) => s < t + m && t < s + n && n > 0 && m > 0,
        (Place::Const, Place::Const) => false,
        _ => a == b,
    }
}
