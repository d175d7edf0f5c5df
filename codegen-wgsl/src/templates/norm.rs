//! Softmax and norms along the last axis: a workgroup for each row, which it reads once and keeps
//! in registers.
//!
//! Operands of the [`Site`]: x, then the weight and the bias that the op has. All are of one type,
//! f32 or f16; sums are f32. The variance of `layer_norm` is of differences from the mean.

use std::fmt::Write as _;

use aether_ir::{DType, Dim};

use super::Site;
use super::text::{Elements, Source, dim_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// Which of the ops.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    Softmax,
    LogSoftmax,
    /// The bits of `eps`.
    Rms(u32),
    Layer(u32),
}

/// Rows of a length.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Norm {
    pub kind: Kind,
    pub dtype: DType,
    pub rows: Dim,
    pub length: usize,
}

/// Vectors of a row that an invocation holds at most.
const HELD: usize = 16;

impl Norm {
    /// Invocations of a row: as few as hold it eight vectors each, or as many as there can be.
    fn invocations(&self, adapter: &Adapter) -> usize {
        let most = adapter.workgroup_invocations as usize;
        let most = if most >= 1024 { 1024 } else { 256.min(most) };
        (self.length / 4).div_ceil(8).next_power_of_two().clamp(32, most.max(32))
    }

    /// Whether there is a kernel.
    pub fn is_supported(&self, adapter: &Adapter) -> bool {
        let quads = self.length / 4;
        let known = match self.dtype {
            DType::F32 => true,
            DType::F16 => adapter.f16,
            _ => false,
        };
        known
            && self.length > 0
            && self.length.is_multiple_of(4)
            && adapter.workgroup_invocations >= 32
            && quads.div_ceil(self.invocations(adapter)) <= HELD
    }

    /// The dispatch.
    pub fn launch(&self, site: &Site) -> Launch {
        let softmax = matches!(self.kind, Kind::Softmax | Kind::LogSoftmax);
        let mut source = Source::new(if softmax { "softmax_rows" } else { "norm_rows" });
        let half = self.dtype == DType::F16;
        source.needs.f16 = half;
        let elements = if half { Elements::F16x4 } else { Elements::F32x4 };
        let x = source.bind(site.operands[0], "x", elements).name;
        let mut bind = |i: usize, name: &str| source.bind(site.operands[i], name, elements).name;
        let (weight, bias) = match self.kind {
            Kind::Softmax | Kind::LogSoftmax => (None, None),
            Kind::Rms(_) => (Some(bind(1, "weight")), None),
            Kind::Layer(_) => (Some(bind(1, "weight")), Some(bind(2, "bias"))),
        };
        let out = source.result(0, "out0", elements).name;
        let quads = self.length / 4;
        let invocations = self.invocations(site.adapter);
        let parts = quads.div_ceil(invocations);
        // Lanes that join their numbers without workgroup memory.
        let lanes = site.adapter.subgroup.filter(|n| invocations.is_multiple_of(*n as usize));
        source.needs.subgroups = lanes.is_some();
        let slots = lanes.map_or(invocations, |n| invocations / n as usize);
        let built_ins = match lanes {
            Some(_) => {
                ", @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32"
            }
            None => "",
        };
        let mut t = format!(
            "var<workgroup> shared_: array<f32, {slots}>;
@compute @workgroup_size({invocations})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) tid: u32{built_ins}) {{
let row = id.x + id.y * groups.x;
if row >= {} {{ return; }}
let base = row * {quads}u;
",
            dim_text(&self.rows, site.symbols)
        );
        // Whether some invocations have no part so far on.
        let beyond = |p: usize| (p + 1) * invocations > quads;
        let at = |p: usize| format!("tid + {}u", p * invocations);
        let guard = |p: usize| match beyond(p) {
            true => format!("if {} < {quads}u ", at(p)),
            false => String::new(),
        };
        for p in 0..parts {
            let guard = guard(p);
            let _ = write!(
                t,
                "var v{p} = vec4<f32>();\n{guard}{{ v{p} = vec4<f32>({x}[base + {}]); }}\n",
                at(p)
            );
        }
        let live = |p: usize, e: &str, none: &str| match beyond(p) {
            true => format!("select({none}, {e}, {} < {quads}u)", at(p)),
            false => e.to_owned(),
        };
        let join = |t: &mut String, name: &str, greatest: bool| {
            let both = |a: &str, b: &str| match greatest {
                true => format!("max({a}, {b})"),
                false => format!("{a} + {b}"),
            };
            let _ = match lanes {
                Some(_) => {
                    let op = if greatest { "subgroupMax" } else { "subgroupAdd" };
                    let _ = write!(
                        t,
                        "let {name}_sg = {op}({name}_own);
workgroupBarrier();
if lane == 0u {{ shared_[sg] = {name}_sg; }}
workgroupBarrier();
var {name} = shared_[0];
"
                    );
                    let joined = both(name, "shared_[i]");
                    writeln!(t, "for (var i = 1u; i < {slots}u; i += 1u) {{ {name} = {joined}; }}")
                }
                None => write!(
                    t,
                    "workgroupBarrier();
shared_[tid] = {name}_own;
workgroupBarrier();
for (var n = {}u; n > 0u; n /= 2u) {{
    if tid < n {{ shared_[tid] = {}; }}
    workgroupBarrier();
}}
let {name} = shared_[0];
",
                    invocations / 2,
                    both("shared_[tid]", "shared_[tid + n]")
                ),
            };
        };
        let sum = |v: &str| format!("{v}.x + {v}.y + {v}.z + {v}.w");
        let n = self.length;
        match self.kind {
            Kind::Softmax | Kind::LogSoftmax => {
                let lowest = "bitcast<f32>(lowest)";
                t.push_str("var lowest = 0xff800000u;\n");
                let _ = writeln!(t, "var greatest_own = {lowest};");
                for p in 0..parts {
                    let most = format!("max(max(v{p}.x, v{p}.y), max(v{p}.z, v{p}.w))");
                    let most = live(p, &most, lowest);
                    let _ = writeln!(t, "greatest_own = max(greatest_own, {most});");
                }
                join(&mut t, "greatest", true);
                t.push_str("var total_own = 0.0;\n");
                for p in 0..parts {
                    let _ = match self.kind {
                        Kind::Softmax => {
                            writeln!(t, "v{p} = exp(v{p} - greatest);\nlet e{p} = v{p};")
                        }
                        _ => writeln!(t, "v{p} = v{p} - greatest;\nlet e{p} = exp(v{p});"),
                    };
                    let own = live(p, &sum(&format!("e{p}")), "0.0");
                    let _ = writeln!(t, "total_own += {own};");
                }
                join(&mut t, "total", false);
                t.push_str(match self.kind {
                    Kind::Softmax => "",
                    _ => "let logarithm = log(total);\n",
                });
            }
            Kind::Rms(eps) => {
                t.push_str("var squares_own = 0.0;\n");
                for p in 0..parts {
                    let _ = writeln!(t, "squares_own += dot(v{p}, v{p});");
                }
                join(&mut t, "squares", false);
                let eps = f32::from_bits(eps);
                let _ = writeln!(t, "let factor = inverseSqrt(squares / {n}.0 + f32({eps:e}));");
            }
            Kind::Layer(eps) => {
                t.push_str("var total_own = 0.0;\n");
                for p in 0..parts {
                    let _ = writeln!(t, "total_own += {};", sum(&format!("v{p}")));
                }
                join(&mut t, "total", false);
                let _ = writeln!(t, "let mean = total / {n}.0;\nvar squares_own = 0.0;");
                for p in 0..parts {
                    let _ = writeln!(t, "v{p} = v{p} - mean;");
                    let own = live(p, &format!("dot(v{p}, v{p})"), "0.0");
                    let _ = writeln!(t, "squares_own += {own};");
                }
                join(&mut t, "squares", false);
                let eps = f32::from_bits(eps);
                let _ = writeln!(t, "let factor = inverseSqrt(squares / {n}.0 + f32({eps:e}));");
            }
        }
        for p in 0..parts {
            let at = at(p);
            let read = |name: &Option<String>| {
                name.as_ref().map(|name| format!("vec4<f32>({name}[{at}])")).unwrap_or_default()
            };
            let y = match self.kind {
                Kind::Softmax => format!("v{p} / total"),
                Kind::LogSoftmax => format!("v{p} - logarithm"),
                Kind::Rms(_) => format!("v{p} * factor * {}", read(&weight)),
                Kind::Layer(_) => format!("v{p} * factor * {} + {}", read(&weight), read(&bias)),
            };
            let y = if half { format!("vec4<f16>({y})") } else { y };
            let guard = guard(p);
            let _ = writeln!(t, "{guard}{{ {out}[base + {at}] = {y}; }}");
        }
        t.push_str("}\n");
        source.push(&t);
        source.launch([Groups::of(self.rows.clone(), 1), Groups::one(), Groups::one()])
    }
}
