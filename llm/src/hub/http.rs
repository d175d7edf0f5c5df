//! Files over HTTP(S): one GET with resumption by `Range`, checked against the size that the
//! catalogue states before a byte is kept, retried a few times where that can help.
//!
//! Range requests are as in RFC 9110, sections 13.1.5 (If-Range) and 14; addresses are those of
//! the Hugging Face hub, `ENDPOINT/REPO/resolve/REVISION/FILE`.

use std::io::{self, Read};
use std::time::Duration;

use ureq::Agent;
use ureq::http::{Response, StatusCode, header};

use super::Job;
use super::error::HubError;
use super::partial::Partial;

/// Longest wait for a name, a connection or the first byte of an answer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// Longest silence in an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(60);
/// Wait before the first retry; it doubles with each.
const FIRST_WAIT: Duration = Duration::from_millis(500);

/// The address of a file on the hub.
pub(super) fn address(endpoint: &str, repo: &str, revision: &str, file: &str) -> String {
    format!("{}/{repo}/resolve/{revision}/{file}", endpoint.trim_end_matches('/'))
}

/// Completes `partial` from `url`. The digest is the caller's to check.
pub(super) fn fetch(job: &mut Job<'_>, url: &str, partial: &mut Partial) -> Result<(), HubError> {
    let agent = agent(url);
    let mut wait = FIRST_WAIT;
    let mut tries_left = job.options.retries;
    while partial.missing() > 0 {
        let before = partial.len();
        match attempt(job, &agent, url, partial) {
            Ok(()) => {}
            Err(e) => {
                let again = tries_left > 0 && (may_pass(&e) || partial.len() > before);
                if !again || e.is_final() || matches!(e, HubError::WrongSize { .. }) {
                    return Err(e);
                }
                tries_left -= 1;
                job.message(format!("{e}; trying again"));
                job.sleep(wait, partial)?;
                wait *= 2;
            }
        }
    }
    Ok(())
}

fn agent(url: &str) -> Agent {
    let mut config = Agent::config_builder()
        .http_status_as_error(false)
        .https_only(url.starts_with("https://"))
        .timeout_resolve(Some(CONNECT_TIMEOUT))
        .timeout_connect(Some(CONNECT_TIMEOUT))
        .timeout_recv_response(Some(READ_TIMEOUT))
        .timeout_per_read(Some(READ_TIMEOUT))
        .user_agent(concat!("aether/", env!("CARGO_PKG_VERSION")));
    if is_loopback(url) {
        // A proxy elsewhere has another loopback.
        config = config.proxy(None);
    }
    config.build().into()
}

fn is_loopback(url: &str) -> bool {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    let host = rest.split('/').next().unwrap_or("");
    ["127.0.0.1", "localhost", "[::1]"].iter().any(|name| {
        host.strip_prefix(name).is_some_and(|port| port.is_empty() || port.starts_with(':'))
    })
}

/// One request and its answer, as far as it comes.
fn attempt(
    job: &mut Job<'_>,
    agent: &Agent,
    url: &str,
    partial: &mut Partial,
) -> Result<(), HubError> {
    job.check_cancel(partial)?;
    // Nothing may be packed on the way: sizes and ranges speak of the file itself.
    let mut request = agent.get(url).header(header::ACCEPT_ENCODING, "identity");
    if let Some(token) = &job.options.token
        && (url.starts_with("https://") || is_loopback(url))
    {
        request = request.header(header::AUTHORIZATION, format!("Bearer {token}"));
    }
    if partial.len() > 0 {
        request = request.header(header::RANGE, format!("bytes={}-", partial.len()));
        // A weak validator does not vouch for single bytes; the digest at the end does.
        if let Some(etag) = partial.note().etag.as_ref().filter(|e| !e.starts_with("W/")) {
            request = request.header(header::IF_RANGE, etag);
        }
    }
    let response = request.call().map_err(|e| transport_error(url, partial, &e))?;
    let status = response.status();
    match status {
        StatusCode::OK => {
            if partial.len() > 0 {
                job.message(format!("{url}: cannot go on from the partial file, starting anew"));
                partial.restart()?;
            }
            check_size(job, url, content_length(&response))?;
        }
        StatusCode::PARTIAL_CONTENT => {
            let (start, total) = content_range(&response).unwrap_or((0, None));
            check_size(job, url, total)?;
            if start != partial.len() {
                let wanted = partial.len();
                partial.restart()?;
                let reason = format!("asked for bytes from {wanted}, the server sent from {start}");
                return Err(partial.interrupted(url, reason));
            }
        }
        StatusCode::RANGE_NOT_SATISFIABLE if partial.len() > 0 => {
            partial.restart()?;
            return Err(partial.interrupted(url, "the server has no bytes after the partial file"));
        }
        _ => return Err(HubError::Status { url: url.to_owned(), status: status.as_u16() }),
    }
    partial.set_etag(text(&response, &header::ETAG))?;
    receive(job, url, response.into_body().into_reader(), partial)
}

fn receive(
    job: &mut Job<'_>,
    url: &str,
    mut body: impl Read,
    partial: &mut Partial,
) -> Result<(), HubError> {
    let mut buffer = vec![0u8; 1 << 18];
    job.advanced(partial.len());
    while partial.missing() > 0 {
        job.check_cancel(partial)?;
        let n = match body.read(&mut buffer) {
            Ok(0) => return Err(partial.interrupted(url, "the connection ended early")),
            Ok(n) => n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
            Err(e) => return Err(partial.interrupted(url, e)),
        };
        if n as u64 > partial.missing() {
            let found = partial.len() + n as u64;
            return Err(wrong_size(job, url, found));
        }
        partial.append(&buffer[..n])?;
        job.advanced(partial.len());
    }
    // Where no length was stated, only the end of the body shows that this is all of it.
    match body.read(&mut buffer[..1]) {
        Ok(1..) => Err(wrong_size(job, url, partial.len() + 1)),
        _ => Ok(()),
    }
}

/// True for errors that pass by themselves. A name that is not found or a refused connection
/// is told at once: it mostly means that there is no network.
fn may_pass(error: &HubError) -> bool {
    match error {
        HubError::Status { status, .. } => *status == 429 || *status >= 500,
        HubError::Interrupted { reason, .. } => {
            !reason.starts_with("cannot connect") && !reason.starts_with("the server's name")
        }
        _ => false,
    }
}

fn transport_error(url: &str, partial: &Partial, error: &ureq::Error) -> HubError {
    let reason = match error {
        ureq::Error::HostNotFound => "the server's name cannot be resolved; is there a network? \
                                      (HF_ENDPOINT names another server)"
            .to_owned(),
        ureq::Error::Io(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            "cannot connect: refused".to_owned()
        }
        ureq::Error::ConnectionFailed => "cannot connect".to_owned(),
        ureq::Error::BadUri(_) | ureq::Error::Http(_) => {
            format!("cannot connect: not an address ({error})")
        }
        other => other.to_string(),
    };
    partial.interrupted(url, reason)
}

fn check_size(job: &Job<'_>, url: &str, found: Option<u64>) -> Result<(), HubError> {
    match found {
        Some(found) if found != job.entry.size => Err(wrong_size(job, url, found)),
        _ => Ok(()),
    }
}

fn wrong_size(job: &Job<'_>, url: &str, found: u64) -> HubError {
    HubError::WrongSize { origin: url.to_owned(), expected: job.entry.size, found }
}

fn text<B>(response: &Response<B>, name: &header::HeaderName) -> Option<String> {
    response.headers().get(name)?.to_str().ok().map(|v| v.trim().to_owned())
}

fn content_length<B>(response: &Response<B>) -> Option<u64> {
    text(response, &header::CONTENT_LENGTH)?.parse().ok()
}

/// Start and total of `bytes START-END/TOTAL`, the total being `*` where it is not known.
fn content_range<B>(response: &Response<B>) -> Option<(u64, Option<u64>)> {
    let value = text(response, &header::CONTENT_RANGE)?;
    let (range, total) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (start, _) = range.split_once('-')?;
    Some((start.trim().parse().ok()?, total.trim().parse().ok()))
}

impl Job<'_> {
    fn sleep(&mut self, time: Duration, partial: &Partial) -> Result<(), HubError> {
        let step = Duration::from_millis(50);
        let mut left = time;
        while left > Duration::ZERO {
            self.check_cancel(partial)?;
            std::thread::sleep(step.min(left));
            left = left.saturating_sub(step);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::is_loopback;

    #[test]
    fn loopback_is_told_from_what_looks_like_it() {
        let table = [
            ("http://127.0.0.1:80/a", true),
            ("http://localhost/a", true),
            ("http://[::1]:9", true),
            ("http://localhost.example.org/", false),
            ("https://127.0.0.10/", false),
            ("https://example.org/localhost", false),
        ];
        for (url, expected) in table {
            assert_eq!(is_loopback(url), expected, "{url}");
        }
    }
}
