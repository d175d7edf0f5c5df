//! Rows of a quantised table in planes by i32 indices, as f32. An index out of range ends the run
//! with an error.
//!
//! Operands: the table `[rows, k]`, or some rows of it, the indices `[n]`. Result f32 `[n, k]`.

use std::fmt::Write as _;
use std::ops::Range;

use aether_ir::{DType, Dim};

use super::blocks::Codec;
use super::text::{Elements, Source, dim_text};
use super::{Operand, Site};
use crate::kernel::{Access, Bind, Groups, Launch};
use crate::program::Fault;

/// Rows of a table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherRows {
    pub dtype: DType,
    pub rows: usize,
    pub k: usize,
    pub n: Dim,
    /// The rows that are bound: indices of others are left to other dispatches.
    pub part: Range<usize>,
}

const INVOCATIONS: u32 = 64;

impl GatherRows {
    /// The dispatches, in order; `None` for types without planes.
    pub fn launches(&self, site: &Site) -> Option<Vec<Launch>> {
        let codec = Codec::new(self.dtype, self.k)?;
        let mut source = Source::new("gather_rows");
        let table = source.bind(site.operands[0], "w", Elements::U32x4).name;
        let indices = source.bind(site.operands[1], "indices", Elements::I32).name;
        let out = source.result(0, "out0", Elements::F32x4).name;
        let mut t = format!(
            "@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32) {{
let unit = (workgroup.x + workgroup.y * groups.x) * {INVOCATIONS}u + lane;
let b = unit % {blocks}u;
let at = unit / {blocks}u;
if at >= {n} {{ return; }}
let index = {indices}[at];
",
            blocks = codec.blocks,
            n = dim_text(&self.n, site.symbols),
        );
        if self.part.start == 0 {
            // The first part looks after all indices.
            let status = Operand { bind: Bind::Status, access: Access::ReadWrite };
            let status = source.bind(status, "status", Elements::Atomic).name;
            let _ = write!(
                t,
                "if b == 0u && (index < 0 || index >= {}) {{
    atomicMax(&{status}[0], {}u);
    atomicMax(&{status}[1], bitcast<u32>(index));
}}
",
                self.rows,
                Fault::Index as u32,
            );
        }
        let Range { start, end } = self.part;
        let _ = write!(
            t,
            "if index < {start} || index >= {end} {{ return; }}
let r = u32(index - {start}) * {}u;
",
            codec.row
        );
        for (name, _, e) in codec.loads(&table, "r", "b") {
            let _ = writeln!(t, "let {name}_0 = {e};");
        }
        t.push_str(&codec.codes("_0"));
        t.push_str(&codec.scale_text("b", "_0"));
        let _ = writeln!(t, "let to = at * {}u + 8u * b;", self.k / 4);
        for half in 0..2 {
            for i in 0..4 {
                let v = codec.values("_0", half, &format!("{i}"));
                let _ = writeln!(t, "{out}[to + {}u] = {v};", 4 * half + i);
            }
        }
        t.push_str("}\n");
        source.push(&t);
        let units = &self.n * &Dim::from(codec.blocks);
        Some(vec![source.launch([Groups::of(units, INVOCATIONS), Groups::one(), Groups::one()])])
    }
}
