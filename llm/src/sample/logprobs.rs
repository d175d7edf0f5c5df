//! Natural logarithms of probabilities, from the logits as the model gave them.

use super::SampleError;

/// A token and the natural logarithm of its probability.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TokenLogprob {
    pub token: u32,
    pub logprob: f32,
}

/// The `k` most probable tokens in falling order, the lower id first among equals.
///
/// # Errors
/// When a logit is not a number, or the greatest is infinite.
pub fn logprobs(logits: &[f32], k: usize) -> Result<Vec<TokenLogprob>, SampleError> {
    let mut out = Vec::with_capacity(k.min(logits.len()) + 1);
    logprobs_into(logits, k, &mut out)?;
    Ok(out)
}

/// As [`logprobs`], into a vector that is emptied first and allocates only to grow.
///
/// # Errors
/// As [`logprobs`].
pub fn logprobs_into(
    logits: &[f32],
    k: usize,
    out: &mut Vec<TokenLogprob>,
) -> Result<(), SampleError> {
    out.clear();
    let norm = log_sum_exp(logits)?;
    let k = k.min(logits.len());
    if k == 0 {
        return Ok(());
    }
    // `out` stays sorted; most logits are below its last and cost one comparison.
    for (token, &logit) in logits.iter().enumerate() {
        if out.len() == k && out[k - 1].logprob >= logit {
            continue;
        }
        let at = out.partition_point(|t| t.logprob >= logit);
        out.truncate(k - 1);
        out.insert(at, TokenLogprob { token: token as u32, logprob: logit });
    }
    for t in out {
        t.logprob = (f64::from(t.logprob) - norm) as f32;
    }
    Ok(())
}

/// ln Σ exp(logit): what is taken off a logit to get its log-probability.
///
/// # Errors
/// When a logit is not a number, or the greatest is infinite.
pub fn log_sum_exp(logits: &[f32]) -> Result<f64, SampleError> {
    let max = f64::from(logits[super::argmax(logits)? as usize]);
    let sum: f64 = logits.iter().map(|&l| (f64::from(l) - max).exp()).sum();
    Ok(max + sum.ln())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn best_tokens_in_order() {
        let logits = [1.0, 3.0, -f32::INFINITY, 3.0, 2.0];
        // ln(e^1 + 2 e^3 + e^2) = 3.909437
        let norm = (1f64.exp() + 2.0 * 3f64.exp() + 2f64.exp()).ln() as f32;
        let table: [(usize, &[(u32, f32)]); 4] = [
            (0, &[]),
            (1, &[(1, 3.0)]),
            (3, &[(1, 3.0), (3, 3.0), (4, 2.0)]),
            (9, &[(1, 3.0), (3, 3.0), (4, 2.0), (0, 1.0), (2, f32::NEG_INFINITY)]),
        ];
        for (k, want) in table {
            let got = logprobs(&logits, k).unwrap();
            assert_eq!(got.len(), want.len());
            for (g, (token, logit)) in got.iter().zip(want) {
                assert_eq!(g.token, *token, "{k}");
                let want = logit - norm;
                assert!(g.logprob == want || (g.logprob - want).abs() < 1e-6, "{g:?} {want}");
            }
        }
    }

    #[test]
    fn agrees_with_a_full_sort_and_sums_to_one() {
        let mut rng = super::super::Rng::new(1);
        let logits: Vec<f32> = (0..1000).map(|_| (rng.next_f64() * 20.0).floor() as f32).collect();
        let all = logprobs(&logits, 1000).unwrap();
        let sum: f64 = all.iter().map(|t| f64::from(t.logprob).exp()).sum();
        assert!((sum - 1.0).abs() < 1e-4, "{sum}");
        let mut order: Vec<u32> = (0..1000).collect();
        order.sort_by(|a, b| logits[*b as usize].total_cmp(&logits[*a as usize]));
        assert_eq!(all.iter().map(|t| t.token).collect::<Vec<_>>(), order);
        assert_eq!(logprobs(&logits, 17).unwrap(), all[..17]);
    }

    #[test]
    fn broken_logits_are_errors() {
        assert_eq!(logprobs(&[], 1), Err(SampleError::Empty));
        assert_eq!(logprobs(&[0.0, f32::NAN], 1), Err(SampleError::NotANumber { token: 1 }));
        assert_eq!(logprobs(&[f32::INFINITY], 1), Err(SampleError::NotFinite(f32::INFINITY)));
    }
}
