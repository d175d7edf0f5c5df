//! Reading and adding along an axis by indices. An index out of range ends the run with an error.

use aether_ir::{Dim, Op};

use super::build::{Build, WORKGROUP, words};
use super::{Lower, Site, View, text};
use crate::error::CompileError;

/// Gather and scatter_add.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    match site.inst.op {
        Op::Gather => gather(lower, site),
        _ => scatter_add(lower, site),
    }
}

/// Sizes around an axis: elements before, along and behind it.
struct Around {
    length: String,
    inner: String,
}

fn around(lower: &Lower, table: &View, axis: usize) -> Around {
    Around {
        length: lower.dim(&table.dims()[axis]),
        inner: lower.product(&table.dims()[axis + 1..]),
    }
}

/// `fn pick(i) -> u32`: index `i`, checked.
pub(super) fn pick(build: &mut Build, indices: &View, length: &str) {
    build.can_fail();
    let buffer = build.read(indices);
    let value = match words(indices.ty.dtype) {
        // 64 bits: the upper word of an index in range is 0.
        2 => format!(
            "let low = {buffer}[i * 2u]; let index = select(4294967295u, low, \
             {buffer}[i * 2u + 1u] == 0u);"
        ),
        _ => format!("let index = {buffer}[i];"),
    };
    build.globals.push_str(&format!(
        "fn pick(i: u32) -> u32 {{ {value} if index >= {length} {{ fail(2u, index); return 0u; }} \
         return index; }}\n"
    ));
}

fn gather(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (table, indices, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    if table.ty.dtype.is_quantized() {
        return site.unsupported(format!("rows of {}", table.ty));
    }
    let axis = site.axis(table)?;
    let mut build = Build::new("gather");
    let at = around(lower, table, axis);
    pick(&mut build, indices, &at.length);
    let (source, target) = (build.read(table), build.write(out));
    let dtype = out.ty.dtype;
    let per = text::per_word(dtype);
    let picks = lower.product(indices.dims());
    build.line(format!("let count = {};", lower.dim(&out.numel())));
    build.line(format!("let first = unit * {per}u;"));
    build.line("if first >= count { return; }");
    let from = format!(
        "((e / ({inner} * {picks})) * {length} + pick((e / {inner}) % {picks})) * {inner} + \
         e % {inner}",
        inner = at.inner,
        length = at.length
    );
    if per > 1 {
        build.line("var word = 0u;");
        build.line(format!("for (var j = 0u; j < {per}u; j++) {{"));
        build.line("let e = first + j;");
        build.line("if e >= count { break; }");
        build.line(format!("let begin = {from};"));
        let bits = text::load_bits(&source, "begin", dtype);
        build.line(format!("word |= {bits} << (j * {}u);", 32 / per));
        build.line("}");
        build.line(format!("{target}[unit] = word;"));
    } else {
        build.line("let e = first;");
        build.line(format!("let begin = {from};"));
        for word in 0..words(dtype) {
            let n = words(dtype);
            build.line(format!("{target}[e * {n}u + {word}u] = {source}[begin * {n}u + {word}u];"));
        }
    }
    build.finish(lower, site, out.numel(), WORKGROUP * per as u32)
}

/// An invocation sums what comes to one element, in the order of the updates, so that the result
/// is the same in every run.
fn scatter_add(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (x, indices, updates) = (&site.inputs[0], &site.inputs[1], &site.inputs[2]);
    let out = &site.outputs[0];
    let dtype = out.ty.dtype;
    let Some(kind) = text::value_type(dtype) else {
        return site.unsupported(format!("sums of {dtype}"));
    };
    let axis = site.axis(x)?;
    let mut build = Build::new("scatter_add");
    let at = around(lower, x, axis);
    pick(&mut build, indices, &at.length);
    let (source, added) = (build.read(x), build.read(updates));
    let picks = lower.product(indices.dims());
    build.line(format!("let count = {};", lower.dim(&out.numel())));
    build.line("let e = unit;");
    // With nothing to sum into, indices are checked all the same.
    build.line(format!("if e == 0u {{ for (var j = 0u; j < {picks}; j++) {{ _ = pick(j); }} }}"));
    build.line("if e >= count { return; }");
    build.line(format!("let place = (e / {}) % {};", at.inner, at.length));
    build.line(format!("let before = e / ({} * {});", at.inner, at.length));
    let start = text::load(&source, "e", dtype);
    build.line(format!("var sum: {kind} = {start};"));
    build.line(format!("for (var j = 0u; j < {picks}; j++) {{"));
    build.line("if pick(j) == place {");
    build
        .line(format!("let u = (before * {picks} + j) * {inner} + e % {inner};", inner = at.inner));
    let update = text::load(&added, "u", dtype);
    build.line(format!("sum = sum + {update};"));
    build.line("}");
    build.line("}");
    let bits = text::to_bits("sum", dtype);
    let line = build.store(out, "e", &bits);
    build.line(line);
    let numel = &out.numel() + &Dim::new(1);
    build.finish(lower, site, numel, WORKGROUP)
}
