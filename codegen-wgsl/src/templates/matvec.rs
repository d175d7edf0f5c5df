//! Products for few tokens: every row of the weights is read once, by one subgroup.
//!
//! A workgroup first stages the activations in workgroup memory, normed where asked for: for
//! quantised weights as 8-bit numbers with a scale and two sums for each 32, for plain weights as
//! they are. Then each of its subgroups takes rows; a lane takes the row's blocks of 32 elements
//! (16 bytes of a plain row) at a distance of the subgroup's size, so that loads of 16 bytes
//! lie side by side. Rows longer than workgroup memory go in chunks.
//!
//! Activations are quantised as ggml's q8_0 does; a block that holds an infinity or NaN gives
//! NaN. Without subgroups, 32 lanes sum through workgroup memory.

mod rows;
mod stage;

use std::fmt::Write as _;

use aether_ir::DType;

use self::rows::rows;
use self::stage::{QUANTIZED, held, rms, stage};
use super::Site;
use super::blocks::{Codec, DOT16, Load};
use super::product::{Epilogue, Product};
use super::text::{Elements, Source, Var, dim_text};
use crate::adapter::Adapter;
use crate::kernel::{Groups, Launch};

/// How rows are spread over workgroups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Variant {
    /// Subgroups of a workgroup.
    pub subgroups: u32,
    /// Rows that a subgroup reads at the same time; of each weight, for a gated pair.
    pub rows: u32,
    /// Blocks of a row that a lane reads at the same time.
    pub steps: u32,
    /// Times that a subgroup goes on to other rows.
    pub passes: u32,
    /// Read the next blocks before computing with these, the first before the activations.
    pub prefetch: bool,
    /// Stage the activations out of registers, when they are few enough.
    pub held: bool,
    /// Most tokens of a workgroup.
    pub tokens: u32,
}

impl Variant {
    /// A good choice for a product on an adapter.
    pub fn choose(product: &Product, adapter: &Adapter) -> Variant {
        let lanes = lanes(adapter);
        let most = if adapter.subgroup.is_some() { 8 } else { 2 };
        let subgroups = (adapter.workgroup_invocations / lanes).clamp(1, most);
        if adapter.subgroup.is_none_or(|n| n < 32) {
            // A software driver, or one that keeps little in flight: short code.
            let tokens = product.most_tokens.clamp(1, 4) as u32;
            return Variant {
                subgroups,
                rows: 1,
                steps: 1,
                passes: 1,
                prefetch: false,
                held: false,
                tokens,
            };
        }
        let tokens = product.most_tokens.clamp(1, 8) as u32;
        let quantised = !product.weights[0].dtype.planes().is_empty();
        if tokens == 1 && quantised && adapter.workgroup_invocations >= 16 * lanes {
            return Variant::large(product);
        }
        let rows = if product.gated || tokens > 2 { 1 } else { 2 };
        let steps = if product.gated || tokens > 1 { 1 } else { 2 };
        // Plain numbers take little arithmetic: more of them are read at the same time.
        let (rows, steps) = match quantised || tokens > 1 {
            true => (rows, steps),
            false => (2, 2),
        };
        Variant { subgroups, rows, steps, passes: 1, prefetch: true, held: true, tokens }
    }
}

impl Variant {
    /// Workgroups of 16 subgroups for one token: they stage the activations half as often as those
    /// of eight. After a norm that is what a short product costs, so that each goes over more rows.
    /// Measured on an H200 for q4_k: 1.1 to 2.3 times the speed of eight subgroups.
    fn large(product: &Product) -> Variant {
        let rows: usize = product.weights.iter().map(|w| w.rows).sum();
        let norm = product.norm.is_some();
        let passes = if norm && rows > 8192 { 2 } else { 1 };
        Variant {
            subgroups: 16,
            rows: if norm && !product.gated { 2 } else { 1 },
            steps: if norm || product.gated { 1 } else { 2 },
            passes,
            prefetch: passes == 1,
            held: true,
            tokens: 1,
        }
    }
}

/// Lanes that share a row.
fn lanes(adapter: &Adapter) -> u32 {
    adapter.subgroup.unwrap_or(32)
}

/// What one lane reads and computes of a row.
enum Row {
    Blocks(Codec),
    /// 16 bytes of f32, f16 or bf16.
    Plain(DType, usize),
}

impl Row {
    /// Vectors of 16 bytes in a row.
    fn vectors(&self, k: usize) -> usize {
        match self {
            Row::Blocks(codec) => codec.row,
            Row::Plain(_, bytes) => k * bytes / 16,
        }
    }

    fn loads(&self, w: &str, r: &str, b: &str) -> Vec<Load> {
        match self {
            Row::Blocks(codec) => codec.loads(w, r, b),
            Row::Plain(..) => vec![("c", "vec4<u32>", format!("{w}[{r} + {b}]"))],
        }
    }

    /// Statements before the products with suffix `s`.
    fn prepare(&self, b: &str, s: &str) -> String {
        match self {
            Row::Blocks(codec) => codec.codes(s) + &codec.scale_text(b, s),
            Row::Plain(dtype, _) => plain_values(*dtype, s),
        }
    }

    /// The product with the activations of names ending in `x`.
    fn product(&self, s: &str, x: &str) -> String {
        match self {
            Row::Blocks(codec) => {
                let dot = codec.dot(
                    s,
                    [&format!("x0{x}"), &format!("x1{x}")],
                    [&format!("s0{x}"), &format!("s1{x}")],
                );
                format!("f{x} * {dot}")
            }
            Row::Plain(DType::F32, _) => format!("f{x} * dot(v0{s}, x0{x})"),
            Row::Plain(..) => format!("f{x} * (dot(v0{s}, x0{x}) + dot(v1{s}, x1{x}))"),
        }
    }
}

/// `v0` and, but for f32, `v1`: the numbers of 16 bytes `c` of a plain row.
pub fn plain_values(dtype: DType, s: &str) -> String {
    match dtype {
        DType::F32 => format!("let v0{s} = bitcast<vec4<f32>>(c{s});\n"),
        DType::F16 => format!(
            "let v0{s} = vec4(unpack2x16float(c{s}.x), unpack2x16float(c{s}.y));
let v1{s} = vec4(unpack2x16float(c{s}.z), unpack2x16float(c{s}.w));
"
        ),
        _ => format!(
            "let a0{s} = c{s} << vec4(16u);
let a1{s} = c{s} & vec4(0xffff0000u);
let v0{s} = bitcast<vec4<f32>>(vec4(a0{s}.x, a1{s}.x, a0{s}.y, a1{s}.y));
let v1{s} = bitcast<vec4<f32>>(vec4(a0{s}.z, a1{s}.z, a0{s}.w, a1{s}.w));
"
        ),
    }
}

/// The kernel's sizes.
struct Plan<'a> {
    product: &'a Product,
    variant: Variant,
    /// Lanes of a row; whether they are a subgroup.
    lanes: u32,
    subgroup: bool,
    rows: Vec<Row>,
    /// Elements of a lane's block.
    block: usize,
    /// Blocks of a row, and of a chunk of it.
    blocks: usize,
    chunk: usize,
    /// The weights' bindings, and the first workgroup of each weight.
    weights: Vec<Var>,
    starts: Vec<u32>,
    tokens: String,
}

impl Plan<'_> {
    fn invocations(&self) -> u32 {
        self.lanes * self.variant.subgroups
    }

    fn chunks(&self) -> usize {
        self.blocks.div_ceil(self.chunk)
    }

    fn is_quantized(&self) -> bool {
        matches!(self.rows[0], Row::Blocks(_))
    }

    /// Whether the activations are staged out of registers.
    fn is_held(&self) -> bool {
        let parts = (self.product.k as u32 / 4).div_ceil(self.invocations());
        self.is_quantized()
            && self.by_eight()
            && self.variant.held
            && parts * self.variant.tokens <= 16
    }

    /// Whether eight lanes quantise a block.
    fn by_eight(&self) -> bool {
        self.subgroup && self.lanes >= 8
    }

    /// Vectors of four f32 in a lane's block.
    fn quads(&self) -> usize {
        self.block / 4
    }
}

/// The dispatch. The product [is supported](Product::is_supported).
pub fn launch(product: &Product, site: &Site, variant: &Variant) -> Launch {
    let name = name(product.weights[0].dtype);
    let mut source = Source::new(name);
    let x = source.bind(site.operands[0], "x", Elements::F32x4);
    let mut weights = Vec::new();
    for i in 0..product.weights.len() {
        weights.push(source.bind(site.operands[1 + i], &format!("w{i}"), Elements::U32x4));
    }
    let norm = product.norm.map(|eps| {
        let operand = site.operands[product.norm_operand()];
        (f32::from_bits(eps), source.bind(operand, "norm_weight", Elements::F32x4))
    });
    let epilogue = Epilogue::declare(product, site, &mut source);
    let rows: Vec<Row> = product
        .weights
        .iter()
        .map(|w| match Codec::new(w.dtype, product.k) {
            Some(codec) => Row::Blocks(codec),
            None => Row::Plain(w.dtype, w.dtype.block_bytes()),
        })
        .collect();
    let block = match &rows[0] {
        Row::Blocks(_) => 32,
        Row::Plain(_, bytes) => 16 / bytes,
    };
    let blocks = product.k / block;
    let lanes = lanes(site.adapter);
    let token_bytes = if matches!(rows[0], Row::Blocks(_)) { 40 } else { 4 * block };
    // Room is left for the sums of the norm and of lanes without subgroups.
    let room = site.adapter.workgroup_bytes.min(40 << 10) as usize;
    let pair = if product.gated { 2 } else { 1 };
    let sums = 4 * lanes * variant.subgroups * variant.rows * variant.tokens * pair;
    let sums = if site.adapter.subgroup.is_some() { 0 } else { sums + 4 * lanes };
    let room = room.saturating_sub(1024 + sums as usize);
    let chunk = (room / token_bytes / variant.tokens as usize).clamp(1, blocks);
    // Chunks after the first begin where a lane's steps do.
    let whole = lanes as usize * variant.steps as usize;
    let chunk = if chunk < blocks && chunk > whole { chunk / whole * whole } else { chunk };
    let mut starts = vec![0];
    let of_group = variant.subgroups * variant.rows * variant.passes;
    let parts = if product.gated { 1 } else { product.weights.len() };
    for w in &product.weights[..parts] {
        starts.push(starts[starts.len() - 1] + (w.rows as u32).div_ceil(of_group));
    }
    let plan = Plan {
        product,
        variant: *variant,
        lanes,
        subgroup: site.adapter.subgroup.is_some(),
        rows,
        block,
        blocks,
        chunk,
        weights,
        starts,
        tokens: dim_text(&product.tokens, site.symbols),
    };
    source.needs.subgroups = plan.subgroup;
    let groups = plan.starts[parts];
    let per_axis = site.adapter.workgroups_per_axis;
    let across = groups.min(per_axis);
    declare(&plan, &mut source);
    entry(&plan, &mut source, &x, norm.as_ref(), &epilogue, across);
    source.launch([
        Groups::of(u64::from(across), 1),
        Groups::of(product.tokens.clone(), variant.tokens),
        Groups::of(u64::from(groups.div_ceil(across)), 1),
    ])
}

fn name(dtype: DType) -> &'static str {
    match dtype {
        DType::Q4_0 => "matvec_q4_0",
        DType::Q4_1 => "matvec_q4_1",
        DType::Q5_0 => "matvec_q5_0",
        DType::Q5_1 => "matvec_q5_1",
        DType::Q8_0 => "matvec_q8_0",
        DType::Q2K => "matvec_q2_k",
        DType::Q3K => "matvec_q3_k",
        DType::Q4K => "matvec_q4_k",
        DType::Q5K => "matvec_q5_k",
        DType::Q6K => "matvec_q6_k",
        DType::F16 => "matvec_f16",
        DType::Bf16 => "matvec_bf16",
        _ => "matvec_f32",
    }
}

/// Workgroup memory and functions.
fn declare(plan: &Plan, source: &mut Source) {
    let (t, chunk) = (plan.variant.tokens as usize, plan.chunk);
    if plan.is_quantized() {
        source.push(DOT16);
        if plan.by_eight() {
            source.push(QUANTIZED);
        }
        source.push(&format!(
            "var<workgroup> codes: array<vec4<u32>, {}>;
var<workgroup> scales: array<vec2<u32>, {}>;",
            2 * chunk * t,
            chunk * t
        ));
    } else {
        let quads = plan.quads() * chunk * t;
        source.push(&format!("var<workgroup> staged: array<vec4<f32>, {quads}>;"));
    }
    if plan.product.norm.is_some() {
        source.push(&format!(
            "var<workgroup> squares: array<f32, {}>;",
            if plan.subgroup { plan.variant.subgroups } else { plan.invocations() }
        ));
    }
    if !plan.subgroup {
        let slots = slots(plan);
        source.push(&format!(
            "var<workgroup> lane_sums: array<f32, {}>;",
            slots * t * plan.invocations() as usize
        ));
    }
}

/// Rows that a subgroup reads at the same time, of all weights.
fn slots(plan: &Plan) -> usize {
    plan.variant.rows as usize * if plan.product.gated { 2 } else { 1 }
}

fn entry(
    plan: &Plan,
    source: &mut Source,
    x: &Var,
    norm: Option<&(f32, Var)>,
    epilogue: &Epilogue,
    across: u32,
) {
    let mut t = String::new();
    let built_ins = if plan.subgroup {
        ", @builtin(subgroup_id) sg: u32, @builtin(subgroup_invocation_id) lane: u32"
    } else {
        ""
    };
    let _ = writeln!(
        t,
        "@compute @workgroup_size({})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32{built_ins}) {{",
        plan.invocations()
    );
    if !plan.subgroup {
        let lanes = plan.lanes;
        let _ = writeln!(t, "let sg = tid / {lanes}u;\nlet lane = tid % {lanes}u;");
    }
    let _ = writeln!(t, "let group = id.x + id.z * {across}u;");
    let groups = plan.starts[plan.starts.len() - 1];
    if !groups.is_multiple_of(across) {
        let _ = writeln!(t, "if group >= {groups}u {{ return; }}");
    }
    let _ = writeln!(t, "let token0 = id.y * {}u;", plan.variant.tokens);
    let staging = |chunk: &str| stage(plan, x, norm, chunk);
    let norms = || norm.map(|(eps, _)| rms(plan, x, *eps)).unwrap_or_default();
    // The first loads of weights go out before the activations are staged.
    let once = plan.chunks() == 1;
    let before = once && plan.variant.prefetch && plan.variant.passes == 1;
    let whole = || match plan.is_held() {
        true => held(plan, x, norm),
        false => norms() + &staging("0u"),
    };
    if !once {
        t.push_str(&norms());
    } else if !before {
        t.push_str(&whole());
        t.push_str("workgroupBarrier();\n");
    }
    for part in 0..plan.starts.len() - 1 {
        let (first, end) = (plan.starts[part], plan.starts[part + 1]);
        if plan.starts.len() > 2 {
            let _ = writeln!(t, "if group >= {first}u && group < {end}u {{");
        }
        let weights = if plan.product.gated { vec![0, 1] } else { vec![part] };
        let prologue = if before { whole() } else { String::new() };
        t.push_str(&rows(plan, &weights, first, &prologue, &staging, epilogue));
        if plan.starts.len() > 2 {
            t.push_str("}\n");
        }
    }
    t.push_str("}\n");
    source.push(&t);
}
