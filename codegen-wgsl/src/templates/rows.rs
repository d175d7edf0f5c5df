//! Softmax and the norms over the last axis: a workgroup for each row, f32.
//!
//! Operands: x, then the weight and the bias that the op has, each f32.

use aether_ir::Dim;

use super::Site;
use super::text::{Elements, Source, dim_text};
use crate::kernel::{Groups, Launch};

/// What is done to a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RowOp {
    Softmax,
    LogSoftmax,
    RmsNorm { eps: f32 },
    LayerNorm { eps: f32 },
}

/// An op over rows `[rows, n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct RowKernel {
    pub op: RowOp,
    pub rows: Dim,
    pub n: Dim,
}

const INVOCATIONS: usize = 128;

/// `red[0]` becomes the sum or the greatest of `value`.
fn reduce(value: &str, expression: &str) -> String {
    format!(
        "workgroupBarrier();
red[tid] = {value};
workgroupBarrier();
for (var m = {}u; m > 0u; m = m / 2u) {{
    if tid < m {{
        let a = red[tid];
        let b = red[tid + m];
        red[tid] = {expression};
    }}
    workgroupBarrier();
}}
",
        INVOCATIONS / 2
    )
}

impl RowKernel {
    /// The dispatches, in order.
    pub fn launches(&self, site: &Site) -> Vec<Launch> {
        let name = match self.op {
            RowOp::Softmax => "softmax",
            RowOp::LogSoftmax => "log_softmax",
            RowOp::RmsNorm { .. } => "rms_norm",
            RowOp::LayerNorm { .. } => "layer_norm",
        };
        let mut source = Source::new(name);
        let x = source.bind(site.operands[0], "x", Elements::F32).name;
        let mut more = |i: usize, name: &str| {
            let weighted = match self.op {
                RowOp::RmsNorm { .. } => i == 1,
                RowOp::LayerNorm { .. } => true,
                _ => false,
            };
            weighted.then(|| source.bind(site.operands[i], name, Elements::F32).name)
        };
        let weight = more(1, "weight").unwrap_or_default();
        let bias = more(2, "bias").unwrap_or_default();
        let out = source.result(0, "out0", Elements::F32).name;
        let n = dim_text(&self.n, site.symbols);
        let rows = dim_text(&self.rows, site.symbols);
        let each =
            |body: &str| format!("for (var i = tid; i < n; i += {INVOCATIONS}u) {{ {body} }}\n");
        let body = match self.op {
            RowOp::Softmax | RowOp::LogSoftmax => {
                // A NaN is lost in `max`, but not in the sum.
                let max = format!(
                    "var most = f32(-3e38);\n{}",
                    each(&format!("most = max(most, {x}[base + i]);"))
                );
                let sum = format!(
                    "var sum = 0.0;\n{}",
                    each(&format!("sum += exp({x}[base + i] - most);"))
                );
                let store = if self.op == RowOp::Softmax {
                    format!("{out}[base + i] = exp({x}[base + i] - most) / sum;")
                } else {
                    format!("{out}[base + i] = {x}[base + i] - most - log(sum);")
                };
                format!(
                    "{max}{}most = red[0];\n{sum}{}sum = red[0];\n{}",
                    reduce("most", "max(a, b)"),
                    reduce("sum", "a + b"),
                    each(&store)
                )
            }
            RowOp::RmsNorm { eps } => format!(
                "var sum = 0.0;\n{}{}let inv = inverseSqrt(red[0] / f32(n) + f32({eps:e}));\n{}",
                each(&format!("let v = {x}[base + i]; sum += v * v;")),
                reduce("sum", "a + b"),
                each(&format!("{out}[base + i] = {x}[base + i] * inv * {weight}[i];"))
            ),
            RowOp::LayerNorm { eps } => format!(
                "var sum = 0.0;\n{}{}let mean = red[0] / f32(n);
var square = 0.0;\n{}{}let inv = inverseSqrt(red[0] / f32(n) + f32({eps:e}));\n{}",
                each(&format!("sum += {x}[base + i];")),
                reduce("sum", "a + b"),
                each(&format!("let v = {x}[base + i] - mean; square += v * v;")),
                reduce("square", "a + b"),
                each(&format!(
                    "{out}[base + i] = ({x}[base + i] - mean) * inv * {weight}[i] + {bias}[i];"
                ))
            ),
        };
        // Rows are laid out over two axes, since one may be too short for them.
        source.push(&format!(
            "var<workgroup> red: array<f32, {INVOCATIONS}>;
@compute @workgroup_size({INVOCATIONS})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let n = {n};
let row = id.y * {ACROSS}u + id.x;
if row >= {rows} {{ return; }}
let base = row * n;
{body}}}"
        ));
        vec![source.launch([
            Groups::of(ACROSS, 1),
            Groups::of(self.rows.clone(), ACROSS as u32),
            Groups::one(),
        ])]
    }
}

/// Workgroups along the first axis.
const ACROSS: usize = 64;
