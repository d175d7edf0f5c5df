//! Which pages of other origins may call (Fetch standard, 3.2).
//!
//! Keys travel in a header that pages set by themselves and not in cookies, so credentials are never
//! allowed.

use axum::http::{HeaderMap, HeaderValue, header};

/// The origins whose pages may call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origins {
    #[default]
    None,
    Any,
    /// Any port of this machine.
    Local,
    /// These.
    Listed(Vec<String>),
}

impl Origins {
    /// `*` for any, `localhost` for those of this machine, else origins between commas.
    pub fn parse(text: &str) -> Origins {
        match text.trim() {
            "" => Origins::None,
            "*" => Origins::Any,
            "localhost" => Origins::Local,
            list => Origins::Listed(list.split(',').map(|o| o.trim().to_owned()).collect()),
        }
    }

    fn allows(&self, origin: &str) -> bool {
        match self {
            Origins::None => false,
            Origins::Any => true,
            Origins::Local => is_local(origin),
            Origins::Listed(list) => list.iter().any(|one| one == origin),
        }
    }

    /// Adds what a browser wants to read before a page of `origin` sees the answer.
    ///
    /// `asked` are the headers that a page wants to send; naming them one by one covers
    /// `authorization`, which a star does not.
    pub fn apply(
        &self,
        origin: Option<&HeaderValue>,
        asked: Option<&HeaderValue>,
        headers: &mut HeaderMap,
    ) {
        if *self == Origins::None {
            return;
        }
        headers.append(header::VARY, HeaderValue::from_static("Origin"));
        let allowed = match origin {
            Some(origin) if origin.to_str().is_ok_and(|o| self.allows(o)) => origin.clone(),
            None if *self == Origins::Any => HeaderValue::from_static("*"),
            _ => return,
        };
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        let any = HeaderValue::from_static("*");
        let methods = HeaderValue::from_static("GET, POST, OPTIONS");
        headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
        let asked = asked.cloned().unwrap_or_else(|| any.clone());
        headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, asked);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, any);
    }
}

/// `http://localhost`, `http://127.0.0.1` or `http://[::1]`, with any port.
fn is_local(origin: &str) -> bool {
    let host = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    host.is_some_and(|host| {
        ["localhost", "127.0.0.1", "[::1]"].iter().any(|name| {
            host.strip_prefix(name).is_some_and(|rest| {
                rest.is_empty()
                    || rest.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
            })
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_origins_are_allowed() {
        let table = [
            ("*", "http://a.example", true),
            ("localhost", "http://localhost:8080", true),
            ("localhost", "https://[::1]:3000", true),
            ("localhost", "http://localhost.evil.example", false),
            ("localhost", "http://notlocalhost", false),
            ("localhost", "http://127.0.0.1:port", false),
            ("http://a.example, http://b.example", "http://b.example", true),
            ("http://a.example", "http://a.example.evil", false),
            ("", "http://a.example", false),
        ];
        for (origins, origin, allowed) in table {
            let mut headers = HeaderMap::new();
            let value = HeaderValue::from_str(origin).unwrap();
            Origins::parse(origins).apply(Some(&value), None, &mut headers);
            let got = headers.get(header::ACCESS_CONTROL_ALLOW_ORIGIN);
            assert_eq!(got, allowed.then_some(&value), "{origins}: {origin}");
        }
    }
}
