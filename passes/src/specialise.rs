//! A module for given values of its symbols.
//!
//! Code for one token is other code than code for a prompt. A module with symbols serves both; one
//! that is specialised has numbers in their place, by which fusion and kernels choose.

use aether_ir::{Dim, Module, Op};

/// Replaces symbols by numbers. Values outside of a symbol's range, and names that the module does
/// not declare, are left alone.
pub fn specialise(module: &mut Module, values: &[(&str, u64)]) {
    for &(name, value) in values {
        let range = module.symbols.get(name);
        if !range.is_some_and(|range| (range.min..=range.max).contains(&value)) {
            continue;
        }
        module.symbols.shift_remove(name);
        let replace = |dims: &mut Vec<Dim>| dims.iter_mut().for_each(|d| *d = d.with(name, value));
        for func in module.funcs.values_mut() {
            for inst in func.body.iter_mut().filter(|inst| inst.op == Op::Slice) {
                // A whole axis is written -1 only while its length is no number.
                let of = &func.values[inst.operands[0].value.index()].ty.shape;
                let Some(limits) = inst.attrs.ints("limits") else { continue };
                let mut limits = limits.to_vec();
                for (limit, d) in limits.iter_mut().zip(&of.0) {
                    let length = d.with(name, value).as_const();
                    if let (None, Some(n), -1) = (d.as_const(), length, *limit) {
                        *limit = n as i64;
                    }
                }
                inst.attrs = std::mem::take(&mut inst.attrs).with("limits", limits);
            }
            func.values.iter_mut().for_each(|v| replace(&mut v.ty.shape.0));
            func.result_types.iter_mut().for_each(|ty| replace(&mut ty.shape.0));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_specialised_module_verifies() {
        let text = "module @m {
  sym s in 1..=8
  sym t in 1..=8
  func @main(%x: tensor<[s]x[t]x4xf32>) -> tensor<[s]x[t]x2xf32> {
    %y = slice %x {starts = [0, 0, 1], limits = [-1, -1, 3]} : tensor<[s]x[t]x2xf32>
    return %y
  }
}
";
        let mut module = aether_ir::parse_and_verify(text).unwrap();
        specialise(&mut module, &[("s", 1), ("t", 9), ("u", 1)]);
        aether_ir::verify(&module).unwrap();
        let text = aether_ir::text::print_module(&module);
        assert!(text.contains("limits = [1, -1, 3]} : tensor<1x[t]x2xf32>"), "{text}");
        assert!(!text.contains("sym s"), "{text}");
    }
}
