//! API keys and their rates.

use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use axum::http::{HeaderMap, StatusCode, header};
use sha2::{Digest, Sha256};

use super::error::ApiError;

/// Who may ask, and how often.
pub struct Keys {
    keys: Vec<Key>,
    rates: Rates,
    /// Of all together when there are no keys.
    anonymous: Left,
}

/// What a key may have in a minute.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rates {
    /// Calls.
    pub requests: Option<u32>,
    /// Tokens of prompts and answers.
    pub tokens: Option<u32>,
}

struct Key {
    digest: [u8; 32],
    left: Left,
}

/// What is left to somebody.
struct Left {
    requests: Mutex<Bucket>,
    tokens: Mutex<Bucket>,
}

/// Who asked: the place of the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Caller(Option<usize>);

tokio::task_local! {
    /// Who asks in the task of a request, so that its answer's tokens are taken from what is left to
    /// that key.
    pub(super) static CALLER: Caller;
}

/// A token bucket (as in ATM's generic cell rate): a minute's worth at most, filled evenly.
#[derive(Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl Bucket {
    fn full(per_minute: Option<u32>) -> Mutex<Bucket> {
        let left = f64::from(per_minute.unwrap_or(0));
        Mutex::new(Bucket { left, at: Instant::now() })
    }

    fn fill(&mut self, per_minute: u32, now: Instant) {
        let (most, rate) = (f64::from(per_minute), f64::from(per_minute) / 60.0);
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * rate).min(most);
        self.at = now;
    }

    /// Whether there is one; the seconds until there is when there is none.
    fn check(&mut self, per_minute: u32, now: Instant) -> Result<(), f64> {
        self.fill(per_minute, now);
        match self.left >= 1.0 {
            true => Ok(()),
            false => Err((1.0 - self.left) * 60.0 / f64::from(per_minute)),
        }
    }

    /// Takes one; the seconds until there is one when there is none.
    fn take(&mut self, per_minute: u32, now: Instant) -> Result<(), f64> {
        self.check(per_minute, now).inspect(|()| self.left -= 1.0)
    }
}

/// Equal, in a time that does not depend on where they differ.
fn equal(a: &[u8; 32], b: &[u8; 32]) -> bool {
    let difference = a.iter().zip(b).fold(0, |sum, (a, b)| sum | (a ^ b));
    std::hint::black_box(difference) == 0
}

fn lock(bucket: &Mutex<Bucket>) -> MutexGuard<'_, Bucket> {
    bucket.lock().unwrap_or_else(|broken| broken.into_inner())
}

impl Keys {
    /// These keys, each with these rates; without keys everybody may ask.
    pub fn new(keys: &[String], rates: Rates) -> Keys {
        let left =
            || Left { requests: Bucket::full(rates.requests), tokens: Bucket::full(rates.tokens) };
        let digest = |key: &String| Sha256::digest(key.as_bytes()).into();
        let keys = keys.iter().map(|key| Key { digest: digest(key), left: left() }).collect();
        Keys { keys, rates, anonymous: left() }
    }

    /// Checks the key of a request (`Authorization: Bearer`, or Anthropic's `x-api-key`) and takes
    /// one of its requests.
    ///
    /// Keys are compared by their digests, all of them, so that time tells nothing.
    ///
    /// # Errors
    /// 401 for a missing or wrong key, 429 when a rate is used up.
    pub(super) fn admit(&self, headers: &HeaderMap) -> Result<Caller, ApiError> {
        let caller = match self.keys.is_empty() {
            true => Caller(None),
            false => Caller(Some(self.find(headers)?)),
        };
        let left = self.left(caller);
        let now = Instant::now();
        let used_up = |what: &str, per_minute: u32, seconds: f64| {
            let message = format!("the rate of {per_minute} {what} per minute is used up");
            ApiError {
                retry_after: Some(seconds.ceil() as u64),
                code: Some("rate_limit_exceeded"),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", message)
            }
        };
        // What an answer costs is known in the end: who is in debt waits until it is paid.
        if let Some(rate) = self.rates.tokens {
            lock(&left.tokens).check(rate, now).map_err(|s| used_up("tokens", rate, s))?;
        }
        if let Some(rate) = self.rates.requests {
            lock(&left.requests).take(rate, now).map_err(|s| used_up("requests", rate, s))?;
        }
        Ok(caller)
    }

    fn left(&self, caller: Caller) -> &Left {
        let key = caller.0.and_then(|at| self.keys.get(at));
        key.map_or(&self.anonymous, |key| &key.left)
    }

    /// Takes the tokens of an answer from what is left to somebody, into debt if need be.
    pub(super) fn spend(&self, caller: Caller, tokens: usize) {
        let Some(rate) = self.rates.tokens else { return };
        let mut bucket = lock(&self.left(caller).tokens);
        bucket.fill(rate, Instant::now());
        bucket.left -= tokens as f64;
    }

    /// The place of the key.
    fn find(&self, headers: &HeaderMap) -> Result<usize, ApiError> {
        let refused = |message: &str| ApiError {
            code: Some("invalid_api_key"),
            ..ApiError::new(StatusCode::UNAUTHORIZED, "authentication_error", message)
        };
        let bearer = headers.get(header::AUTHORIZATION).and_then(|value| {
            let (scheme, key) = value.as_bytes().split_at_checked(7)?;
            scheme.eq_ignore_ascii_case(b"bearer ").then(|| key.trim_ascii())
        });
        let given = bearer.or_else(|| headers.get("x-api-key").map(|value| value.as_bytes()));
        let given = given.ok_or_else(|| {
            refused("an API key is needed: send the header `Authorization: Bearer KEY`")
        })?;
        let digest = Sha256::digest(given).into();
        let found = self.keys.iter().enumerate().fold(None, |found, (i, key)| {
            if equal(&key.digest, &digest) { Some(i) } else { found }
        });
        found.ok_or_else(|| refused("the API key is wrong"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn headers(name: &'static str, value: &str) -> HeaderMap {
        HeaderMap::from_iter([(
            header::HeaderName::from_static(name),
            header::HeaderValue::from_str(value).unwrap(),
        )])
    }

    #[test]
    fn only_whole_keys_are_taken() {
        let keys = Keys::new(&["sk-one".to_owned(), "sk-two".to_owned()], Rates::default());
        let table = [
            ("authorization", "Bearer sk-one", true),
            ("authorization", "bearer  sk-two ", true),
            ("x-api-key", "sk-two", true),
            ("authorization", "Bearer sk-on", false),
            ("authorization", "Bearer sk-onee", false),
            ("authorization", "Bearer ", false),
            ("authorization", "sk-one", false),
            ("authorization", "", false),
            ("cookie", "sk-one", false),
        ];
        for (name, value, fits) in table {
            let admitted = keys.admit(&headers(name, value));
            assert_eq!(admitted.is_ok(), fits, "{name}: {value}");
            if let Err(error) = admitted {
                assert_eq!(error.status, StatusCode::UNAUTHORIZED);
            }
        }
        assert!(Keys::new(&[], Rates::default()).admit(&HeaderMap::new()).is_ok());
    }

    #[test]
    fn every_key_has_its_own_rate() {
        let keys =
            Keys::new(&["a".to_owned(), "b".to_owned()], Rates { requests: Some(2), tokens: None });
        let ask = |key: &str| keys.admit(&headers("x-api-key", key));
        assert!(ask("a").is_ok() && ask("a").is_ok());
        let error = ask("a").unwrap_err();
        assert_eq!(error.status, StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(error.retry_after, Some(30));
        assert!(ask("b").is_ok());
    }

    #[test]
    fn tokens_are_paid_for_afterwards() {
        let rates = Rates { requests: None, tokens: Some(600) };
        let keys = Keys::new(&["a".to_owned(), "b".to_owned()], rates);
        let ask = |key: &str| keys.admit(&headers("x-api-key", key));
        let a = ask("a").unwrap();
        keys.spend(a, 590);
        assert!(ask("a").is_ok());
        keys.spend(a, 110);
        let error = ask("a").unwrap_err();
        assert_eq!((error.status, error.retry_after), (StatusCode::TOO_MANY_REQUESTS, Some(11)));
        assert!(error.message.contains("600 tokens"), "{error}");
        assert!(ask("b").is_ok());
    }

    #[test]
    fn a_bucket_fills_evenly() {
        let start = Instant::now();
        let mut bucket = Bucket { left: 1.0, at: start };
        assert_eq!(bucket.take(60, start), Ok(()));
        assert!((bucket.take(60, start).unwrap_err() - 1.0).abs() < 1e-9);
        assert!(bucket.take(60, start + Duration::from_millis(900)).is_err());
        assert_eq!(bucket.take(60, start + Duration::from_millis(1100)), Ok(()));
        let hours = start + Duration::from_secs(7200);
        assert!((0..60).all(|_| bucket.take(60, hours).is_ok()));
        assert!(bucket.take(60, hours).is_err(), "no more than a minute's worth");
    }
}
