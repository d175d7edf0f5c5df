//! Rows of a quantised table by index, element by element as [`crate::planes`] says. A table above
//! the adapter's limit for a binding is bound in parts of its rows.

use std::fmt::Write;

use aether_ir::{DType, Layout, Op};

use super::build::{Build, WORKGROUP};
use super::index::pick;
use super::{Lower, Site, View};
use crate::error::CompileError;
use crate::planes::plane_offsets;
use crate::program::Binding;

/// Whether a gather is one of rows in planes.
pub fn handles(site: &Site) -> bool {
    site.inst.op == Op::Gather
        && site.inputs[0].ty.layout == Layout::Planes
        && site.inst.attrs.int("axis", 0) == 0
}

/// The gather.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (table, indices, out) = (&site.inputs[0], &site.inputs[1], &site.outputs[0]);
    let dtype = table.ty.dtype;
    let sizes = table.ty.shape.as_const().filter(|d| d.len() == 2);
    let Some([rows, k]) = sizes.as_deref().and_then(|d| d.first_chunk::<2>()).copied() else {
        return site.unsupported(format!("rows of {}", table.ty));
    };
    let Some(row_bytes) = dtype.planes_row_bytes(k as usize) else {
        return site.unsupported(format!("rows of {}", table.ty));
    };
    let mut build = Build::new("gather_rows");
    pick(&mut build, indices, &format!("{rows}u"));
    let most = lower.adapter.binding_bytes / row_bytes as u64;
    let step = if most >= rows { rows } else { most / 256 * 256 };
    if step == 0 {
        return site.unsupported(format!("rows of {row_bytes} bytes"));
    }
    let mut word = String::from("fn word(row: u32, at: u32) -> u32 {\n");
    for first in (0..rows).step_by(step as usize) {
        let part = View {
            ty: table.ty.clone(),
            binding: Binding {
                offset: table.binding.offset + first * row_bytes as u64,
                bytes: step.min(rows - first) * row_bytes as u64,
                ..table.binding
            },
        };
        let buffer = build.read(&part);
        let _ = writeln!(
            word,
            "    if row < {end}u {{ return {buffer}[(row - {first}u) * {words}u + at / 4u]; }}",
            end = (first + step).min(rows),
            words = row_bytes / 4
        );
    }
    word.push_str("    return 0u;\n}\n");
    build.globals.push_str(&word);
    build.globals.push_str(&element(dtype, &plane_offsets(dtype, k as usize)));
    let target = build.write(out);
    build.line(format!("if unit >= {} {{ return; }}", lower.dim(&out.numel())));
    build.line(format!("{target}[unit] = bitcast<u32>(element(pick(unit / {k}u), unit % {k}u));"));
    build.finish(lower, site, out.numel(), WORKGROUP)
}

/// `fn element(row, e) -> f32`.
fn element(dtype: DType, at: &[usize]) -> String {
    let p = |plane: usize| at.get(plane).copied().unwrap_or(0);
    let nibble = format!("nibble(row, {}u, e)", p(0));
    let bit = |plane: usize| format!("bit(row, {}u, e)", p(plane));
    let pair = |plane: usize| format!("pair(row, {}u, e)", p(plane));
    let half = |place: String| format!("half_at(row, {place})");
    let of_block = |plane: usize, size: usize, more: usize| {
        half(format!("{}u + {size}u * (e / 32u) + {more}u", p(plane)))
    };
    let of_super = |plane: usize, size: usize, more: usize| {
        half(format!("{}u + {size}u * (e / 256u) + {more}u", p(plane)))
    };
    let signed = |plane: usize| format!("signed_at(row, {}u + e / 16u)", p(plane));
    let value = match dtype {
        DType::Q4_0 => format!("{} * (f32({nibble}) - 8.0)", of_block(1, 2, 0)),
        DType::Q4_1 => {
            format!("{} * f32({nibble}) + {}", of_block(1, 4, 0), of_block(1, 4, 2))
        }
        DType::Q5_0 => {
            format!("{} * (f32({nibble} | ({} << 4u)) - 16.0)", of_block(2, 2, 0), bit(1))
        }
        DType::Q5_1 => format!(
            "{} * f32({nibble} | ({} << 4u)) + {}",
            of_block(2, 4, 0),
            bit(1),
            of_block(2, 4, 2)
        ),
        DType::Q8_0 => format!(
            "{} * signed_at(row, select({}u, {}u, e % 32u >= 16u) + 16u * (e / 32u) + e % 16u)",
            of_block(2, 2, 0),
            p(0),
            p(1)
        ),
        DType::Q2K => {
            let s = format!("byte_at(row, {}u + e / 16u)", p(1));
            format!(
                "({} * f32({s} & 15u)) * f32({}) - {} * f32({s} >> 4u)",
                of_super(2, 4, 0),
                pair(0),
                of_super(2, 4, 2)
            )
        }
        DType::Q3K => format!(
            "({} * {}) * (f32({} | ({} << 2u)) - 4.0)",
            of_super(3, 2, 0),
            signed(2),
            pair(0),
            bit(1)
        ),
        DType::Q4K => format!("scaled(row, {}u, e, {nibble})", p(1)),
        DType::Q5K => format!("scaled(row, {}u, e, {nibble} | ({} << 4u))", p(2), bit(1)),
        _ => format!(
            "({} * {}) * (f32({nibble} | ({} << 4u)) - 32.0)",
            of_super(3, 2, 0),
            signed(2),
            pair(1)
        ),
    };
    format!("{HELPERS}fn element(row: u32, e: u32) -> f32 {{ return {value}; }}\n")
}

/// Parts of a row; places are bytes from its beginning.
const HELPERS: &str = "\
fn byte_at(row: u32, at: u32) -> u32 { return (word(row, at) >> ((at & 3u) * 8u)) & 255u; }
fn signed_at(row: u32, at: u32) -> f32 { return f32(bitcast<i32>(byte_at(row, at) << 24u) >> 24u); }
fn half_at(row: u32, at: u32) -> f32 {
    return unpack2x16float((word(row, at) >> ((at & 2u) * 8u)) & 65535u).x;
}
fn nibble(row: u32, plane: u32, e: u32) -> u32 {
    return (byte_at(row, plane + 16u * (e / 32u) + e % 16u) >> (4u * (e % 32u / 16u))) & 15u;
}
fn bit(row: u32, plane: u32, e: u32) -> u32 {
    let i = e % 32u;
    return (word(row, plane + 4u * (e / 32u)) >> (8u * (i % 4u) + i / 4u)) & 1u;
}
fn pair(row: u32, plane: u32, e: u32) -> u32 {
    let i = e % 16u;
    return (word(row, plane + 4u * (e / 16u)) >> (8u * (i % 4u) + 2u * (i / 4u))) & 3u;
}
fn scaled(row: u32, plane: u32, e: u32, code: u32) -> f32 {
    let s = plane + 16u * (e / 256u);
    let j = 4u * (e / 32u % 8u);
    let high = word(row, s + 12u) >> j;
    let scale = ((word(row, s + 4u) >> j) & 15u) | ((high & 3u) << 4u);
    let least = ((word(row, s + 8u) >> j) & 15u) | (((high >> 2u) & 3u) << 4u);
    return (half_at(row, s) * f32(scale)) * f32(code) - half_at(row, s + 2u) * f32(least);
}
";
