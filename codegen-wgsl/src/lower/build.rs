//! The text of one shader, put together: bindings, functions, body.

use std::fmt::Write;
use std::sync::Arc;

use aether_ir::{DType, Dim};

use super::text;
use super::{Lower, STATUS, Site, View};
use crate::error::CompileError;
use crate::kernel::{Access, Groups, Needs, SYMBOLS, Shader};
use crate::program::{Binding, Buffer, Step};

/// Invocations of a workgroup of generated shaders.
pub const WORKGROUP: u32 = 256;

/// How a binding's words are seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Words {
    /// `array<u32>`.
    Single,
    /// `array<vec4<u32>>`.
    Four,
    /// `array<atomic<u32>>`: elements smaller than a word are written by different invocations.
    Atomic,
}

struct Bound {
    binding: Binding,
    access: Access,
    words: Words,
}

/// A shader in the making.
pub struct Build {
    name: &'static str,
    bound: Vec<Bound>,
    status: bool,
    shared: usize,
    /// Functions and variables before the entry.
    pub globals: String,
    /// Statements of the entry; `unit` is the invocation's number, `group` the workgroup's,
    /// `lane` its place in the workgroup.
    pub body: String,
}

impl Build {
    pub fn new(name: &'static str) -> Build {
        Build {
            name,
            bound: Vec::new(),
            status: false,
            shared: 0,
            globals: String::new(),
            body: String::new(),
        }
    }

    /// Binds a value and gives the name of its buffer. The same range is bound once.
    pub fn bind(&mut self, view: &View, words: Words) -> String {
        let access = match view.binding.buffer {
            Buffer::Constant(_) => Access::Read,
            _ => Access::ReadWrite,
        };
        let found = self.bound.iter().position(|b| b.binding == view.binding && b.words == words);
        let index = found.unwrap_or_else(|| {
            self.bound.push(Bound { binding: view.binding, access, words });
            self.bound.len() - 1
        });
        format!("b{}", index + 1)
    }

    /// Binds an operand, word by word.
    pub fn read(&mut self, view: &View) -> String {
        self.bind(view, Words::Single)
    }

    /// Binds a result that whole words are written to.
    pub fn write(&mut self, view: &View) -> String {
        self.bind(view, Words::Single)
    }

    /// A statement that writes element `index` of a result with these bits in the low end of a
    /// word, whatever other invocations write. The result is bound by it; an operand in the same
    /// place cannot be read.
    pub fn store(&mut self, view: &View, index: &str, bits: &str) -> String {
        match view.ty.dtype.block_bytes() {
            size @ (1 | 2) => {
                let buffer = self.bind(view, Words::Atomic);
                let (per, mask) = if size == 1 { (4, 0xff) } else { (2, 0xffff) };
                format!(
                    "{{ let at = {index}; let shift = (at % {per}u) * {}u; \
                     atomicAnd(&{buffer}[at / {per}u], ~({mask}u << shift)); \
                     atomicOr(&{buffer}[at / {per}u], ({bits}) << shift); }}",
                    size * 8
                )
            }
            _ => {
                let buffer = self.write(view);
                format!("{buffer}[{index}] = {bits};")
            }
        }
    }

    /// Makes the function `fail(kind, value)` known, which ends the run with an error.
    pub fn can_fail(&mut self) {
        self.status = true;
    }

    /// Statements that join an accumulator of every invocation of the workgroup, all of which come
    /// here; gives the name of what they joined to.
    pub fn across(&mut self, own: &str, kind: &str, join: impl Fn(&str, &str) -> String) -> String {
        let shared = format!("shared{}", self.shared);
        self.shared += 1;
        let _ = writeln!(self.globals, "var<workgroup> {shared}: array<{kind}, {WORKGROUP}>;");
        let joined = join(&format!("{shared}[lane]"), &format!("{shared}[lane + half]"));
        self.line(format!("{shared}[lane] = {own};"));
        self.line("workgroupBarrier();");
        self.line(format!("for (var half = {}u; half > 0u; half >>= 1u) {{", WORKGROUP / 2));
        self.line(format!("if lane < half {{ {shared}[lane] = {joined}; }}"));
        self.line("workgroupBarrier();");
        self.line("}");
        format!("{shared}[0]")
    }

    /// Appends a line to the body.
    pub fn line(&mut self, line: impl AsRef<str>) {
        self.body.push_str("    ");
        self.body.push_str(line.as_ref());
        self.body.push('\n');
    }

    /// Ends the shader and appends its dispatch, `ceil(count / per)` workgroups of
    /// [`WORKGROUP`].
    pub fn finish(
        mut self,
        lower: &mut Lower,
        site: &Site,
        count: Dim,
        per: u32,
    ) -> Result<(), CompileError> {
        let mut wgsl = String::new();
        if self.body.contains("symbols[") || self.globals.contains("symbols[") {
            wgsl.push_str(SYMBOLS);
        }
        if self.status {
            let words = Words::Atomic;
            self.bound.push(Bound { binding: STATUS, access: Access::ReadWrite, words });
        }
        for (i, b) in self.bound.iter().enumerate() {
            let access = match b.access {
                Access::Read => "read",
                Access::ReadWrite => "read_write",
            };
            let element = match b.words {
                Words::Single => "u32",
                Words::Four => "vec4<u32>",
                Words::Atomic => "atomic<u32>",
            };
            let i = i + 1;
            let _ = writeln!(
                wgsl,
                "@group(0) @binding({i}) var<storage, {access}> b{i}: array<{element}>;"
            );
        }
        if self.status {
            let status = self.bound.len();
            let _ = writeln!(
                wgsl,
                "fn fail(kind: u32, value: u32) {{ atomicMax(&b{status}[0], kind); \
                 atomicMax(&b{status}[1], value); }}"
            );
        }
        wgsl.push_str(text::FUNCTIONS);
        wgsl.push_str(&self.globals);
        let _ = write!(
            wgsl,
            "@compute @workgroup_size({WORKGROUP})\n\
             fn main(@builtin(workgroup_id) workgroup: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, \
             @builtin(local_invocation_index) lane: u32) {{\n    \
             let group = workgroup.x + workgroup.y * groups.x;\n    let unit = group * {WORKGROUP}u + lane;\n{}}}\n",
            self.body
        );
        let shader = Shader {
            name: self.name,
            wgsl: Arc::from(wgsl),
            needs: Needs::default(),
            bindings: self.bound.iter().map(|b| b.access).collect(),
            in_bounds: false,
        };
        let bindings = self.bound.iter().map(|b| b.binding).collect();
        let groups = [Groups::of(count, per), Groups::one(), Groups::one()];
        lower.step(site, shader, bindings, groups)
    }
}

/// Words of a buffer that hold one element, for types of 4 and 8 bytes.
pub fn words(dtype: DType) -> usize {
    (dtype.block_bytes() / 4).max(1)
}

impl Lower<'_> {
    /// Appends a dispatch, the shader validated once.
    pub fn step(
        &mut self,
        site: &Site,
        shader: Shader,
        bindings: Vec<Binding>,
        groups: [Groups; 3],
    ) -> Result<(), CompileError> {
        let most = self.adapter.binding_bytes;
        if let Some(b) = bindings.iter().find(|b| b.bytes > most) {
            let (func, op) = (site.func.clone(), site.inst.op);
            return Err(CompileError::Binding { func, op, bytes: b.bytes, most });
        }
        let shader = match self.shaders.get_index_of(&shader) {
            Some(known) => known,
            None => {
                crate::validate::validate(&shader)?;
                self.shaders.insert_full(shader).0
            }
        };
        self.steps.push(Step { shader, bindings, groups, label: site.label.clone() });
        Ok(())
    }
}
