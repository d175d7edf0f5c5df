//! Rows of a quantised table in planes by i32 indices, as f32. A row whose index is out of range
//! is NaN.
//!
//! Operands: the table `[rows, k]`, the indices `[n]`. Result f32 `[n, k]`.

use std::fmt::Write as _;

use aether_ir::{DType, Dim};

use super::Site;
use super::blocks::Codec;
use super::text::{Elements, Source};
use crate::kernel::{Groups, Launch};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GatherRows {
    pub dtype: DType,
    pub rows: usize,
    pub k: usize,
    pub n: Dim,
}

impl GatherRows {
    /// The dispatches, in order; `None` for types without planes.
    pub fn launches(&self, site: &Site) -> Option<Vec<Launch>> {
        let codec = Codec::new(self.dtype, self.k)?;
        let mut source = Source::new("gather_rows");
        let table = source.bind(site.operands[0], "w", Elements::U32x4).name;
        let indices = source.bind(site.operands[1], "indices", Elements::I32).name;
        let out = source.result(0, "out0", Elements::F32x4).name;
        let mut t = format!(
            "@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {{
let b = id.x;
if b >= {blocks}u {{ return; }}
let index = {indices}[id.y];
let valid = index >= 0 && index < {rows};
let r = u32(clamp(index, 0, {last})) * {row}u;
// A NaN that is not known when the shader is compiled.
let lost = bitcast<f32>(0x7fc00000u | id.y);
",
            blocks = codec.blocks,
            rows = self.rows,
            last = self.rows.max(1) - 1,
            row = codec.row,
        );
        for (name, _, e) in codec.loads(&table, "r", "b") {
            let _ = writeln!(t, "let {name}_0 = {e};");
        }
        t.push_str(&codec.codes("_0"));
        t.push_str(&codec.scale_text("b", "_0"));
        let _ = writeln!(t, "let to = id.y * {}u + 8u * b;", self.k / 4);
        for half in 0..2 {
            for i in 0..4 {
                let v = codec.values("_0", half, &format!("{i}"));
                let _ =
                    writeln!(t, "{out}[to + {}u] = select(vec4(lost), {v}, valid);", 4 * half + i);
            }
        }
        t.push_str("}\n");
        source.push(&t);
        Some(vec![source.launch([
            Groups::of(codec.blocks, 64),
            Groups::of(self.n.clone(), 1),
            Groups::one(),
        ])])
    }
}
