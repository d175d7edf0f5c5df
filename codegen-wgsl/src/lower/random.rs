//! Random bits: one block of Threefry-2x32 (Salmon et al. 2011) gives two words.

use aether_ir::Dim;

use super::build::{Build, WORKGROUP};
use super::{Lower, Site};
use crate::error::CompileError;

const THREEFRY: &str = "\
fn threefry(key: vec2<u32>, counter: vec2<u32>) -> vec2<u32> {
    var turns = array<u32, 8>(13u, 15u, 26u, 6u, 17u, 29u, 16u, 24u);
    var keys = array<u32, 3>(key.x, key.y, 0x1bd11bdau ^ key.x ^ key.y);
    var x = counter + key;
    for (var round = 0u; round < 20u; round++) {
        x.x = x.x + x.y;
        let turn = turns[round % 8u];
        x.y = (x.y << turn) | (x.y >> (32u - turn));
        x.y = x.y ^ x.x;
        if round % 4u == 3u {
            let k = round / 4u + 1u;
            x.x = x.x + keys[k % 3u];
            x.y = x.y + keys[(k + 1u) % 3u] + k;
        }
    }
    return x;
}
";

/// Bits, and the state after them.
pub fn lower(lower: &mut Lower, site: &Site) -> Result<(), CompileError> {
    let (state, bits, next) = (&site.inputs[0], &site.outputs[0], &site.outputs[1]);
    let mut build = Build::new("rng_bits");
    build.globals.push_str(THREEFRY);
    let (from, to, after) = (build.read(state), build.write(bits), build.write(next));
    let count = lower.dim(&bits.numel());
    build.line(format!("let count = {count};"));
    build.line("let blocks = (count + 1u) / 2u;");
    build.line(format!("let key = vec2<u32>({from}[0], {from}[1]);"));
    build.line(format!("let start = vec2<u32>({from}[2], {from}[3]);"));
    build.line("let n = select(unit, blocks, unit >= blocks);");
    build.line("let low = start.y + n;");
    build.line("let high = start.x + select(0u, 1u, low < start.y);");
    build.line("if unit == blocks {");
    build.line(format!(
        "{after}[0] = key.x; {after}[1] = key.y; {after}[2] = high; {after}[3] = low;"
    ));
    build.line("}");
    build.line("if unit >= blocks { return; }");
    build.line("let block = threefry(key, vec2<u32>(high, low));");
    build.line(format!("{to}[unit * 2u] = block.x;"));
    build.line(format!("if unit * 2u + 1u < count {{ {to}[unit * 2u + 1u] = block.y; }}"));
    // One invocation more than there are blocks: it writes the state.
    let units = &bits.numel() + &Dim::new(3);
    build.finish(lower, site, units, WORKGROUP * 2)
}
