#!/usr/bin/env bash
# The tests, with the same set-up as launch/local.sh: ./launch/test.sh [arguments of pytest]
# MIM_JAX_ORACLES=1 installs torch and transformers as well, which more tests compare with.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
files=(requirements.txt requirements-test.txt)
[ -z "${MIM_JAX_ORACLES:-}" ] || files+=(requirements-oracles.txt)
install_into_venv "${files[@]}"
tune_environment
exec .venv/bin/python -m pytest "$@"
