//! Functions as graphs in Graphviz' language.

use std::fmt::Write;

use aether_ir::{Func, Module, ValueId};

/// Every function as a cluster of one graph.
pub fn module(module: &Module) -> String {
    let mut text =
        format!("digraph {} {{\n  node [shape=box, fontname=monospace]\n", quote(&module.name));
    for (i, func) in module.funcs.values().enumerate() {
        // Writing to a string cannot fail.
        let _ = writeln!(
            text,
            "  subgraph cluster_{i} {{\n    label={}",
            quote(&format!("@{}", func.name))
        );
        function(func, i, &mut text);
        text.push_str("  }\n");
    }
    text.push_str("}\n");
    text
}

fn function(func: &Func, index: usize, text: &mut String) {
    let definitions = func.definitions();
    let node = |v: ValueId| match definitions[v.index()] {
        Some(inst) => format!("f{index}_i{inst}"),
        None => format!("f{index}_p{}", v.0),
    };
    for &param in &func.params {
        let name = func.values[param.index()].name.as_deref().unwrap_or("");
        let label = format!("%{name}\n{}", func.ty(param));
        let _ = writeln!(text, "    {} [shape=ellipse, label={}]", node(param), quote(&label));
    }
    for (i, inst) in func.body.iter().enumerate() {
        let symbol = inst.symbol.as_ref().map_or(String::new(), |s| format!(" @{s}"));
        let types: Vec<String> = inst.results.iter().map(|&r| func.ty(r).to_string()).collect();
        let label = format!("{}{symbol}\n{}", inst.op, types.join("\n"));
        let _ = writeln!(text, "    f{index}_i{i} [label={}]", quote(&label));
        for operand in &inst.operands {
            let style = if operand.donated { " [style=dashed]" } else { "" };
            let _ = writeln!(text, "    {} -> f{index}_i{i}{style}", node(operand.value));
        }
    }
    let _ = writeln!(text, "    f{index}_return [label=return]");
    for &value in &func.returns {
        let _ = writeln!(text, "    {} -> f{index}_return", node(value));
    }
}

fn quote(text: &str) -> String {
    let escaped = text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
    format!("\"{escaped}\"")
}
