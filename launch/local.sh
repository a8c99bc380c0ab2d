#!/usr/bin/env bash
# One machine: CPU, GPUs or a TPU VM. Makes .venv, installs what is missing, runs mim_jax with the same arguments:
#   ./launch/local.sh --config=configs/mapet.py
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/environment.sh
install_into_venv requirements.txt
tune_environment
exec .venv/bin/python -m mim_jax.main "$@"
