# shellcheck shell=bash
# Sourced by the other scripts: a virtual environment with what is needed, and the process environment that pays.
# install_into_venv FILE... : makes .venv where there is none and installs the requirement files and this package, once per content.
# tune_environment          : compilation cache; on CPU also the memory and XLA settings that were measured to pay.

find_python() {
  for candidate in "${PYTHON:-}" python3.12 python3.11 python3.13 python3 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "mim_jax: Python 3.11 or later was not found; install it, or name it: PYTHON=/path/to/python $0" >&2
  exit 2
}

# jax's build for the accelerator of this machine, if there is one.
jax_build() {
  if command -v nvidia-smi >/dev/null 2>&1 && nvidia-smi -L 2>/dev/null | grep -q GPU; then
    # CUDA 13 needs driver 580 or later; older drivers get the CUDA 12 build.
    major=$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1 | cut -d. -f1)
    if [ "${major:-0}" -ge 580 ]; then echo "jax[cuda13]"; else echo "jax[cuda12]"; fi
  elif ls /dev/accel0 /dev/vfio/0 >/dev/null 2>&1 && [ -n "${TPU_NAME:-}${TPU_WORKER_ID:-}${ACCELERATOR_TYPE:-}" ]; then
    echo "jax[tpu]"
  fi
}

install_into_venv() {
  python=$(find_python)
  [ -x .venv/bin/python ] || "$python" -m venv .venv || exit 2
  extra=$(jax_build)
  wanted=$({ cat "$@" pyproject.toml setup.py; echo "$extra" "$PWD"; .venv/bin/python -V; } | cksum)
  stamp=.venv/installed-$(echo "$*" | tr -c 'a-z0-9\n' '-')
  if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
    echo "mim_jax: installing $* ${extra:+and $extra }into .venv (about a minute, 1.3 GB; once)" >&2
    files=()
    for file in "$@"; do files+=(-r "$file"); done
    .venv/bin/python -m pip install --quiet --disable-pip-version-check "${files[@]}" ${extra:+"$extra"} || exit 2
    # The package itself, as it lies here: `import mim_jax` and `--config=mapet` work in any directory.
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --editable . || exit 2
    echo "$wanted" >"$stamp"
  fi
  PATH="$PWD/.venv/bin:$PATH"
}

tune_environment() {
  export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$PWD/.cache/jax}"
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"
  [ -n "$(jax_build)" ] && return
  # XLA's temporary buffers stay mapped between steps; mapping them anew took up to a third of a step (docs/results/cost.md). It takes
  # all three: the arenas of threads are unmapped whatever the threshold. glibc reads them when the process starts.
  export MALLOC_ARENA_MAX=1 MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=-1
  # Known to jaxlib 0.10.2 only; another version aborts on an unknown value.
  if .venv/bin/python -c 'import jaxlib, sys; sys.exit(jaxlib.__version__ != "0.10.2")'; then
    export XLA_FLAGS="${XLA_FLAGS:-} --xla_cpu_experimental_ynn_fusion_type=reduce --xla_cpu_prefer_vector_width=512"
  fi
}
