//! Another output head: the best tokens of each row in place of all logits.

use aether_ir::{Attrs, BuildError, FuncBuilder, Module, Op};

use super::MAIN;

/// The module whose `@main` returns for each row the `k` greatest logits in falling order
/// (`[r]xKxf32`) and their tokens (`[r]xKxi32`) in place of all logits; then the caches, of which
/// there are `caches`, and nothing behind them. Equal logits come by token, NaN comes first.
///
/// It is for devices from which all logits are a long way: the greatest are then chosen where they
/// are. Whatever a sampler keeps of the `k` greatest it decides from these as from all.
///
/// # Errors
/// When there is no `@main` that returns so much, or its rows have fewer than `k` logits.
pub fn best_tokens(module: &Module, caches: usize, k: usize) -> Result<Module, BuildError> {
    let mut module = module.clone();
    let missing = || BuildError {
        func: MAIN.into(),
        op: Op::TopK,
        message: format!("expected @{MAIN} to return logits and {caches} caches"),
    };
    let main = module.funcs.get(MAIN).ok_or_else(missing)?.clone();
    let (&logits, kept) = main.returns.split_first().ok_or_else(missing)?;
    let kept = kept.get(..caches).ok_or_else(missing)?.to_vec();
    let mut f = FuncBuilder::resume(main);
    let best = f.op_multi(Op::TopK, &[logits], Attrs::new().with("k", k as i64), &[])?;
    for (value, name) in best.iter().zip(["best_logits", "best_tokens"]) {
        f.name(*value, name);
    }
    let returns: Vec<_> = best.into_iter().chain(kept).collect();
    module.add_func(f.finish(&returns));
    Ok(module)
}
