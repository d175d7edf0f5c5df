//! Ops that need elements in order: argmax and top-k of many numbers by the template, else and
//! sort by counting what stands before each, cumsum by walking along.

use aether_ir::{DType, Dim, Inst, Op, Symbol, SymbolRange, TensorType};
use indexmap::IndexMap;

use super::build::{Build, WORKGROUP, words};
use super::{Lower, Site, text};
use crate::error::CompileError;
use crate::templates::pick::Pick;

/// Whether element `a` at place `i` stands before `b` at place `j` in falling order: NaN first,
/// equal ones by place.
fn before(float: bool) -> String {
    let kind = |kind: &str, body: &str| {
        format!("fn before(a: {kind}, i: u32, b: {kind}, j: u32) -> bool {{ {body} }}\n")
    };
    match float {
        true => kind(
            "f32",
            "if is_nan(a) || is_nan(b) { \
             if is_nan(a) && is_nan(b) { return i < j; } return is_nan(a); } \
             return a > b || (a == b && i < j);",
        ),
        false => "fn before(a: KIND, i: u32, b: KIND, j: u32) -> bool { \
                  return a > b || (a == b && i < j); }\n"
            .to_owned(),
    }
}

/// The template for argmax and top_k over the last axis; `None` when there is none.
pub fn template(
    inst: &Inst,
    x: &TensorType,
    symbols: &IndexMap<Symbol, SymbolRange>,
) -> Option<Pick> {
    let (n, rows) = x.shape.0.split_last()?;
    let k = match inst.op {
        Op::TopK => Some(usize::try_from(inst.attrs.int("k", 0)).ok()?),
        Op::Argmax if x.shape.axis(inst.attrs.int("axis", -1)) == Some(rows.len()) => None,
        _ => return None,
    };
    let rows = rows.iter().fold(Dim::new(1), |acc, d| &acc * d);
    let most_rows = usize::try_from(rows.upper_bound(symbols)?).ok()?;
    let pick = Pick { rows, most_rows, n: usize::try_from(n.as_const()?).ok()?, k };
    (x.dtype == DType::F32 && pick.is_supported()).then_some(pick)
}

/// Argmax, top_k, sort, cumsum.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    if let Some(pick) = template(site.inst, &site.inputs[0].ty, &lower.module.symbols) {
        return lower.templates(site, |t| pick.launches(t));
    }
    let x = &site.inputs[0];
    let dtype = x.ty.dtype;
    let kind = match text::value_type(dtype) {
        Some(kind) if kind != "bool" => kind,
        _ => return site.unsupported(format!("{}", x.ty)),
    };
    let op = site.inst.op;
    let axis = if op == Op::TopK { x.ty.rank() - 1 } else { site.axis(x)? };
    let name = match op {
        Op::Argmax => "argmax",
        Op::TopK => "top_k",
        Op::Sort => "sort",
        _ => "cumsum",
    };
    let mut build = Build::new(name);
    build.globals.push_str(&before(kind == "f32").replace("KIND", kind));
    let dims = x.dims();
    let product = |dims: &[Dim]| dims.iter().fold(Dim::new(1), |acc, d| &acc * d);
    let rows = &product(&dims[..axis]) * &product(&dims[axis + 1..]);
    let inner = lower.product(&dims[axis + 1..]);
    build.line(format!("let length = {};", lower.dim(&dims[axis])));
    let source = build.read(x);
    let value = |r: &str| {
        let at = format!("(((g / {inner}) * length + {r}) * {inner} + g % {inner})");
        text::load(&source, &at, dtype)
    };
    let rows_text = lower.dim(&rows);
    match op {
        Op::Argmax => {
            build.line("let g = group;");
            build.line(format!("if g >= {rows_text} {{ return; }}"));
            build.globals.push_str(&format!(
                "var<workgroup> values: array<{kind}, 256>;\n\
                 var<workgroup> places: array<u32, 256>;\n"
            ));
            build.line(format!("var best = {};", value("0u")));
            build.line("var place = 0u;");
            build.line("for (var r = lane; r < length; r += 256u) {");
            build.line(format!("let v = {};", value("r")));
            build.line("if before(v, r, best, place) { best = v; place = r; }");
            build.line("}");
            build.line("values[lane] = best; places[lane] = place;");
            build.line("workgroupBarrier();");
            build.line("for (var half = 128u; half > 0u; half >>= 1u) {");
            build.line(
                "if lane < half && before(values[lane + half], places[lane + half], \
                        values[lane], places[lane]) {",
            );
            build.line("values[lane] = values[lane + half]; places[lane] = places[lane + half];");
            build.line("}");
            build.line("workgroupBarrier();");
            build.line("}");
            let target = build.write(&site.outputs[0]);
            build.line(format!("if lane == 0u {{ {target}[g] = places[0]; }}"));
            build.finish(lower, site, rows, 1)
        }
        Op::Cumsum => {
            let out = &site.outputs[0];
            build.line("let g = unit;");
            build.line(format!("if g >= {rows_text} {{ return; }}"));
            let reverse = site.inst.attrs.bool("reverse", false);
            let exclusive = site.inst.attrs.bool("exclusive", false);
            build.line(format!("var sum = {kind}(0);"));
            build.line("for (var s = 0u; s < length; s++) {");
            build.line(if reverse { "let r = length - 1u - s;" } else { "let r = s;" });
            build.line(format!("let v = {};", value("r")));
            let place = format!("((g / {inner}) * length + r) * {inner} + g % {inner}");
            let bits = text::to_bits(if exclusive { "sum" } else { "(sum + v)" }, dtype);
            let store = build.store(out, &place, &bits);
            build.line(store);
            build.line("sum = sum + v;");
            build.line("}");
            build.finish(lower, site, rows, WORKGROUP)
        }
        _ => {
            // The place of an element is the number of those before it.
            let (values, indices) = (&site.outputs[0], &site.outputs[1]);
            let falling = op == Op::TopK || site.inst.attrs.bool("descending", false);
            let kept = match op {
                Op::TopK => format!("{}u", site.inst.attrs.int("k", 0)),
                _ => "length".to_owned(),
            };
            build.line("let g = unit / max(length, 1u); let own = unit % max(length, 1u);");
            build.line(format!("if g >= {rows_text} {{ return; }}"));
            build.line(format!("let v = {};", value("own")));
            build.line("var place = 0u;");
            build.line("for (var r = 0u; r < length; r++) {");
            build.line(format!("let w = {};", value("r")));
            // Rising order keeps equal ones by place too.
            match falling {
                true => build.line("if before(w, r, v, own) { place++; }"),
                false => build.line(
                    "if before(v, 0u, w, 0u) || (!before(w, 0u, v, 0u) && r < own) { place++; }",
                ),
            }
            build.line("}");
            build.line(format!("if place >= {kept} {{ return; }}"));
            let at = format!("((g / {inner}) * {kept} + place) * {inner} + g % {inner}");
            let bits = text::to_bits("v", dtype);
            let store = build.store(values, &at, &bits);
            build.line(store);
            let target = build.write(indices);
            build.line(format!("{target}[{at}] = own;"));
            debug_assert_eq!(words(indices.ty.dtype), 1);
            build.finish(lower, site, x.numel(), WORKGROUP)
        }
    }
}
