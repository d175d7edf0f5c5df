//! From a fused body to steps over tiles.
//!
//! Values get virtual tiles first; a scan over the steps then gives each a tile that no other
//! value needs at the same time. What is cheap to say in the IR and nothing on tiles (broadcasts,
//! casts to the same type) is no step.

use aether_ir::fusion::{Fusion, Place, Role};
use aether_ir::tensor::{ConcreteType, EvalCtx};
use aether_ir::{DType, Func, Inst, Op, ValueId};

use super::stream::Stream;
use crate::kernels::tiles::reduce::Fold;
use crate::kernels::tiles::{self, Class, Code, Slot, Step};
use crate::program::Loc;
use crate::size::SymbolTable;

/// Where a step finds a tile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tile {
    /// A virtual tile of its own.
    Temp(usize),
    Stream(usize),
    /// The result's own memory.
    Output(usize),
    /// An accumulator tile.
    Acc(usize),
    None,
}

#[derive(Clone, Copy, Debug)]
struct Virtual {
    code: Code,
    dst: Tile,
    args: [Tile; 3],
    narrow: bool,
}

/// A tile that is stored as elements of a result.
#[derive(Clone, Copy, Debug)]
pub(super) struct Store {
    pub slot: Slot,
    /// Which result.
    pub output: usize,
    pub dtype: DType,
}

/// One pass over the reduced axes.
#[derive(Debug, Default)]
pub(super) struct Pass {
    /// For each tile of the space.
    pub wide: Vec<Step>,
    /// Once the reduced elements are through.
    pub after: Vec<Step>,
    /// What each tile stores.
    pub stores: Vec<Store>,
}

/// Steps and the tiles they need.
#[derive(Debug, Default)]
pub(super) struct Steps {
    pub passes: Vec<Pass>,
    /// Results that the last pass writes to memory itself.
    pub direct: Vec<Store>,
    /// Stored behind the last pass, an element (or tile) for each group of reduced elements.
    pub narrow_stores: Vec<Store>,
    /// Number of tiles for values.
    pub temps: usize,
}

/// How the loop runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Element by element.
    Map,
    /// The last axes are reduced: row by row.
    Rows,
    /// Inner axes stay: all columns of a tile at once.
    Columns,
}

/// A body ready to run.
pub(super) struct Body {
    pub kind: Kind,
    pub streams: Vec<Stream>,
    pub steps: Steps,
    /// For [`Kind::Rows`], all passes at once, for rows that fit one tile.
    pub at_once: Option<Steps>,
    /// Fold and type of each accumulator.
    pub accs: Vec<(Fold, DType)>,
    /// Bytes of the widest lane.
    pub lane: usize,
}

/// Compiles a body whose parameters are at these places; `None` when some type has no tiles.
pub(super) fn build(
    func: &Func,
    fusion: &Fusion,
    params: &[Loc],
    symbols: &SymbolTable,
) -> Result<Option<Body>, String> {
    if func.values.iter().any(|v| Class::of(v.ty.dtype).is_none()) {
        return Ok(None);
    }
    let inner_is_one = fusion
        .reduced
        .as_ref()
        .is_some_and(|axes| fusion.space.0[axes.end..].iter().all(|d| d.is(1)));
    let kind = match (&fusion.reduced, inner_is_one) {
        (None, _) => Kind::Map,
        (_, true) => Kind::Rows,
        (_, false) => Kind::Columns,
    };
    let mut builder = Builder::new(func, fusion, kind);
    builder.streams(params, symbols)?;
    let at_once = (kind == Kind::Rows && fusion.passes > 1).then(|| builder.at_once());
    let steps = builder.by_pass();
    let wide = |v: &aether_ir::module::ValueData| Class::of(v.ty.dtype).map_or(0, Class::bytes);
    Ok(Some(Body {
        kind,
        lane: func.values.iter().map(wide).max().unwrap_or(4),
        accs: builder.accs.clone(),
        streams: builder.streams,
        steps,
        at_once,
    }))
}

struct Builder<'a> {
    func: &'a Func,
    fusion: &'a Fusion,
    kind: Kind,
    defs: Vec<Option<usize>>,
    streams: Vec<Stream>,
    /// The stream of a parameter, splat or iota.
    stream_of: Vec<Option<usize>>,
    accs: Vec<(Fold, DType)>,
    /// The accumulator of a reduction's result.
    acc_of: Vec<Option<usize>>,
    /// Narrow values that wide ones read.
    read_back: Vec<bool>,
}

/// A list of steps in the making.
#[derive(Default)]
struct List {
    steps: Vec<Virtual>,
    /// The tile of each value that is there.
    tiles: Vec<Option<Tile>>,
}

impl<'a> Builder<'a> {
    fn new(func: &'a Func, fusion: &'a Fusion, kind: Kind) -> Self {
        let n = func.values.len();
        let mut builder = Builder {
            func,
            fusion,
            kind,
            defs: func.definitions(),
            streams: Vec::new(),
            stream_of: vec![None; n],
            accs: Vec::new(),
            acc_of: vec![None; n],
            read_back: vec![false; n],
        };
        for inst in &func.body {
            let result = inst.results[0];
            if let Some(fold) = Fold::of(inst.op) {
                builder.acc_of[result.index()] = Some(builder.accs.len());
                builder.accs.push((fold, func.ty(inst.operands[0].value).dtype));
            } else if !builder.is_narrow(result) {
                for v in inst.inputs() {
                    let source = builder.source(v);
                    builder.read_back[source.index()] |= builder.is_narrow(source);
                }
            }
        }
        builder
    }

    fn is_narrow(&self, v: ValueId) -> bool {
        matches!(self.fusion.places[v.index()], Place::Narrow { .. })
    }

    fn dtype(&self, v: ValueId) -> DType {
        self.func.ty(v).dtype
    }

    fn inst(&self, v: ValueId) -> Option<&'a Inst> {
        self.defs[v.index()].map(|i| &self.func.body[i])
    }

    /// The value whose tile this one is too: what it broadcasts, or casts to the type it has.
    fn source(&self, v: ValueId) -> ValueId {
        let mut v = v;
        while let Some(inst) = self.inst(v) {
            let same = match inst.op {
                Op::Broadcast => true,
                Op::Cast => self.dtype(inst.operands[0].value) == self.dtype(v),
                _ => false,
            };
            if !same {
                break;
            }
            v = inst.operands[0].value;
        }
        v
    }

    fn streams(&mut self, params: &[Loc], symbols: &SymbolTable) -> Result<(), String> {
        let func = self.func;
        for (&p, &loc) in func.params.iter().zip(params) {
            self.stream_of[p.index()] = Some(self.streams.len());
            self.streams.push(Stream::memory(loc, func.ty(p), self.fusion, symbols));
        }
        for inst in func.body.iter().filter(|i| Role::of(i.op) == Some(Role::Source)) {
            let v = inst.results[0];
            let ty = func.ty(v);
            let stream = if inst.op == Op::Splat {
                Stream::constant(ty.dtype, &one_element(inst, ty.dtype)?)
            } else {
                let axis = ty.shape.axis(inst.attrs.int("axis", 0)).ok_or("no such axis")?;
                Stream::index(ty, axis, self.fusion, symbols)
            };
            self.stream_of[v.index()] = Some(self.streams.len());
            self.streams.push(stream);
        }
        Ok(())
    }

    /// Appends what computes a value elementwise, with what it needs, and gives its tile. Narrow
    /// values that a wide one reads must be in the list.
    fn value(&self, list: &mut List, temps: &mut usize, v: ValueId) -> Tile {
        let mut work = vec![v];
        while let Some(&at) = work.last() {
            let source = self.source(at);
            if let Some(stream) = self.stream_of[source.index()] {
                list.tiles[source.index()] = Some(Tile::Stream(stream));
            }
            let inst = match (list.tiles[source.index()], self.inst(source)) {
                (Some(tile), _) => {
                    list.tiles[at.index()] = Some(tile);
                    work.pop();
                    continue;
                }
                (None, Some(inst)) => inst,
                // Nothing defines it: the verifier has refused that.
                (None, None) => return Tile::None,
            };
            let missing: Vec<ValueId> =
                inst.inputs().filter(|o| list.tiles[o.index()].is_none()).collect();
            if !missing.is_empty() {
                work.extend(missing);
                continue;
            }
            self.map(list, temps, inst);
        }
        list.tiles[v.index()].unwrap_or(Tile::None)
    }

    /// As [`Builder::value`], in a tile that no operand's memory is: that may be written over
    /// before it is stored.
    fn stored(&self, list: &mut List, temps: &mut usize, v: ValueId) -> Tile {
        let tile = self.value(list, temps, v);
        if !matches!(tile, Tile::Stream(_)) {
            return tile;
        }
        let dst = Tile::Temp(*temps);
        *temps += 1;
        let code = Code::Cast(self.dtype(v), self.dtype(v));
        let args = [tile, Tile::None, Tile::None];
        list.steps.push(Virtual { code, dst, args, narrow: false });
        dst
    }

    /// Appends one elementwise instruction whose operands are there.
    fn map(&self, list: &mut List, temps: &mut usize, inst: &Inst) {
        let v = inst.results[0];
        let mut args = [Tile::None; 3];
        for (arg, o) in args.iter_mut().zip(inst.inputs()) {
            *arg = list.tiles[o.index()].unwrap_or(Tile::None);
        }
        let from = self.dtype(inst.operands[inst.operands.len().min(2) - 1].value);
        let to = self.dtype(v);
        let code = match inst.op {
            Op::Cast => Code::Cast(from, to),
            op => Code::Map(Class::of(from).unwrap_or(Class::F32), op),
        };
        let narrow = self.is_narrow(v) && self.kind == Kind::Rows;
        let dst = Tile::Temp(*temps);
        *temps += 1;
        list.steps.push(Virtual { code, dst, args, narrow });
        let exact = matches!(inst.op, Op::Cast | Op::Select | Op::Max | Op::Min)
            || tiles::is_native(to)
            || to == DType::Bool;
        if !exact {
            let args = [dst, Tile::None, Tile::None];
            list.steps.push(Virtual { code: Code::Round(to), dst, args, narrow });
        }
        list.tiles[v.index()] = Some(dst);
    }

    /// Appends the taking of an accumulator.
    fn take(&self, list: &mut List, temps: &mut usize, v: ValueId) {
        let Some(acc) = self.acc_of[v.index()] else { return };
        let (fold, _) = self.accs[acc];
        let dtype = self.dtype(v);
        let dst = Tile::Temp(*temps);
        *temps += 1;
        let (code, arg) = match self.kind {
            Kind::Columns => (Code::TakeLanes { fold, dtype }, Tile::Acc(acc)),
            _ => (Code::Take { fold, dtype, acc: acc as u16 }, Tile::None),
        };
        let args = [arg, Tile::None, Tile::None];
        list.steps.push(Virtual { code, dst, args, narrow: self.kind == Kind::Rows });
        list.tiles[v.index()] = Some(dst);
    }

    /// Spreads a narrow value over its tile if wide ones read it.
    fn spread(&self, list: &mut List, v: ValueId) {
        let tile = list.tiles[v.index()];
        if let (true, Kind::Rows, Some(tile @ Tile::Temp(_))) =
            (self.read_back[v.index()], self.kind, tile)
        {
            let class = Class::of(self.dtype(v)).unwrap_or(Class::F32);
            let args = [tile, Tile::None, Tile::None];
            let code = Code::Spread(class);
            list.steps.push(Virtual { code, dst: tile, args, narrow: false });
        }
    }

    /// Appends the folding of a reduction's operand.
    fn fold(&self, list: &mut List, temps: &mut usize, inst: &Inst) {
        let v = inst.results[0];
        let Some(acc) = self.acc_of[v.index()] else { return };
        let arg = self.value(list, temps, inst.operands[0].value);
        let (fold, dtype) = self.accs[acc];
        let class = Class::of(dtype).unwrap_or(Class::F32);
        let (code, dst) = match self.kind {
            Kind::Columns => (Code::FoldLanes { fold, class }, Tile::Acc(acc)),
            _ => (Code::Fold { fold, class, acc: acc as u16 }, Tile::None),
        };
        let args = [arg, Tile::None, Tile::None];
        list.steps.push(Virtual { code, dst, args, narrow: false });
    }

    /// The pass in which a reduction folds, or after which a narrow value is known.
    fn pass(&self, v: ValueId) -> usize {
        match self.fusion.places[v.index()] {
            Place::Narrow { pass } => pass - 1,
            Place::Wide { pass } => pass,
        }
    }

    fn returned(&self, narrow: bool) -> Vec<(usize, ValueId)> {
        let all = self.func.returns.iter().copied().enumerate();
        all.filter(|(_, v)| self.is_narrow(*v) == narrow).collect()
    }

    /// Steps that compute each pass anew for every tile.
    fn by_pass(&self) -> Steps {
        let mut temps = 0;
        let mut lists: Vec<List> = Vec::new();
        // Narrow values stay from the pass that made them on.
        let mut known: Vec<Option<Tile>> = vec![None; self.func.values.len()];
        let mut stores = Vec::new();
        for pass in 0..self.fusion.passes {
            let mut wide = List { steps: Vec::new(), tiles: known.clone() };
            for inst in self.func.body.iter().filter(|i| Fold::of(i.op).is_some()) {
                if self.pass(inst.results[0]) == pass {
                    self.fold(&mut wide, &mut temps, inst);
                }
            }
            if pass + 1 == self.fusion.passes {
                for (output, v) in self.returned(false) {
                    stores.push((output, v, self.stored(&mut wide, &mut temps, v)));
                }
            }
            let mut after = List { steps: Vec::new(), tiles: known.clone() };
            self.narrow_values(&mut after, &mut temps, pass);
            for (i, tile) in after.tiles.iter().enumerate() {
                if self.is_narrow(ValueId(i as u32)) {
                    known[i] = *tile;
                }
            }
            lists.push(wide);
            lists.push(after);
        }
        let narrow = self
            .returned(true)
            .into_iter()
            .map(|(output, v)| (output, v, known[v.index()].unwrap_or(Tile::None)));
        self.finish(lists, stores, narrow.collect())
    }

    /// What follows the folds of a pass.
    fn narrow_values(&self, list: &mut List, temps: &mut usize, pass: usize) {
        for inst in &self.func.body {
            let v = inst.results[0];
            if !self.is_narrow(v) || self.pass(v) != pass {
                continue;
            }
            if Fold::of(inst.op).is_some() {
                self.take(list, temps, v);
            } else {
                self.value(list, temps, v);
            }
            if self.source(v) == v {
                self.spread(list, v);
            }
        }
    }

    /// Steps for rows that fit one tile: nothing is computed twice.
    fn at_once(&self) -> Steps {
        let mut temps = 0;
        let tiles = vec![None; self.func.values.len()];
        let mut list = List { steps: Vec::new(), tiles };
        for pass in 0..self.fusion.passes {
            for inst in self.func.body.iter().filter(|i| Fold::of(i.op).is_some()) {
                if self.pass(inst.results[0]) == pass {
                    self.fold(&mut list, &mut temps, inst);
                }
            }
            self.narrow_values(&mut list, &mut temps, pass);
        }
        let mut store = |(output, v)| (output, v, self.stored(&mut list, &mut temps, v));
        let wide: Vec<_> = self.returned(false).into_iter().map(&mut store).collect();
        let narrow: Vec<_> = self.returned(true).into_iter().map(&mut store).collect();
        self.finish(vec![list, List::default()], wide, narrow)
    }

    /// Writes results directly where nothing reads the operands any more, gives tiles to the
    /// rest.
    fn finish(
        &self,
        mut lists: Vec<List>,
        stores: Vec<(usize, ValueId, Tile)>,
        narrow: Vec<(usize, ValueId, Tile)>,
    ) -> Steps {
        let mut stores = stores;
        let last = lists.len() - 2;
        for i in 0..stores.len() {
            let (output, v, tile) = stores[i];
            let native = tiles::is_native(self.dtype(v));
            if !matches!(tile, Tile::Temp(_)) || !native || is_kept(tile, &lists, last) {
                continue;
            }
            let steps = &mut lists[last].steps;
            let made = steps.iter().position(|s| s.dst == tile);
            let reads = |s: &Virtual| s.args.iter().any(|a| matches!(a, Tile::Stream(_)));
            let read = steps.iter().rposition(reads);
            if made.is_none() || made < read {
                continue;
            }
            let memory = Tile::Output(output);
            let places = steps.iter_mut().flat_map(|s| s.args.iter_mut().chain([&mut s.dst]));
            places.chain(stores.iter_mut().map(|s| &mut s.2)).for_each(|t| {
                if *t == tile {
                    *t = memory;
                }
            });
        }
        let kept = |stores: &[(usize, ValueId, Tile)]| -> Vec<Tile> {
            stores.iter().map(|s| s.2).collect()
        };
        let registers = allocate(&lists, last, &kept(&stores), &kept(&narrow));
        let slots = Slots {
            registers: &registers,
            streams: self.streams.len(),
            outputs: self.func.returns.len(),
        };
        let store = |(output, v, tile): &(usize, ValueId, Tile)| Store {
            slot: slots.of(*tile),
            output: *output,
            dtype: self.dtype(*v),
        };
        let mut passes: Vec<Pass> = lists
            .chunks(2)
            .map(|pair| {
                let steps = |list: &List| list.steps.iter().map(|s| slots.step(s)).collect();
                Pass { wide: steps(&pair[0]), after: steps(&pair[1]), stores: Vec::new() }
            })
            .collect();
        if let Some(pass) = passes.last_mut() {
            let left = stores.iter().filter(|s| s.2 != Tile::Output(s.0));
            pass.stores = left.map(store).collect();
        }
        Steps {
            passes,
            direct: stores.iter().filter(|s| s.2 == Tile::Output(s.0)).map(store).collect(),
            narrow_stores: narrow.iter().map(store).collect(),
            temps: registers.count,
        }
    }
}

/// Whether a tile of the last pass is read outside of it.
fn is_kept(tile: Tile, lists: &[List], last: usize) -> bool {
    lists.iter().enumerate().any(|(i, list)| {
        i != last && list.steps.iter().any(|s| s.dst == tile || s.args.contains(&tile))
    })
}

/// Which of the shared tiles each virtual one is.
struct Registers {
    of: Vec<usize>,
    count: usize,
}

/// A scan over all lists in the order in which they run. A tile made in one list and read in
/// another stays for the whole of that list, whose steps run many times.
fn allocate(lists: &[List], last: usize, stored: &[Tile], narrow: &[Tile]) -> Registers {
    let virtuals = |s: &Virtual| {
        let all = [s.dst, s.args[0], s.args[1], s.args[2]];
        all.into_iter().filter_map(|t| if let Tile::Temp(i) = t { Some(i) } else { None })
    };
    let n = lists.iter().flat_map(|l| &l.steps).flat_map(virtuals).max().map_or(0, |i| i + 1);
    let mut made_in = vec![usize::MAX; n];
    let mut last_use = vec![0usize; n];
    let mut at = 0;
    let mut ends = Vec::new();
    for (l, list) in lists.iter().enumerate() {
        let end = at + list.steps.len();
        for (i, step) in list.steps.iter().enumerate() {
            for t in virtuals(step) {
                if made_in[t] == usize::MAX {
                    made_in[t] = l;
                }
                let used = if made_in[t] == l { at + i } else { end };
                last_use[t] = last_use[t].max(used);
            }
        }
        at = end;
        ends.push(end);
    }
    let mut keep = |tiles: &[Tile], until: usize| {
        for tile in tiles {
            if let Tile::Temp(t) = tile {
                last_use[*t] = last_use[*t].max(until);
            }
        }
    };
    keep(stored, ends[last]);
    keep(narrow, at);

    let mut registers = Registers { of: vec![usize::MAX; n], count: 0 };
    let mut free: Vec<usize> = Vec::new();
    // Tiles by the step after which nothing needs them.
    let mut dying: Vec<Vec<usize>> = vec![Vec::new(); at + 1];
    for (t, &end) in last_use.iter().enumerate() {
        dying[end].push(t);
    }
    for (i, step) in lists.iter().flat_map(|l| &l.steps).enumerate() {
        let Tile::Temp(dst) = step.dst else {
            release(&mut free, &registers, &dying[i], None);
            continue;
        };
        let over = writes_over(step.code);
        if over {
            release(&mut free, &registers, &dying[i], Some(dst));
        }
        if registers.of[dst] == usize::MAX {
            registers.of[dst] = free.pop().unwrap_or_else(|| {
                registers.count += 1;
                registers.count - 1
            });
        }
        if !over {
            release(&mut free, &registers, &dying[i], None);
        } else if dying[i].contains(&dst) {
            free.push(registers.of[dst]);
        }
    }
    registers
}

fn release(free: &mut Vec<usize>, registers: &Registers, dying: &[usize], but: Option<usize>) {
    let gone = dying.iter().filter(|t| Some(**t) != but && registers.of[**t] != usize::MAX);
    free.extend(gone.map(|t| registers.of[*t]));
}

/// Whether a step may write over the tiles that it reads: its lanes are all of one size.
fn writes_over(code: Code) -> bool {
    match code {
        Code::Map(Class::F32, _) => true,
        Code::Map(_, op) => {
            !matches!(op, Op::Select | Op::Eq | Op::Ne | Op::Lt | Op::Le | Op::Gt | Op::Ge)
        }
        _ => false,
    }
}

/// The table of tile addresses: values, then streams, results, accumulators.
struct Slots<'a> {
    registers: &'a Registers,
    streams: usize,
    outputs: usize,
}

impl Slots<'_> {
    fn of(&self, tile: Tile) -> Slot {
        let temps = self.registers.count;
        let slot = match tile {
            Tile::Temp(t) => self.registers.of[t],
            Tile::Stream(i) => temps + i,
            Tile::Output(i) => temps + self.streams + i,
            Tile::Acc(i) => temps + self.streams + self.outputs + i,
            Tile::None => 0,
        };
        slot as Slot
    }

    fn step(&self, s: &Virtual) -> Step {
        Step {
            code: s.code,
            dst: self.of(s.dst),
            args: s.args.map(|a| self.of(a)),
            narrow: s.narrow,
        }
    }
}

/// The bytes of an element of a splat.
fn one_element(inst: &Inst, dtype: DType) -> Result<Vec<u8>, String> {
    let eval = inst.op.info().eval.ok_or("has no reference meaning")?;
    let results = [ConcreteType::new(dtype, [1])];
    let ctx = EvalCtx { operands: &[], attrs: &inst.attrs, results: &results };
    let values = eval(&ctx).map_err(|e| e.to_string())?;
    Ok(values.first().map(|t| t.bytes().to_vec()).unwrap_or_default())
}
