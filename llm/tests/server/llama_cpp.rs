//! What people know from llama.cpp's server.

use aether_llm::engine::{Proposer, Speculation};
use aether_llm::server::ServerOptions;
use serde_json::{Value, json};

use super::Server;

#[test]
fn completions_of_llama_cpp_answer_as_its_server_does() {
    let server = Server::plain();
    let ask = |body: Value| {
        let (status, answer) = server.post("/completion", &body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let body = json!({
        "prompt": "Hi", "n_predict": 5, "temperature": 1.0, "seed": 3, "n_probs": 4,
        "return_tokens": true, "ignore_eos": true,
    });
    let answer = ask(body.clone());
    assert_eq!(answer["tokens"].as_array().unwrap().len(), 5);
    assert_eq!((&answer["tokens_predicted"], &answer["tokens_evaluated"]), (&json!(5), &json!(2)));
    assert_eq!((&answer["stop_type"], &answer["truncated"]), (&json!("limit"), &json!(false)));
    assert_eq!(answer["generation_settings"]["seed"], 3);
    assert_eq!(answer["generation_settings"]["logit_bias"][0]["bias"], Value::Null);
    let probs = answer["completion_probabilities"].as_array().unwrap();
    assert!(probs.iter().all(|p| p["top_logprobs"].as_array().unwrap().len() == 4));

    // After the sampler's cuts probabilities add up to 1, and what was cut is not among them.
    let mut after = body.clone();
    after["post_sampling_probs"] = true.into();
    after["top_k"] = 3.into();
    let after = ask(after);
    for entry in after["completion_probabilities"].as_array().unwrap() {
        let top = entry["top_probs"].as_array().unwrap();
        let sum: f64 = top.iter().map(|p| p["prob"].as_f64().unwrap()).sum();
        assert!((1..=3).contains(&top.len()) && (sum - 1.0).abs() < 1e-4, "{entry}");
        assert!(top.iter().any(|p| p["id"] == entry["id"]), "{entry}");
    }

    let mut wanted = body.clone();
    wanted["response_fields"] = json!(["content", "generation_settings/n_predict"]);
    let picked = json!({ "content": answer["content"], "generation_settings/n_predict": 5 });
    assert_eq!(ask(wanted), picked);

    // Texts and ids, together and apart.
    let several = ask(json!({ "prompt": [[72, 105], "Hi", [72, "i"]], "n_predict": 3, "seed": 1 }));
    let contents: Vec<&Value> =
        several.as_array().unwrap().iter().map(|one| &one["content"]).collect();
    assert!(contents.len() == 3 && contents.iter().all(|c| *c == contents[0]), "{contents:?}");

    let mut streamed = body.clone();
    streamed["stream"] = true.into();
    streamed["return_progress"] = true.into();
    streamed["timings_per_token"] = true.into();
    streamed["prompt"] = "oh".repeat(40).into();
    let (_, text) = server.send("POST", "/completion", "", streamed.to_string().as_bytes());
    let events: Vec<Value> = text
        .lines()
        .filter_map(|line| serde_json::from_str(line.strip_prefix("data: ")?).ok())
        .collect();
    let progress: Vec<u64> =
        events.iter().filter_map(|e| e["prompt_progress"]["processed"].as_u64()).collect();
    assert!(progress.len() > 2 && progress[0] == 0 && progress.is_sorted(), "{progress:?}");
    assert_eq!(progress.last(), Some(&80));
    assert_eq!(events[0]["timings"]["prompt_ms"], 0.0);
    assert_eq!(events.last().unwrap()["stop"], true);

    let (status, refused) = server.post("/infill", &json!({ "input_suffix": "x" }));
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("input_suffix")));
    let (status, refused) =
        server.post("/v1/completions", &json!({ "prompt": "a", "suffix": "b" }));
    assert_eq!((status, &refused["error"]["code"]), (400, &json!("unsupported_parameter")));
    let (status, refused) = server.post("/completion", &json!({ "prompt": "a", "id_slot": 2 }));
    assert_eq!(status, 400, "{refused}");
}

#[test]
fn grammars_of_llama_cpp_are_kept() {
    let server = Server::plain();
    let ask = |grammar: &str| {
        let body =
            json!({ "prompt": "Hi", "n_predict": 40, "temperature": 2.0, "grammar": grammar });
        server.post("/completion", &body)
    };
    let matches = |grammar: &str, fits: fn(&str) -> bool| {
        let (status, answer) = ask(grammar);
        assert_eq!(status, 200, "{answer}");
        let text = answer["content"].as_str().unwrap();
        assert!(fits(text), "{grammar}: {text:?}");
    };
    matches("root ::= \"a\"{5,5}", |text| text == "aaaaa");
    // Divided otherwise than the longest words would be.
    matches("root ::= (\"a\" | \"ab\") \"bc\"", |text| ["abc", "abbc"].contains(&text));
    matches("root ::= \"x\" | \"\"", |text| ["x", ""].contains(&text));
    matches("root ::= x [^a-z\\n] . \"\\u00e9\"\nx ::= \"(\" x \")\" | \"1\"", |text| {
        text.starts_with(['(', '1'])
    });
    for bad in ["root ::= this is (not valid GBNF", "root ::= <think>", "x ::= \"a\""] {
        let (status, answer) = ask(bad);
        assert_eq!((status, &answer["error"]["param"]), (400, &json!("grammar")), "{answer}");
    }
    server.lives();
}

#[test]
fn the_last_message_of_the_assistant_goes_on() {
    let server = Server::plain();
    let turns = json!([
        { "role": "user", "content": "Hi" }, { "role": "assistant", "content": "Whi" },
    ]);
    let ask = |extra: Value| {
        let mut body = json!({ "messages": turns });
        for (name, value) in extra.as_object().unwrap() {
            body[name] = value.clone();
        }
        server.post("/apply-template", &body)
    };
    let end = "<|im_start|>assistant\nWhi";
    for extra in [json!({}), json!({ "continue_final_message": true })] {
        assert!(ask(extra).1["prompt"].as_str().unwrap().ends_with(end));
    }
    let (_, other) = ask(json!({ "continue_final_message": false }));
    assert!(other["prompt"].as_str().unwrap().ends_with("<|im_start|>assistant\n"));
    let (_, bare) = ask(json!({ "continue_final_message": false, "add_generation_prompt": false }));
    assert!(bare["prompt"].as_str().unwrap().ends_with("Whi<|im_end|>\n"));
    let both = json!({ "continue_final_message": true, "add_generation_prompt": true });
    assert_eq!(ask(both).0, 400);
    let body = json!({ "messages": turns, "max_tokens": 1, "verbose": true });
    let (_, answer) = server.post("/v1/chat/completions", &body);
    assert!(answer["__verbose"]["prompt"].as_str().unwrap().ends_with(end));
    let (_, count) = server.post("/chat/completions/input_tokens", &json!({ "messages": turns }));
    assert_eq!(count["input_tokens"], answer["usage"]["prompt_tokens"]);
    let (_, count) = server.post("/v1/messages/count_tokens", &json!({ "messages": turns }));
    assert_eq!(count["input_tokens"], answer["usage"]["prompt_tokens"]);
}

#[test]
fn the_server_tells_how_it_is_set_up() {
    let options = ServerOptions { seed: Some(7), max_tokens: 64, ..ServerOptions::default() };
    let server = Server::start(options, 8);
    let get = |path: &str| {
        let (status, answer) = server.send("GET", path, "", b"");
        let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
        (status, body.to_owned())
    };
    let props: Value = serde_json::from_str(&get("/props").1).unwrap();
    assert_eq!(props["total_slots"], 2);
    assert_eq!(props["default_generation_settings"]["params"]["seed"], 7);
    let ask = || server.post("/completion", &json!({ "prompt": "Hi", "n_predict": 6 })).1;
    assert_eq!(ask()["content"], ask()["content"], "the server's seed holds");
    let slots: Value = serde_json::from_str(&get("/slots").1).unwrap();
    assert_eq!(slots.as_array().unwrap().len(), 2);
    assert!(get("/metrics").1.contains("\nllamacpp:tokens_predicted_total 12\n"));

    let options = ServerOptions {
        slots_endpoint: false,
        metrics_endpoint: false,
        ..ServerOptions::default()
    };
    let closed = Server::start(options, 8);
    for path in ["/slots", "/metrics"] {
        assert_eq!(closed.send("GET", path, "", b"").0, 501);
    }
}

#[test]
fn drafts_change_no_answer_and_are_counted() {
    let ngram = Speculation { tokens: 5, proposer: Proposer::Ngram };
    let options = || ServerOptions { max_tokens: 64, ..ServerOptions::default() };
    let server = Server::drafting(options(), 8, Some(&ngram));
    let plain = Server::plain();
    let body = json!({
        "prompt": "abcabcabcabc", "n_predict": 40, "temperature": 0.0, "seed": 1,
        "ignore_eos": true,
    });
    let ask = |server: &Server, body: &Value| {
        let (status, answer) = server.post("/completion", body);
        assert_eq!(status, 200, "{answer}");
        answer
    };
    let (drafted, want) = (ask(&server, &body), ask(&plain, &body));
    assert_eq!(drafted["content"], want["content"]);
    let count = |answer: &Value, name: &str| answer["timings"][name].as_u64();
    let (all, taken) = (count(&drafted, "draft_n"), count(&drafted, "draft_n_accepted"));
    assert!(taken > Some(0) && taken <= all, "{drafted}");
    assert_eq!((count(&want, "draft_n"), count(&want, "draft_n_accepted")), (None, None));
    assert_eq!(drafted["generation_settings"]["speculative.n_max"], 5);
    assert_eq!(want["generation_settings"]["speculative.n_max"], 0);

    let (_, metrics) = server.send("GET", "/metrics", "", b"");
    for (name, n) in [
        ("aether_draft_tokens_total", all),
        ("aether_draft_accepted_tokens_total", taken),
        ("llamacpp:spec_decode_num_draft_tokens_total", all),
        ("llamacpp:spec_decode_num_accepted_tokens_total", taken),
    ] {
        let line = format!("\n{name} {}\n", n.unwrap());
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }

    let mut none = body.clone();
    none["speculative.n_max"] = 0.into();
    let none = ask(&server, &none);
    assert_eq!((&none["content"], count(&none, "draft_n")), (&want["content"], None));
    let mut many = body.clone();
    many["speculative.n_max"] = 1000.into();
    let (status, refused) = server.post("/completion", &many);
    assert_eq!((status, &refused["error"]["param"]), (400, &json!("speculative.n_max")));
}

#[test]
fn adapters_are_listed_and_keep_their_scales() {
    let server = Server::plain();
    let (status, answer) = server.send("GET", "/lora-adapters", "", b"");
    assert!(status == 200 && answer.ends_with("[]"), "{answer}");
    let mut w = aether_llm::gguf::GgufWriter::new();
    w.string("general.type", "adapter").string("adapter.type", "lora");
    w.string("general.architecture", "llama");
    for (end, shape) in [("a", [64, 2]), ("b", [2, 64])] {
        let name = format!("blk.0.attn_q.weight.lora_{end}");
        w.tensor_from_f32(name, aether_ir::DType::F32, &shape, &[0.25; 128]).unwrap();
    }
    let gguf = aether_llm::gguf::Gguf::from_bytes("one.gguf", &w.to_bytes()).unwrap();
    let adapter = aether_llm::arch::Adapter::new(gguf, 0.5).unwrap();
    let load = aether_llm::engine::LoadOptions {
        adapters: vec![std::sync::Arc::new(adapter)],
        ..Server::load()
    };
    let model = aether_llm::engine::Model::from_memory(
        super::tiny::Tiny::llama(super::tiny::FLOATS).gguf(),
        &load,
    );
    let server = Server::with_model(model.unwrap(), ServerOptions::default(), 8);
    let (_, answer) = server.send("GET", "/lora-adapters", "", b"");
    assert!(answer.ends_with(r#"[{"id":0,"path":"one.gguf","scale":0.5}]"#), "{answer}");
    let (status, answer) = server.post("/lora-adapters", &json!([{ "id": 0, "scale": 0.5 }]));
    assert_eq!((status, answer), (200, json!({ "success": true })));
    for (body, says) in [
        (json!([{ "id": 0, "scale": 1.0 }]), "scales are set when the server starts"),
        (json!([]), "scales are set when the server starts"),
        (json!([{ "id": 1, "scale": 1.0 }]), "there is no adapter 1"),
        (json!({ "id": 0 }), "a list of adapters"),
    ] {
        let (status, answer) = server.post("/lora-adapters", &body);
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"]["message"].as_str().unwrap().contains(says), "{answer}");
    }
    server.lives();
}
