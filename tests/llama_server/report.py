#!/usr/bin/env python3
"""Makes docs/llama-server-tests.md of the outcomes that scripts/test-llama-server.sh wrote.

    tests/llama_server/report.py OURS.json REFERENCE.json > docs/llama-server-tests.md
"""

import json
import re
import sys
from collections import defaultdict

# What this server does not offer: a part of the test's name, and what it is about.
NOT_OFFERED = {
    "test_mcp_servers.py": "MCP servers",
    "test_proxy.py": "a proxy for other servers",
    "test_router.py": "several models behind one server",
    "test_stream.py": "answers that a client takes up again after it left",
    "test_tools_builtin.py": "tools that the server itself runs",
    "test_vision_api.py": "images",
    "test_local_media_file": "images",
    "_vision_base64_with_multimodal_model": "images",
    "test_sleep.py": "unloading an idle model",
    "test_rerank.py": "reranking models",
    "test_lora.py": "LoRA adapters",
    "test_slot_save.py": "saving and loading of slots",
    "test_speculative.py": "draft models",
    "test_kv_keep_only_active.py": "a second cache in RAM, and llama.cpp's log lines about it",
    "test_compat_gcp.py": "Google's form of requests",
    "test_cors_proxy": "a proxy for other servers",
    "test_access_static_assets": "the files of llama.cpp's own page",
    "pooling_mean": "embeddings other than the last token's",
    "pooling_none": "embeddings other than the last token's",
    "test_n_probs_post_backend_sampling": "sampling on the device",
    "test_cors_origins_defaults_to_localhost_with_tools": "tools that the server itself runs",
}
# What is otherwise on purpose, or is missing.
REASONS = {
    "test_server_model_aliases_and_tags": "the id is the alias that was given first, not the first "
    "of the alphabet",
    "test_cors_options[origin-Access-Control-Allow-Credentials": "keys travel in a header, so "
    "cookies of other origins are never allowed",
    "test_cors_options[web.mydomain.fr-Access-Control-Allow-Methods": "no endpoint takes DELETE",
    "test_cors_options[web.mydomain.fr-Access-Control-Allow-Headers": "the headers that were asked "
    "for are named, since a star does not cover `authorization` (Fetch standard)",
    "test_anthropic_empty_messages": "an empty list of messages is refused, as Anthropic's API does",
    "test_anthropic_vision_format_accepted": "images are refused with 400, not 500",
    "test_anthropic_tool_result_with_image": "images are refused with 400, not 500",
    "test_anthropic_thinking]": "`thinking` is refused by name",
    "test_responses_stream_with_llama_telemetry": "an answer that was cut ends with "
    "`response.incomplete`, as OpenAI's API does",
    "test_date_inside_prompt[fireworks-ai": "the template wants a variable `functions`, which only "
    "llama.cpp sets",
    "assistant_prefill[prefill1": "the parts of a message are joined without lines between them",
}


def text(cell: str) -> str:
    return re.sub(r"\s+", " ", cell)[:110].replace("|", "\\|")


def lookup(table: dict[str, str], name: str) -> str | None:
    return next((why for part, why in table.items() if part in name + "]"), None)


def main() -> None:
    ours, reference = (json.load(open(path)) for path in sys.argv[1:3])
    passed: dict[str, int] = defaultdict(int)
    not_offered: dict[str, int] = defaultdict(int)
    models: list[tuple[str, str]] = []
    failed: list[tuple[str, str]] = []
    skipped = 0
    for node, (outcome, line) in sorted(ours.items()):
        name = node.removeprefix("unit/")
        file = name.split("::")[0]
        if outcome == "skipped":
            skipped += 1
        elif lookup(NOT_OFFERED, name):
            not_offered[lookup(NOT_OFFERED, name) or ""] += 1
        elif outcome == "passed":
            passed[file] += 1
        elif reference.get(node, ["missing"])[0] != "passed":
            models.append((name, reference.get(node, ["", "did not run"])[1]))
        else:
            failed.append((name, lookup(REASONS, name) or f"not explained: {line}"))
    good = sum(passed.values())
    share = 100 * good / (good + len(failed))
    print("# llama.cpp's server tests\n")
    print("Made by `tests/llama_server/report.py` from a run of `scripts/test-llama-server.sh`, which")
    print("runs llama.cpp's own tests of its server (`tools/server/tests`, the fast ones) against")
    print("`aether-server`. The tests' models are not at hand: SmolLM2-135M, Qwen2.5-Coder-0.5B and")
    print("Gemma3-270M stand in, so what a model wrote is not compared, and a test that llama.cpp's")
    print("own server fails with these models is about their models and counts for nobody.\n")
    print(f"Of the {good + len(failed)} tests about what this server offers {good} pass: "
          f"{share:.0f} %. {skipped} skip themselves.\n")
    print("| file | passed |\n|---|---|")
    for file, n in passed.items():
        print(f"| {file} | {n} |")
    print("\n## Failing\n\n| test | why |\n|---|---|")
    for name, why in failed:
        print(f"| `{text(name)}` | {text(why)} |")
    print("\n## Not offered\n\n| what | tests |\n|---|---|")
    for what, n in sorted(not_offered.items()):
        print(f"| {what} | {n} |")
    print("\n## About the tests' own models\n\nLengths in tokens, texts of a template's tokens, files.")
    print("\n| test | what llama.cpp's server says |\n|---|---|")
    for name, why in models:
        print(f"| `{text(name)}` | {text(why)} |")


main()
