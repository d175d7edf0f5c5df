//! Activations made ready for products of many tokens: one workgroup for each token writes its
//! row to scratch, normed where asked for.
//!
//! - [`Form::Codes`]: 8-bit numbers with a scale and two sums for each 32, as `matvec` stages
//!   them.
//! - [`Form::Halves`]: f16, each row multiplied by a power of two that keeps it in range, the
//!   second and third of four elements exchanged where weights are unpacked in that order.
//! - [`Form::Floats`]: f32, which is of use only after a norm.

use super::Site;
use super::product::Product;
use super::text::{Elements, Source, Var, dim_text};
use crate::kernel::{Groups, Launch};

/// What the activations become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Codes,
    Halves { exchanged: bool },
    Floats,
}

/// Rows of scratch are a multiple of this many tokens, zero beyond the last.
pub const ROWS: usize = 128;

/// Where the parts lie in the scratch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    pub form: Form,
    /// Elements of a row.
    pub k: usize,
    /// Most rows.
    pub rows: usize,
}

impl Area {
    /// The area for a product.
    pub fn new(form: Form, product: &Product) -> Area {
        Area { form, k: product.k, rows: product.most_tokens.next_multiple_of(ROWS) }
    }

    /// Bytes of the numbers.
    fn values(&self) -> u64 {
        let bytes = match self.form {
            Form::Codes => self.k,
            Form::Halves { .. } => 2 * self.k,
            Form::Floats => 4 * self.k,
        };
        (self.rows * bytes) as u64
    }

    /// Bytes of the scales.
    fn scales(&self) -> u64 {
        (match self.form {
            Form::Codes => self.rows * self.k / 32 * 8,
            Form::Halves { .. } => self.rows * 4,
            Form::Floats => 0,
        }) as u64
    }

    /// Bytes of scratch.
    pub fn bytes(&self) -> u64 {
        self.values().next_multiple_of(256) + self.scales().next_multiple_of(256)
    }

    /// Declares the numbers and, where there are, the scales.
    pub fn declare(&self, source: &mut Source) -> (Var, Option<Var>) {
        let values = match self.form {
            Form::Codes => Elements::U32x4,
            Form::Halves { .. } => Elements::F16x4,
            Form::Floats => Elements::F32x4,
        };
        let values = source.scratch(0, self.values(), "prepared", values);
        (values, self.declare_scales(source))
    }

    /// Declares the scales alone.
    pub fn declare_scales(&self, source: &mut Source) -> Option<Var> {
        let scales = match self.form {
            Form::Codes => Elements::U32,
            Form::Halves { .. } => Elements::F32,
            Form::Floats => return None,
        };
        let at = self.values().next_multiple_of(256);
        Some(source.scratch(at, self.scales(), "factors", scales))
    }
}

/// Invocations of a workgroup. Software drivers have narrow subgroups, and nothing to wait for.
fn invocations(product: &Product, site: &Site) -> usize {
    let wide = site.adapter.subgroup.is_some_and(|n| n >= 16);
    if wide && product.k >= 2048 && site.adapter.workgroup_invocations >= 512 { 512 } else { 128 }
}

/// The largest of a workgroup's numbers, or their sum, by halves.
fn reduce(invocations: usize, target: &str, expression: &str) -> String {
    format!(
        "workgroupBarrier();
for (var n = {}u; n > 0u; n = n / 2u) {{
    if tid < n {{
        let a = {target}[tid];
        let b = {target}[tid + n];
        {target}[tid] = {expression};
    }}
    workgroupBarrier();
}}
",
        invocations / 2
    )
}

/// The dispatch.
pub fn launch(product: &Product, site: &Site, area: &Area) -> Launch {
    let mut source = Source::new("prepare");
    source.needs.f16 = matches!(area.form, Form::Halves { .. });
    let k = product.k;
    let invocations = invocations(product, site);
    let x = source.bind(site.operands[0], "x", Elements::F32x4);
    let norm = product.norm.map(|eps| {
        let weight = site.operands[product.norm_operand()];
        (f32::from_bits(eps), source.bind(weight, "norm_weight", Elements::F32x4))
    });
    let (values, scales) = area.declare(&mut source);
    let (values, scales) = (values.name, scales.map(|s| s.name).unwrap_or_default());
    source.push(&format!("var<workgroup> sums: array<f32, {invocations}>;"));
    source.push(&format!("var<workgroup> most: array<u32, {invocations}>;"));
    let tokens = dim_text(&product.tokens, site.symbols);
    let mut t = format!(
        "@compute @workgroup_size({invocations})
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) tid: u32) {{
let row = id.y * {ROWS}u + id.x;
let token = min(row, {tokens} - 1u);
let live = select(0.0, 1.0, row < {tokens});
"
    );
    let load = |i: &str| x.quad(&format!("token * {}u + {i}", k / 4));
    if let Some((eps, _)) = &norm {
        t.push_str(&format!(
            "var square = 0.0;
for (var i = tid; i < {}u; i += {invocations}u) {{
    let v = {};
    square += dot(v, v);
}}
sums[tid] = square;
{}let inv = inverseSqrt(sums[0] / {k}.0 + f32({eps:e}));
",
            k / 4,
            load("i"),
            reduce(invocations, "sums", "a + b"),
        ));
    }
    let normed = |i: &str| match &norm {
        Some((_, w)) => format!("({} * inv * {})", load(i), w.quad(i)),
        None => load(i),
    };
    t.push_str(&match area.form {
        Form::Floats => format!(
            "for (var i = tid; i < {quads}u; i += {invocations}u) {{
    {values}[row * {quads}u + i] = {};
}}
",
            normed("i"),
            quads = k / 4,
        ),
        Form::Halves { exchanged } => {
            halves(k, invocations, &values, &scales, exchanged, &normed("i"))
        }
        Form::Codes => {
            let blocks = k / 32;
            format!(
                "for (var block = tid; block < {blocks}u; block += {invocations}u) {{
    let quad = 8u * block;
{}}}
",
                quantize(
                    &normed("(quad + i)"),
                    &|i, word| format!(
                        "{values}[(row * 2u + {i} / 4u) * {blocks}u + block][{i} % 4u] = {word};"
                    ),
                    &|scale, sums| format!(
                        "let at = 2u * (row * {blocks}u + block);
    {scales}[at] = {scale};
    {scales}[at + 1u] = {sums};"
                    )
                )
            )
        }
    });
    t.push_str("}\n");
    source.push(&t);
    source.launch([
        Groups::of(ROWS, 1),
        Groups::of(product.tokens.clone(), ROWS as u32),
        Groups::one(),
    ])
}

/// A row as f16. The power of two is chosen by the exponent of the largest number, so that it
/// becomes about 2^10; a row that holds an infinity or NaN keeps it.
fn halves(
    k: usize,
    invocations: usize,
    values: &str,
    scales: &str,
    exchanged: bool,
    v: &str,
) -> String {
    let order = if exchanged { ".xzyw" } else { "" };
    format!(
        "var large = 0u;
for (var i = tid; i < {quads}u; i += {invocations}u) {{
    let bits = bitcast<vec4<u32>>({v}) & vec4(0x7fffffffu);
    large = max(large, max(max(bits.x, bits.y), max(bits.z, bits.w)));
}}
most[tid] = large;
{}let exponent = clamp(most[0] >> 23u, 32u, 222u);
let factor = bitcast<f32>((264u - exponent) << 23u) * live;
if tid == 0u {{ {scales}[row] = bitcast<f32>((exponent - 10u) << 23u); }}
for (var i = tid; i < {quads}u; i += {invocations}u) {{
    {values}[row * {quads}u + i] = vec4<f16>(({v} * factor){order});
}}
",
        reduce(invocations, "most", "max(a, b)"),
        quads = k / 4,
    )
}

/// Quantises a block by one invocation: `v` is its vector `i` of four, `codes` stores a word of
/// four codes at `i`, `scales` stores the scale's bits and the packed sums of the halves.
pub fn quantize(
    v: &str,
    codes: &dyn Fn(&str, &str) -> String,
    scales: &dyn Fn(&str, &str) -> String,
) -> String {
    format!(
        "    var large = 0u;
    for (var i = 0u; i < 8u; i += 1u) {{
        let bits = bitcast<vec4<u32>>({v}) & vec4(0x7fffffffu);
        large = max(large, max(max(bits.x, bits.y), max(bits.z, bits.w)));
    }}
    let range = bitcast<f32>(large);
    let ok = large < 0x7f800000u;
    let factor = select(0.0, 127.0 / range, ok && range > 1e-30);
    var halves = vec2(0, 0);
    for (var i = 0u; i < 8u; i += 1u) {{
        let word = pack4xI8(vec4<i32>(round({v} * factor)));
        {}
        halves[i / 4u] += dot4I8Packed(word, 0x01010101u);
    }}
    let scale = select(large | 0x7fc00000u, bitcast<u32>(range / 127.0), ok);
    let packed = (bitcast<u32>(halves.x) & 0xffffu) | (bitcast<u32>(halves.y) << 16u);
    {}
",
        codes("i", "word"),
        scales("scale", "packed"),
    )
}
