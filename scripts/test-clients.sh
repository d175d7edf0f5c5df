#!/usr/bin/env bash
# The clients that people use, unchanged, against the running server: the Python packages of OpenAI,
# Anthropic and Ollama.
# Builds the server, installs the clients into target/clients, and runs tests/clients/*.py.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=target/clients
if ! "$venv/bin/pip" --version >/dev/null 2>&1; then python3 -m venv "$venv"; fi
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/clients/requirements.txt

cargo build --locked -q -p aether-tools
log=$(mktemp)
target/debug/aether-server --port 0 --cpu-only --max-concurrency 4 -c 1024 --max-tokens 512 \
    --api-key sk-clients 2>"$log" &
server=$!
trap 'kill "$server" 2>/dev/null || true; rm -f "$log"' EXIT
for _ in $(seq 600); do
    address=$(sed -n 's|.* on \(http://.*\)|\1|p' "$log")
    [ -n "$address" ] && break
    kill -0 "$server" 2>/dev/null || { cat "$log"; exit 1; }
    sleep 0.1
done
for client in tests/clients/*_client.py; do
    echo "$client"
    "$venv/bin/python" "$client" "$address" sk-clients || { cat "$log"; exit 1; }
done

# SIGTERM drains: the server ends by itself, and well.
kill -TERM "$server"
wait "$server"
