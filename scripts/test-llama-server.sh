#!/usr/bin/env bash
# llama.cpp's own tests of its server, run against ours:
#     scripts/test-llama-server.sh LLAMA_CPP [PYTEST-OPTION...]
# LLAMA_CPP is a checkout of llama.cpp's source. Needs the models smollm2-135m, qwen2.5-coder-0.5b and
# gemma3-270m (`aether pull`), which stand in for those of the tests. With LLAMA_SERVER_REFERENCE set
# to llama.cpp's own server the same tests run against that: what it fails too is due to the models.
# Outcomes go to target/llama-server/OURS.json or REFERENCE.json; tests/llama_server/report.py makes
# docs/llama-server-tests.md of the two.
set -euo pipefail
cd "$(dirname "$0")/.."
source=$(realpath "${1:?where is the source of llama.cpp?}")
shift

venv=target/llama-server/venv
mkdir -p target/llama-server
if ! "$venv/bin/pip" --version >/dev/null 2>&1; then python3 -m venv "$venv"; fi
"$venv/bin/pip" install -q --disable-pip-version-check -r tests/llama_server/requirements.txt

if [ -n "${LLAMA_SERVER_REFERENCE:-}" ]; then name=REFERENCE; else
  name=OURS
  [ -n "${AETHER_SERVER:-}" ] || cargo build --locked -q -p aether-tools --bin aether-server
fi
export LLAMA_SERVER_BIN_PATH=$PWD/tests/llama_server/launch.py
export LLAMA_SERVER_MODELS=${LLAMA_SERVER_MODELS:-${AETHER_HOME:-$HOME/.aether}/models}
export LLAMA_SERVER_OUTCOMES=$PWD/target/llama-server/$name.json
export PYTHONPATH=$PWD/tests/llama_server PYTHONDONTWRITEBYTECODE=1 PORT=${PORT:-18080}
python=$PWD/$venv/bin/python
cd "$source/tools/server/tests"
exec "$python" -m pytest -p plugin -p no:cacheprovider -q --tb=line --timeout=60 -m "not slow" "$@"
