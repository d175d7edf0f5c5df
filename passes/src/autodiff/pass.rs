//! Differentiation as a step of a pipeline: `autodiff{func=loss,wrt=x|w}`.

use aether_ir::Module;

use super::{gradient_of, vjp};
use crate::pass::{OptionKind, OptionSpec, Pass, PassCtx, PassError, PassStats};

/// The pass. Running it again with the same options finds its functions there and adds nothing.
pub struct AutodiffPass;

static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "func",
        kind: OptionKind::Name,
        required: true,
        doc: "the function that is differentiated",
    },
    OptionSpec {
        name: "wrt",
        kind: OptionKind::Names,
        required: true,
        doc: "the parameters it differentiates with respect to",
    },
    OptionSpec {
        name: "result",
        kind: OptionKind::Number,
        required: false,
        doc: "the result that is differentiated, a scalar (default 0)",
    },
    OptionSpec {
        name: "form",
        kind: OptionKind::Name,
        required: false,
        doc: "`grad` (default): @func.grad, of one result; `vjp`: @func.vjp, which takes the \
              gradients of all results",
    },
];

impl Pass for AutodiffPass {
    fn name(&self) -> &'static str {
        "autodiff"
    }

    fn doc(&self) -> &'static str {
        "Adds the gradient of a function with respect to some of its parameters."
    }

    fn options(&self) -> &'static [OptionSpec] {
        OPTIONS
    }

    fn run(&self, module: &mut Module, ctx: &PassCtx) -> Result<PassStats, PassError> {
        let func = ctx.options.name("func").unwrap_or_default();
        let wrt: Vec<&str> = ctx.options.names("wrt").iter().map(String::as_str).collect();
        let before = module.funcs.len();
        let done = match ctx.options.name("form").unwrap_or("grad") {
            "grad" => {
                let result = ctx.options.number("result").unwrap_or(0);
                gradient_of(module, func, usize::try_from(result).unwrap_or(usize::MAX), &wrt)
            }
            "vjp" => vjp(module, func, &wrt),
            other => {
                let message = format!("there is no form `{other}`; there are grad, vjp");
                return Err(PassError::Module(message));
            }
        };
        done?;
        let mut stats = PassStats::default();
        stats.count("functions", module.funcs.len() - before);
        Ok(stats)
    }
}
