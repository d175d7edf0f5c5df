//! What `/openapi.json` says is what the server does.

use serde_json::{Value, json};

use super::Server;

#[test]
fn every_described_field_is_understood() {
    let server = Server::plain();
    let (status, answer) = server.send("GET", "/openapi.json", "", b"");
    assert_eq!(status, 200);
    let all: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let paths = all["paths"].as_object().unwrap();
    assert_eq!(paths.len(), 26);
    for (path, methods) in paths {
        if methods.get("get").is_some() {
            assert_eq!(server.send("GET", path, "", b"").0, 200, "{path}");
            continue;
        }
        let schema = &methods["post"]["requestBody"]["content"]["application/json"]["schema"];
        let properties = schema["properties"].as_object().unwrap();
        let needed = [
            ("messages", json!([{ "role": "user", "content": "Hi" }])),
            ("prompt", json!("Hi")),
            ("input", json!("Hi")),
            ("max_tokens", json!(1)),
            ("n_predict", json!(1)),
            ("max_output_tokens", json!(1)),
            ("options", json!({ "num_predict": 1 })),
        ];
        for name in properties.keys() {
            let mut body = json!({});
            for (field, value) in &needed {
                if properties.contains_key(*field) {
                    body[field] = value.clone();
                }
            }
            // Of hardly any field's type: what is known is refused for its value, if at all, and
            // what is not known by its name.
            body[name] = json!({ "odd": [] });
            let (status, answer) = server.post(path, &body);
            let unknown = format!("the field `{name}` is not supported here");
            assert_ne!(answer["error"]["message"], unknown.as_str(), "{path} {status}");
            assert_ne!(answer["error"], unknown.as_str(), "{path}");
            assert!(status < 500, "{path} {name}: {answer}");
        }
        let (status, _) = server.post(path, &json!({ "nonsense": 1 }));
        assert_eq!(status, 400, "{path}");
    }
    let (_, page) = server.send("GET", "/docs", "", b"");
    assert!(page.contains("<code>POST /v1/chat/completions</code>"), "{page}");
}
