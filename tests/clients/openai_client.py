"""OpenAI's Python client, unchanged, against a running server.

    python tests/clients/openai_client.py http://127.0.0.1:8080 KEY
"""

import concurrent.futures
import json
import sys

import openai

BASE, KEY = sys.argv[1], sys.argv[2]
client = openai.OpenAI(base_url=f"{BASE}/v1", api_key=KEY, max_retries=0, timeout=120)
MODEL = client.models.list().data[0].id
CHAT = [{"role": "user", "content": "Say hello."}]


def refused(kind, call, *words):
    """The call must fail with this kind of error, whose message holds these words."""
    try:
        call()
    except kind as error:
        for word in words:
            assert word in str(error), (word, str(error))
        return error
    raise AssertionError(f"{kind.__name__} was expected ({words})")


def test_models():
    model = client.models.retrieve(MODEL)
    assert model.id == MODEL and model.object == "model"
    refused(openai.NotFoundError, lambda: client.models.retrieve("no-such-model"), "no-such-model")


def test_chat():
    answer = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=8, temperature=0)
    choice = answer.choices[0]
    assert answer.object == "chat.completion"
    assert choice.message.role == "assistant" and choice.message.content
    assert choice.finish_reason in ("stop", "length")
    usage = answer.usage
    assert usage.completion_tokens <= 8 and usage.prompt_tokens > 5
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    again = client.chat.completions.create(model=MODEL, messages=CHAT, max_tokens=8, temperature=0)
    assert again.usage.prompt_tokens_details.cached_tokens > 0
    return choice.message.content


def test_streaming():
    whole = test_chat()
    stream = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=8, temperature=0, stream=True,
        stream_options={"include_usage": True},
    )
    text, reasons, usage = "", [], None
    for chunk in stream:
        if chunk.usage:
            usage = chunk.usage
        for choice in chunk.choices:
            text += choice.delta.content or ""
            if choice.finish_reason:
                reasons.append(choice.finish_reason)
    assert text == whole, (text, whole)
    assert len(reasons) == 1 and 0 < usage.completion_tokens <= 8


def test_seeds():
    def ask(seed):
        answer = client.chat.completions.create(
            model=MODEL, messages=CHAT, max_tokens=12, temperature=1.5, seed=seed)
        return answer.choices[0].message.content

    first = ask(7)
    # In company of others, too.
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(ask, [7, 1, 7, 2, 3, 7]))
    assert answers[0] == answers[2] == answers[5] == first, answers
    assert len(set(answers)) > 1


def test_choices_stop_and_bias():
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=6, temperature=1.2, n=3, seed=1)
    assert [c.index for c in answer.choices] == [0, 1, 2]
    text = client.completions.create(
        model=MODEL, prompt="1, 2, 3, 4,", max_tokens=20, temperature=0, stop=["7"])
    assert "7" not in text.choices[0].text and "5" in text.choices[0].text
    assert text.choices[0].finish_reason == "stop"
    first = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=1, temperature=0, logprobs=True, top_logprobs=2)
    entry = first.choices[0].logprobs.content[0]
    assert len(entry.top_logprobs) == 2 and entry.top_logprobs[0].logprob == entry.logprob <= 0
    assert bytes(entry.bytes).decode() == entry.token
    token = entry.model_extra["id"]
    other = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=1, temperature=0, logprobs=True,
        logit_bias={str(token): -100})
    assert other.choices[0].logprobs.content[0].model_extra["id"] != token


def test_completions():
    answer = client.completions.create(
        model=MODEL, prompt=["The capital of France is", "One, two, three,"], max_tokens=4,
        temperature=0, logprobs=2, echo=True)
    first, second = answer.choices
    assert first.text.startswith("The capital of France is Paris"), first.text
    assert second.text.startswith("One, two, three,")
    logprobs = first.logprobs
    assert logprobs.token_logprobs[0] is None and all(p <= 0 for p in logprobs.token_logprobs[1:])
    assert len(logprobs.tokens) == len(logprobs.top_logprobs) == len(logprobs.text_offset)
    chunks = client.completions.create(
        model=MODEL, prompt="The capital of France is", max_tokens=4, temperature=0, stream=True)
    text = "".join(c.choices[0].text for c in chunks)
    assert "The capital of France is" + text == first.text


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "size": {"enum": ["small", "large"]},
        "count": {"$ref": "#/$defs/count"},
    },
    "required": ["name", "size", "count"],
    "additionalProperties": False,
    "$defs": {"count": {"type": "integer", "minimum": 1, "maximum": 9}},
}


def test_formats():
    form = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, "strict": True}}
    answer = client.chat.completions.create(
        model=MODEL, messages=CHAT, max_tokens=100, response_format=form, seed=1)
    thing = json.loads(answer.choices[0].message.content)
    assert set(thing) == {"name", "size", "count"} and 1 <= thing["count"] <= 9, thing
    assert thing["size"] in ("small", "large") and len(thing["name"]) <= 8, thing
    bad = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nonsense"}}}
    refused(openai.BadRequestError, lambda: client.chat.completions.create(
        model=MODEL, messages=CHAT, response_format=bad), "response_format", "nonsense")


def test_tools():
    function = {"name": "make", "description": "Makes a thing.", "parameters": SCHEMA}
    tools = [{"type": "function", "function": function}]
    ask = dict(model=MODEL, messages=CHAT, max_tokens=120, tools=tools, seed=2)
    choice = {"type": "function", "function": {"name": "make"}}
    answer = client.chat.completions.create(**ask, tool_choice=choice).choices[0]
    call = answer.message.tool_calls[0]
    assert answer.finish_reason == "tool_calls" and call.function.name == "make"
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"name", "size", "count"}, arguments
    name, text = None, ""
    for chunk in client.chat.completions.create(**ask, tool_choice="required", stream=True):
        for delta in (c.delta for c in chunk.choices):
            assert not delta.content, delta
            for part in delta.tool_calls or []:
                name = part.function.name or name
                text += part.function.arguments or ""
    assert name == "make" and json.loads(text) == arguments, (text, arguments)
    # The result goes back as people's programs send it.
    messages = CHAT + [
        answer.message.model_dump(exclude_none=True),
        {"role": "tool", "tool_call_id": call.id, "content": "done"},
    ]
    last = client.chat.completions.create(model=MODEL, messages=messages, tools=tools, max_tokens=4)
    assert last.choices[0].message.role == "assistant"


def test_embeddings():
    texts = ["A cat sat on the mat.", "A cat sat on a mat.", "Quarterly revenue grew by 3 %."]
    vectors = [d.embedding for d in client.embeddings.create(model=MODEL, input=texts).data]
    plain = client.embeddings.create(model=MODEL, input=texts[0], encoding_format="float")
    assert all(abs(a - b) < 1e-6 for a, b in zip(vectors[0], plain.data[0].embedding))
    near, far = (sum(a * b for a, b in zip(vectors[0], v)) for v in vectors[1:])
    assert far < near < 1.0001, (near, far)


def test_responses():
    ask = dict(model=MODEL, input="Say hello.", instructions="Be brief.", max_output_tokens=8,
               temperature=0)
    answer = client.responses.create(**ask)
    assert answer.output_text and answer.usage.output_tokens <= 8, answer
    text, last = "", None
    for event in client.responses.create(**ask, stream=True):
        text += event.delta if event.type == "response.output_text.delta" else ""
        last = event
    assert text == answer.output_text == last.response.output_text, (text, answer.output_text)
    again = [{"role": "user", "content": "Say hello."}, answer.output[0].model_dump(),
             {"role": "user", "content": "And again."}]
    assert client.responses.create(model=MODEL, input=again, max_output_tokens=4).output_text
    refused(openai.BadRequestError,
            lambda: client.responses.create(**ask, previous_response_id="x"), "previous_response_id")


def test_errors():
    create = client.chat.completions.create
    wrong = openai.OpenAI(base_url=f"{BASE}/v1", api_key="sk-wrong", max_retries=0)
    refused(openai.AuthenticationError, lambda: wrong.models.list(), "key")
    bad = openai.BadRequestError
    refused(bad, lambda: create(model=MODEL, messages=[]), "messages")
    refused(bad, lambda: create(model=MODEL, messages=CHAT, temperature=-1), "temperature")
    refused(bad, lambda: create(model=MODEL, messages=CHAT, extra_body={"magic": 1}), "magic")
    refused(bad, lambda: create(model=MODEL, messages=CHAT, store=True), "store")
    refused(bad, lambda: create(model=MODEL, messages=CHAT, max_tokens=10**9), "max_tokens")
    refused(bad, lambda: create(model=MODEL, messages=CHAT, logit_bias={"99999999": 1}), "99999999")
    image = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]
    refused(bad, lambda: create(model=MODEL, messages=image), "image_url")
    long = [{"role": "user", "content": "word " * 20_000}]
    error = refused(bad, lambda: create(model=MODEL, messages=long), "context")
    assert error.code == "context_length_exceeded", error.code


for name, test in list(globals().items()):
    if name.startswith("test_"):
        test()
        print(f"ok {name}", flush=True)
