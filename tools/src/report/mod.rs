//! `aetherc report`: one self-contained page about a module and what the compiler made of it.
//!
//! The page is a single HTML file: styles, a few lines of script and pictures are in it, so it
//! opens without network and can be sent along. The same module and target give the same bytes.
//! Nothing in it is measured; costs are the target's own estimates, by which passes decide.

mod costs;
mod fusion;
mod graph;
mod html;
mod memory;

use std::fmt::Write as _;

use aether_codegen_cpu::CpuTarget;
use aether_ir::interp::ConstSource;
use aether_ir::plan::MemoryPlan;
use aether_ir::text::print_module;
use aether_ir::{ConstData, Module};
use aether_passes::{PassCtx, Pipeline, StepReport, cost};

use self::costs::Costs;
use self::html::{Cell, bytes, count, escape, seconds};

/// Most bytes of a module's text that the page shows.
const MAX_TEXT: usize = 200_000;

/// Most constants that are listed.
const MAX_CONSTS: usize = 2000;

/// What a page is about.
pub struct Report<'a> {
    /// What the reader knows the module by: the file's name.
    pub name: &'a str,
    pub module: &'a Module,
    pub pipeline: &'a Pipeline,
    pub target: CpuTarget,
    /// Reads constants, for the passes that fold them.
    pub consts: Option<&'a dyn ConstSource>,
}

/// The page.
///
/// # Errors
/// When a pass fails or the module cannot be planned.
pub fn page(report: &Report) -> anyhow::Result<String> {
    let mut ctx = PassCtx::new(&report.target);
    ctx.consts = report.consts;
    let mut after = report.module.clone();
    let steps = report.pipeline.run(&mut after, &ctx, &mut ())?;
    let plan = aether_passes::plan(&after, &report.target)?;
    aether_passes::plan_check::check(&after, &plan, &report.target)?;
    let page = Page {
        report,
        ctx: &ctx,
        before: report.module,
        after: &after,
        steps: &steps,
        plan: &plan,
    };
    Ok(page.html())
}

struct Page<'a> {
    report: &'a Report<'a>,
    ctx: &'a PassCtx<'a>,
    before: &'a Module,
    after: &'a Module,
    steps: &'a [StepReport],
    plan: &'a MemoryPlan,
}

/// Id, heading and content of a part of the page.
type Section = (&'static str, &'static str, String);

impl Page<'_> {
    fn html(&self) -> String {
        let sections: Vec<Section> = vec![
            ("passes", "Passes", self.passes()),
            ("fusion", "Fusion", self.fusion()),
            ("costs", "Cost per op", self.costs()),
            ("graphs", "Graphs", self.graphs()),
            ("memory", "Memory plan", self.memory()),
            ("constants", "Constants", self.constants()),
            ("symbols", "Symbols", self.symbols()),
            ("text", "Text", self.text()),
        ];
        let mut out =
            String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
        let _ = write!(
            out,
            "<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <title>{} · Aether report</title>\n<style>\n{}</style>\n</head>\n<body>\n\
             <header><h1>@{}</h1><p>{} · {} · {} {}</p>\
             <button type=\"button\" id=\"theme\">light / dark</button></header>\n",
            escape(self.report.name),
            include_str!("style.css"),
            escape(&self.before.name),
            escape(self.report.name),
            escape(self.report.target.isa.name()),
            self.report.target.threads,
            if self.report.target.threads == 1 { "thread" } else { "threads" },
        );
        out.push_str("<nav><div>");
        for (id, heading, _) in &sections {
            let _ = write!(out, "<a href=\"#{id}\">{heading}</a>");
        }
        out.push_str("</div></nav>\n<main>\n");
        out.push_str(&self.cards());
        for (id, heading, content) in &sections {
            let _ = write!(out, "<section id=\"{id}\">\n<h2>{heading}</h2>\n{content}</section>\n");
        }
        let _ = write!(
            out,
            "</main>\n<footer><main>Aether {}. Times are the target's estimates, with every symbol \
             at its least size; nothing here was measured.</main></footer>\n<script>\n{}</script>\n\
             </body>\n</html>\n",
            env!("CARGO_PKG_VERSION"),
            include_str!("theme.js")
        );
        out
    }

    fn cards(&self) -> String {
        let (before, after) =
            (Costs::of(self.before, self.ctx).total, Costs::of(self.after, self.ctx).total);
        let card = |name: &str, was: f64, is: f64, show: &dyn Fn(f64) -> String| {
            let (class, change) = match was {
                w if w == is => ("", "as before".to_owned()),
                0.0 => ("", "nothing before".to_owned()),
                w => {
                    let percent = (is / w - 1.0) * 100.0;
                    let class = if percent < 0.0 { " class=\"better\"" } else { "" };
                    (class, format!("{percent:+.1} % of {}", show(w)))
                }
            };
            format!(
                "<div class=\"card\"><span>{name}</span><b>{}</b><br><small{class}>{change}</small></div>\n",
                show(is)
            )
        };
        let mut out = String::from("<div class=\"cards\">\n");
        out.push_str(&card("instructions run", before.runs as f64, after.runs as f64, &count));
        out.push_str(&card("bytes moved", before.cost.bytes, after.cost.bytes, &bytes));
        out.push_str(&card("arithmetic", before.cost.flops, after.cost.flops, &|n| {
            format!("{} flops", count(n))
        }));
        out.push_str(&card("launches", before.cost.launches, after.cost.launches, &count));
        out.push_str(&card("estimated time", before.seconds, after.seconds, &seconds));
        out.push_str("</div>\n");
        out
    }

    fn passes(&self) -> String {
        let rows: Vec<Vec<Cell>> = self
            .steps
            .iter()
            .map(|step| {
                let counters: Vec<String> =
                    step.stats.counters.iter().map(|(name, n)| format!("{name} {n}")).collect();
                vec![
                    Cell::Code(step.pass.to_owned()),
                    Cell::Number(step.insts.0.to_string()),
                    Cell::Number(step.insts.1.to_string()),
                    Cell::Text(if counters.is_empty() {
                        "—".to_owned()
                    } else {
                        counters.join(", ")
                    }),
                ]
            })
            .collect();
        let lead = format!(
            "<p class=\"lead\">The pipeline <code>{}</code>, step by step: instructions before and \
             after, and what was done.</p>\n",
            escape(&self.report.pipeline.to_string())
        );
        lead + &html::table(&["pass", "before", "after", "done"], &rows)
    }

    fn fusion(&self) -> String {
        match fusion::table(self.after, self.ctx) {
            table if table.is_empty() => "<p class=\"lead\">Nothing was fused.</p>\n".to_owned(),
            table => format!(
                "<p class=\"lead\">Each fused op beside its parts, priced by the target: what the \
                 parts would move and launch, and what one kernel does.</p>\n{table}"
            ),
        }
    }

    fn costs(&self) -> String {
        let mut out = String::from(
            "<p class=\"lead\">Over one run, calls counted as often as they are made.</p>\n",
        );
        for (when, module) in [("after the passes", self.after), ("before", self.before)] {
            let _ = write!(out, "<h3>{when}</h3>\n{}", Costs::of(module, self.ctx).table());
        }
        out
    }

    fn graphs(&self) -> String {
        let mut out = String::from(
            "<p class=\"lead\">Left as given, right as it runs. Constants are in the tips of the \
             instructions that read them; dashed edges give their operand away.</p>\n\
             <p class=\"legend\">",
        );
        for class in ["product", "fused", "attention", "reduction", "pointwise", "movement", "call"]
        {
            let _ = write!(out, "<span><i style=\"background:var(--{class})\"></i>{class}</span>");
        }
        out.push_str("</p>\n");
        let names =
            self.before.funcs.keys().chain(
                self.after.funcs.keys().filter(|name| !self.before.funcs.contains_key(*name)),
            );
        for (i, name) in names.enumerate() {
            let counted = |m: &Module| m.funcs.get(name).map_or(0, |f| f.body.len());
            let _ = writeln!(
                out,
                "<details{}><summary>@{}<small>{} → {} instructions</small></summary><div class=\"two\">",
                if i == 0 { " open" } else { "" },
                escape(name),
                counted(self.before),
                counted(self.after)
            );
            for (when, module) in [("before", self.before), ("after", self.after)] {
                let _ = write!(out, "<div><h4>{when}</h4><div class=\"pane\">");
                match module.funcs.get(name) {
                    None => out.push_str("<p class=\"note\">not there</p>"),
                    Some(func) => {
                        let cost_of = |inst: &aether_ir::Inst| {
                            let cost = cost::of_inst(module, self.ctx, func, inst);
                            (cost, self.ctx.target.seconds(&cost))
                        };
                        out.push_str(&graph::svg(func, &cost_of));
                    }
                }
                out.push_str("</div></div>\n");
            }
            out.push_str("</div></details>\n");
        }
        out
    }

    fn memory(&self) -> String {
        let mut out = String::from(
            "<p class=\"lead\">The frame of each function over time: a box is a range of bytes from \
             the instruction that writes it to the last that reads it. The dashed red line is the \
             greatest sum of bytes alive at once; no plan can be lower. Grey boxes are scratch, or \
             the frames of called functions.</p>\n",
        );
        let mut any = false;
        for (name, plan) in &self.plan.funcs {
            let Some(func) = self.after.funcs.get(name) else { continue };
            let picture = memory::svg(func, plan);
            if !picture.is_empty() {
                any = true;
                let _ = write!(out, "<h3><code>@{}</code></h3>\n{picture}", escape(name));
            }
        }
        if !any {
            out.push_str("<p class=\"note\">No function needs a frame.</p>\n");
        }
        out
    }

    fn constants(&self) -> String {
        let consts = &self.after.consts;
        if consts.is_empty() {
            return "<p class=\"lead\">The module has none.</p>\n".to_owned();
        }
        let size = |c: &aether_ir::Const| match &c.data {
            ConstData::File { bytes, .. } => *bytes as f64,
            ConstData::Dense(bytes) => bytes.len() as f64,
        };
        let rows: Vec<Vec<Cell>> = consts
            .iter()
            .take(MAX_CONSTS)
            .map(|(name, c)| {
                let place = match &c.data {
                    ConstData::Dense(_) => "in the module".to_owned(),
                    ConstData::File { path, offset, .. } => {
                        let file = std::path::Path::new(path).file_name();
                        let file = file.map_or(path.as_str().into(), |f| f.to_string_lossy());
                        format!("{file} at {offset}")
                    }
                };
                vec![
                    Cell::Code(format!("@{name}")),
                    Cell::Code(c.ty.to_string()),
                    Cell::Number(bytes(size(c))),
                    Cell::Text(place),
                ]
            })
            .collect();
        let total: f64 = consts.values().map(size).sum();
        let open = if consts.len() <= 16 { " open" } else { "" };
        let more = consts.len().saturating_sub(MAX_CONSTS);
        let mut out = format!(
            "<details{open}><summary>{} constants<small>{}</small></summary>{}</details>\n",
            consts.len(),
            bytes(total),
            html::table(&["name", "type", "size", "place"], &rows)
        );
        if more > 0 {
            let _ = writeln!(out, "<p class=\"note\">{more} further constants are not listed.</p>");
        }
        out
    }

    fn symbols(&self) -> String {
        if self.after.symbols.is_empty() {
            return "<p class=\"lead\">Every dimension is a number.</p>\n".to_owned();
        }
        let rows: Vec<Vec<Cell>> = self
            .after
            .symbols
            .iter()
            .map(|(name, range)| {
                vec![
                    Cell::Code(name.to_string()),
                    Cell::Number(range.min.to_string()),
                    Cell::Number(range.max.to_string()),
                    Cell::Number(self.ctx.size_of(self.after, name).to_string()),
                ]
            })
            .collect();
        html::table(&["symbol", "least", "greatest", "size in the estimates"], &rows)
    }

    fn text(&self) -> String {
        let mut out = String::new();
        for (when, module) in [("before", self.before), ("after", self.after)] {
            let text = print_module(module);
            let mut end = text.len().min(MAX_TEXT);
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            let cut = if end < text.len() { "\n…" } else { "" };
            let _ = writeln!(
                out,
                "<details><summary>{when}<small>{} lines</small></summary><pre>{}{cut}</pre></details>",
                text.lines().count(),
                escape(&text[..end])
            );
        }
        out
    }
}
