//! Attention over a cache: by the templates where they have the types, else in a general form: a
//! workgroup for each query head of each token, an online softmax over keys in steps of the
//! workgroup's size (Milakov and Gimelshein 2018).

use aether_ir::{DType, Inst, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use super::build::{Build, WORKGROUP};
use super::cache::place;
use super::{Lower, Site, text};
use crate::error::CompileError;
use crate::templates::attention::Attention;

/// The template for an attention; `None` when there is none.
pub fn template(
    inst: &Inst,
    operands: &[&TensorType],
    symbols: &IndexMap<Symbol, SymbolRange>,
) -> Option<Attention> {
    let [q, k, v, ..] = operands else { return None };
    let has_slots = operands.len() > 4;
    let front = usize::from(has_slots);
    let number = |ty: &TensorType, axis: usize| ty.shape.0[axis].as_const().map(|d| d as usize);
    let attrs = &inst.attrs;
    let attention = Attention {
        heads: number(q, 1)?,
        kv_heads: number(k, 1 + front)?,
        d: number(q, 2)?,
        dv: number(v, 2 + front)?,
        tokens: q.shape.0[0].clone(),
        most_tokens: q.shape.0[0].upper_bound(symbols)? as usize,
        context: number(k, front)?,
        cache: k.dtype,
        scale: attrs.float("scale", 1.0) as f32,
        causal: attrs.bool("causal", true),
        window: usize::try_from(attrs.int("window", 0)).ok()?,
        softcap: attrs.float("softcap", 0.0) as f32,
        slots: if has_slots { Some(number(k, 0)?) } else { None },
    };
    let alike = q.dtype == DType::F32 && k.dtype == v.dtype;
    (alike && attention.is_supported()).then_some(attention)
}

/// attention.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let types: Vec<&TensorType> = site.inputs.iter().map(|v| &v.ty).collect();
    if let Some(attention) = template(site.inst, &types, &lower.module.symbols) {
        return lower.templates(site, |t| attention.launches(t));
    }
    let [q, k, v] = [0, 1, 2].map(|i| &site.inputs[i]);
    let out = &site.outputs[0];
    if [q, k, v, out].iter().any(|x| text::value_type(x.ty.dtype) != Some("f32")) {
        return site.unsupported(format!("{} over {} and {}", q.ty, k.ty, v.ty));
    }
    let slots = site.inputs.len() > 4;
    let front = usize::from(slots);
    let number = |d: &aether_ir::Dim| d.as_const().unwrap_or(0);
    let (heads, width) = (number(&q.dims()[1]), number(&q.dims()[2]));
    let (kv_heads, out_width) = (number(&k.dims()[1 + front]), number(&v.dims()[2 + front]));
    if width == 0 || out_width == 0 || kv_heads == 0 || width > 1024 || out_width > 1024 {
        return site.unsupported(format!("heads of {width} and {out_width}"));
    }
    let attrs = &site.inst.attrs;
    let mut build = Build::new("attention");
    place(lower, &mut build, k, &site.inputs[3..]);
    let (qs, ks, vs) = (build.read(q), build.read(k), build.read(v));
    let per_lane = out_width.div_ceil(u64::from(WORKGROUP));
    build.globals.push_str(&format!(
        "var<workgroup> query: array<f32, {width}>;\n\
         var<workgroup> weights: array<f32, {WORKGROUP}>;\n\
         var<workgroup> shared_max: array<f32, {WORKGROUP}>;\n\
         var<workgroup> shared_sum: array<f32, {WORKGROUP}>;\n"
    ));
    build.line(format!("let tokens = {};", lower.dim(&q.dims()[0])));
    build.line(format!("let token = group / {heads}u; let head = group % {heads}u;"));
    build.line("if token >= tokens { return; }");
    build.line(format!("let kv = head / {}u;", heads / kv_heads));
    build.line("let own = place(token);");
    let context = lower.dim(&k.dims()[front]);
    build.line(match slots {
        true => format!("let base = own - own % {context}; let position = own % {context};"),
        false => "let base = 0u; let position = own;".to_owned(),
    });
    build.line(match attrs.bool("causal", true) {
        true => "let end = position + 1u;".to_owned(),
        false => "let end = place(tokens - 1u) + 1u;".to_owned(),
    });
    build.line(match attrs.int("window", 0) {
        0 => "let start = 0u;".to_owned(),
        w => format!("let start = u32(max(0, i32(position) + 1 - {w}));"),
    });
    build.line(format!("for (var i = lane; i < {width}u; i += {WORKGROUP}u) {{"));
    build.line(format!("let e = (token * {heads}u + head) * {width}u + i;"));
    build.line(format!("query[i] = {};", text::load(&qs, "e", q.ty.dtype)));
    build.line("}");
    build.line("workgroupBarrier();");
    let lowest = text::float(f32::NEG_INFINITY);
    build.line(format!("var greatest = {lowest}; var sum = 0.0;"));
    build.line(format!("var parts: array<f32, {per_lane}>;"));
    build.line(format!("for (var from_key = start; from_key < end; from_key += {WORKGROUP}u) {{"));
    build.line("let j = from_key + lane;");
    build.line(format!("var score = {lowest};"));
    build.line("if j < end {");
    build.line(format!("let row = ((base + j) * {kv_heads}u + kv) * {width}u;"));
    build.line("var dot_product = 0.0;");
    build.line(format!("for (var i = 0u; i < {width}u; i++) {{"));
    build.line("let e = row + i;");
    build.line(format!("dot_product += query[i] * {};", text::load(&ks, "e", k.ty.dtype)));
    build.line("}");
    let scale = text::float(attrs.float("scale", 1.0) as f32);
    build.line(format!("score = dot_product * {scale};"));
    let cap = attrs.float("softcap", 0.0);
    if cap > 0.0 {
        let cap = text::float(cap as f32);
        build.line(format!("score = {cap} * tanh_all(score / {cap});"));
    }
    build.line("}");
    let join = |build: &mut Build, shared: &str, own: &str, joined: &str| {
        build.line(format!("{shared}[lane] = {own};"));
        build.line("workgroupBarrier();");
        build.line(format!("for (var half = {}u; half > 0u; half >>= 1u) {{", WORKGROUP / 2));
        build.line(format!("if lane < half {{ {shared}[lane] = {joined}; }}"));
        build.line("workgroupBarrier();");
        build.line("}");
    };
    join(&mut build, "shared_max", "score", "max_nan(shared_max[lane], shared_max[lane + half])");
    build.line("let next = max_nan(greatest, shared_max[0]);");
    build.line("let weight = select(0.0, exp(score - next), j < end);");
    build.line("weights[lane] = weight;");
    join(&mut build, "shared_sum", "weight", "shared_sum[lane] + shared_sum[lane + half]");
    build.line("let shrink = exp(greatest - next);");
    build.line("greatest = next;");
    build.line("sum = sum * shrink + shared_sum[0];");
    build.line(format!("let keys = min({WORKGROUP}u, end - from_key);"));
    build.line(format!("for (var n = 0u; n < {per_lane}u; n++) {{"));
    build.line(format!("let i = lane + n * {WORKGROUP}u;"));
    build.line(format!("if i < {out_width}u {{"));
    build.line("var part = parts[n] * shrink;");
    build.line("for (var r = 0u; r < keys; r++) {");
    build.line(format!("let e = ((base + from_key + r) * {kv_heads}u + kv) * {out_width}u + i;"));
    build.line(format!("part += weights[r] * {};", text::load(&vs, "e", v.ty.dtype)));
    build.line("}");
    build.line("parts[n] = part;");
    build.line("}");
    build.line("}");
    build.line("workgroupBarrier();");
    build.line("}");
    build.line(format!("for (var n = 0u; n < {per_lane}u; n++) {{"));
    build.line(format!("let i = lane + n * {WORKGROUP}u;"));
    build.line(format!("if i < {out_width}u {{"));
    build.line(format!("let e = (token * {heads}u + head) * {out_width}u + i;"));
    let bits = text::to_bits("(parts[n] / sum)", out.ty.dtype);
    let store = build.store(out, "e", &bits);
    build.line(store);
    build.line("}");
    build.line("}");
    let groups = &q.dims()[0] * &q.dims()[1];
    build.finish(lower, site, groups, 1)
}
