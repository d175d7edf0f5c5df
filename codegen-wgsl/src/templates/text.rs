//! Putting a shader's text together: bindings, dimensions, activations.

use std::fmt::Write as _;

use aether_ir::{Dim, Symbol};
use indexmap::IndexSet;

use super::Operand;
use crate::kernel::{Access, Bind, Groups, Launch, Needs, SYMBOLS, Shader};

/// The element type that a binding is declared with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Elements {
    F32,
    /// Vectors of four f32.
    F32x4,
    U32,
    U32x4,
    I32,
    /// Vectors of four f16.
    F16x4,
    /// u32 that several invocations write.
    Atomic,
}

impl Elements {
    /// f32 in vectors of four where `len`, a row's length, allows it.
    pub fn f32(len: usize) -> Elements {
        if len.is_multiple_of(4) { Elements::F32x4 } else { Elements::F32 }
    }

    fn wgsl(self) -> &'static str {
        match self {
            Elements::F32 => "f32",
            Elements::F32x4 => "vec4<f32>",
            Elements::U32 => "u32",
            Elements::U32x4 => "vec4<u32>",
            Elements::I32 => "i32",
            Elements::F16x4 => "vec4<f16>",
            Elements::Atomic => "atomic<u32>",
        }
    }
}

/// A binding's name and how it is declared.
#[derive(Clone, Debug)]
pub struct Var {
    pub name: String,
    pub elements: Elements,
}

impl Var {
    /// The scalar at an index.
    pub fn at(&self, index: &str) -> String {
        match self.elements {
            Elements::F32x4 | Elements::U32x4 | Elements::F16x4 => {
                format!("{}[({index}) / 4u][({index}) % 4u]", self.name)
            }
            _ => format!("{}[{index}]", self.name),
        }
    }

    /// The four scalars from four times an index on.
    pub fn quad(&self, index: &str) -> String {
        match self.elements {
            Elements::F32x4 | Elements::U32x4 | Elements::F16x4 => {
                format!("{}[{index}]", self.name)
            }
            _ => {
                let part = |i| format!("{}[4u * ({index}) + {i}u]", self.name);
                format!("vec4({}, {}, {}, {})", part(0), part(1), part(2), part(3))
            }
        }
    }
}

/// A shader that is being written.
pub struct Source {
    name: &'static str,
    pub needs: Needs,
    declarations: String,
    accesses: Vec<Access>,
    binds: Vec<Bind>,
    vars: Vec<Var>,
    /// Functions, constants, workgroup memory and the entry.
    pub body: String,
}

impl Source {
    /// An empty shader; `name` is for labels.
    pub fn new(name: &'static str) -> Source {
        Source {
            name,
            needs: Needs::default(),
            declarations: String::new(),
            accesses: Vec::new(),
            binds: Vec::new(),
            vars: Vec::new(),
            body: String::new(),
        }
    }

    /// Declares a binding, or finds the one that has the same range: a range is bound once.
    pub fn bind(&mut self, operand: Operand, name: &str, elements: Elements) -> Var {
        if let Some(i) = self.binds.iter().position(|b| *b == operand.bind) {
            return self.vars[i].clone();
        }
        let access = match operand.access {
            Access::Read => "read",
            Access::ReadWrite => "read_write",
        };
        let number = self.binds.len() + 1;
        let _ = writeln!(
            self.declarations,
            "@group(0) @binding({number}) var<storage, {access}> {name}: array<{}>;",
            elements.wgsl()
        );
        let var = Var { name: name.to_owned(), elements };
        self.accesses.push(operand.access);
        self.binds.push(operand.bind);
        self.vars.push(var.clone());
        var
    }

    /// Declares a result of the instruction.
    pub fn result(&mut self, i: usize, name: &str, elements: Elements) -> Var {
        self.bind(Operand { bind: Bind::Result(i), access: Access::ReadWrite }, name, elements)
    }

    /// Declares a range of the instruction's scratch.
    pub fn scratch(&mut self, offset: u64, bytes: u64, name: &str, elements: Elements) -> Var {
        let bind = Bind::Scratch { offset, bytes };
        self.bind(Operand { bind, access: Access::ReadWrite }, name, elements)
    }

    /// Appends lines to the body.
    pub fn push(&mut self, text: &str) {
        self.body.push_str(text);
        if !text.ends_with('\n') {
            self.body.push('\n');
        }
    }

    /// The dispatch of the finished shader.
    pub fn launch(self, groups: [Groups; 3]) -> Launch {
        let mut wgsl = String::new();
        if self.needs.f16 || self.needs.cooperative_matrix {
            wgsl.push_str("enable f16;\n");
        }
        if self.needs.cooperative_matrix {
            wgsl.push_str("enable wgpu_cooperative_matrix;\n");
        }
        if self.body.contains("symbols[") {
            wgsl.push_str(SYMBOLS);
        }
        wgsl.push_str(&self.declarations);
        wgsl.push_str(&self.body);
        let shader = Shader {
            name: self.name,
            wgsl: wgsl.into(),
            needs: self.needs,
            bindings: self.accesses,
            in_bounds: true,
        };
        Launch { shader, binds: self.binds, groups }
    }
}

/// A dimension as a `u32` expression over the uniform of symbols.
pub fn dim_text(dim: &Dim, symbols: &IndexSet<Symbol>) -> String {
    if let Some(n) = dim.as_const() {
        return format!("{n}u");
    }
    let mut text = String::from("0u");
    for (factors, coefficient) in dim.monomials() {
        // Differences wrap on the way; the whole is not negative.
        let sign = if coefficient < 0 { "-" } else { "+" };
        let _ = write!(text, " {sign} {}u", coefficient.unsigned_abs());
        for factor in &factors {
            // A symbol that the module does not declare has no value: the verifier refuses it.
            let i = symbols.get_index_of(factor).unwrap_or_default();
            let _ = write!(text, " * symbols[{}].{}", i / 4, ["x", "y", "z", "w"][i % 4]);
        }
    }
    format!("({text})")
}

/// An activation as a WGSL function `act(x: f32) -> f32`. NaN stays NaN and large arguments do
/// not overflow.
pub fn activation(name: &str) -> &'static str {
    match name {
        "relu" => "fn act(x: f32) -> f32 { return select(x, 0.0, x < 0.0); }\n",
        "sigmoid" => "fn act(x: f32) -> f32 { return 1.0 / (1.0 + exp(-x)); }\n",
        "tanh" => "fn act(x: f32) -> f32 { return 1.0 - 2.0 / (exp(2.0 * x) + 1.0); }\n",
        "silu" => "fn act(x: f32) -> f32 { return x / (1.0 + exp(-x)); }\n",
        "gelu_tanh" => {
            "fn act(x: f32) -> f32 {
    let u = 0.7978845608028654 * (x + 0.044715 * x * x * x);
    return x - x / (exp(2.0 * u) + 1.0);
}
"
        }
        // The error function by Abramowitz and Stegun 7.1.26, to 1.5e-7.
        "gelu" => {
            "fn act(x: f32) -> f32 {
    let a = abs(x) * 0.7071067811865476;
    let t = 1.0 / (1.0 + 0.3275911 * a);
    let p = t * (0.254829592 + t * (-0.284496736 + t * (1.421413741 + t * (-1.453152027 + t * 1.061405429))));
    let tail = 0.5 * p * exp(-a * a);
    return x * select(1.0 - tail, tail, x < 0.0);
}
"
        }
        _ => "fn act(x: f32) -> f32 { return x; }\n",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dimensions_are_expressions() {
        let symbols: IndexSet<Symbol> =
            ["a", "b", "c", "d", "s"].into_iter().map(Into::into).collect();
        let table = [
            ("7", "7u"),
            ("s", "(0u + 1u * symbols[1].x)"),
            ("3*s+1", "(0u + 1u + 3u * symbols[1].x)"),
            ("a-b", "(0u + 1u * symbols[0].x - 1u * symbols[0].y)"),
        ];
        for (text, want) in table {
            assert_eq!(dim_text(&text.parse().unwrap(), &symbols), want, "{text}");
        }
    }
}
