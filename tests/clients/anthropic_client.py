"""Anthropic's Python client, unchanged, against a running server.

    python tests/clients/anthropic_client.py http://127.0.0.1:8080 KEY
"""

import sys

import anthropic

BASE, KEY = sys.argv[1], sys.argv[2]
client = anthropic.Anthropic(base_url=BASE, api_key=KEY, max_retries=0, timeout=120)
CHAT = [{"role": "user", "content": "Say hello."}]


def test_messages():
    answer = client.messages.create(
        model="any", max_tokens=8, messages=CHAT, system="Be brief.",
        extra_body={"temperature": 0})
    assert answer.type == "message" and answer.role == "assistant"
    assert answer.content[0].type == "text" and answer.content[0].text
    assert answer.stop_reason in ("end_turn", "max_tokens")
    assert 0 < answer.usage.output_tokens <= 8
    return answer.content[0].text


def test_streaming():
    with client.messages.stream(
        model="any", max_tokens=8, messages=CHAT, system="Be brief.",
        extra_body={"temperature": 0},
    ) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == final.content[0].text == test_messages()
    assert final.stop_reason in ("end_turn", "max_tokens")
    assert final.usage.output_tokens > 0


def test_tools():
    tool = {
        "name": "look", "description": "Looks at a thing.",
        "input_schema": {
            "type": "object", "properties": {"thing": {"enum": ["sun", "moon"]}},
            "required": ["thing"], "additionalProperties": False,
        },
    }
    answer = client.messages.create(
        model="any", max_tokens=100, messages=CHAT, tools=[tool],
        tool_choice={"type": "tool", "name": "look"})
    use = next(block for block in answer.content if block.type == "tool_use")
    assert use.name == "look" and use.input["thing"] in ("sun", "moon"), use
    assert answer.stop_reason == "tool_use"


def test_errors():
    wrong = anthropic.Anthropic(base_url=BASE, api_key="sk-wrong", max_retries=0)
    for kind, call in [
        (anthropic.AuthenticationError,
         lambda: wrong.messages.create(model="any", max_tokens=8, messages=CHAT)),
        (anthropic.BadRequestError,
         lambda: client.messages.create(model="any", max_tokens=8, messages=[])),
        (anthropic.BadRequestError,
         lambda: client.messages.create(
             model="any", max_tokens=8, messages=CHAT, extra_body={"magic": 1})),
    ]:
        try:
            call()
        except kind:
            continue
        raise AssertionError(f"{kind.__name__} was expected")


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"ok {name}", flush=True)
