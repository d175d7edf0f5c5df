"""Ollama's Python client, unchanged, against a running server.

    python tests/clients/ollama_client.py http://127.0.0.1:8080 KEY
"""

import json
import sys

import ollama

BASE, KEY = sys.argv[1], sys.argv[2]
client = ollama.Client(host=BASE, headers={"Authorization": f"Bearer {KEY}"}, timeout=120)
MODEL = client.list().models[0].model
CHAT = [{"role": "user", "content": "Say hello."}]
OPTIONS = {"num_predict": 8, "temperature": 0}


def test_chat():
    answer = client.chat(model=MODEL, messages=CHAT, options=OPTIONS)
    assert answer.done and answer.message.content and answer.eval_count <= 8
    parts = list(client.chat(model=MODEL, messages=CHAT, options=OPTIONS, stream=True))
    assert "".join(p.message.content or "" for p in parts) == answer.message.content
    assert parts[-1].done and parts[-1].done_reason in ("stop", "length")


def test_generate():
    answer = client.generate(model=MODEL, prompt="The capital of France is", raw=True, options=OPTIONS)
    assert answer.response.startswith(" Paris"), answer.response


def test_format():
    schema = {
        "type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"],
        "additionalProperties": False,
    }
    answer = client.chat(model=MODEL, messages=CHAT, format=schema, options={"num_predict": 60})
    assert isinstance(json.loads(answer.message.content)["ok"], bool)


def test_errors():
    try:
        client.chat(model=MODEL, messages=CHAT, options={"num_predict": 10**9})
    except ollama.ResponseError as error:
        assert error.status_code == 400 and "max_tokens" in str(error), error
    else:
        raise AssertionError("an error was expected")


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"ok {name}", flush=True)
