#!/usr/bin/env bash
# The tests, with the same set-up as launch/local.sh: ./launch/test.sh [arguments of pytest]
# MIM_JAX_ORACLES=1 installs torch and transformers as well, which more tests compare with, and the compiler for TPUs.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
files=(requirements.txt requirements-test.txt)
[ -z "${MIM_JAX_ORACLES:-}" ] || files+=(requirements-oracles.txt requirements-tpu.txt)
install_into_venv "${files[@]}"
tune_environment
# Two processes, each takes whole files, the longest first (tests/conftest.py): compilation, which most of the time goes into,
# uses one core. A later -n 0 among the arguments switches that off.
exec .venv/bin/python -m pytest -n "${MIM_JAX_TEST_PROCESSES:-2}" --dist loadfile --no-loadscope-reorder "$@"
