#!/usr/bin/env bash
# A Cloud TPU slice from a laptop: created if it is not there, this checkout copied and installed on all its workers, the run started
# on all of them, the first one's log followed, and all of it again after a preemption. Needs gcloud; the run's directory in a bucket.
#   TPU_ZONE=us-west4-a TPU_TYPE=v5litepod-16 launch/tpu_pod.sh NAME --config=configs/mae.py:imagenet --workdir=gs://BUCKET/mae
#   launch/tpu_pod.sh --dry-run NAME ...    prints every command instead
# Also read: TPU_PROJECT (gcloud's own), TPU_VERSION (the VM's image, v2-alpha-tpuv5-lite), TPU_SPOT=1 (cheaper, may be taken away).
# The slice is left as it is: gcloud compute tpus tpu-vm delete NAME --zone ZONE
set -euo pipefail
cd "$(dirname "$0")/.."
dry=""
[ "${1:-}" != --dry-run ] || { dry=1; shift; }
name="${1:?usage: TPU_ZONE=... TPU_TYPE=... launch/tpu_pod.sh [--dry-run] NAME --config=... --workdir=gs://...}"
shift
zone="${TPU_ZONE:?set TPU_ZONE, for example us-west4-a}"
type="${TPU_TYPE:?set TPU_TYPE, for example v5litepod-16}"
where=(--zone "$zone" ${TPU_PROJECT:+--project "$TPU_PROJECT"})
arguments=$(printf ' %q' "$@")

run() {
  if [ -n "$dry" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

on_all_workers() { # COMMAND
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all --command "$1"
}

state() {
  [ -n "$dry" ] || gcloud compute tpus tpu-vm describe "$name" "${where[@]}" --format='value(state)' 2>/dev/null || true
}

while true; do
  case "$(state)" in
    READY) ;;
    PREEMPTED | TERMINATED) run gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet ;;&
    *)
      run gcloud compute tpus tpu-vm create "$name" "${where[@]}" --accelerator-type "$type" \
        --version "${TPU_VERSION:-v2-alpha-tpuv5-lite}" ${TPU_SPOT:+--spot}
      ;;
  esac
  archive=$(mktemp)
  run git archive --format=tar.gz --output="$archive" HEAD # what is committed, and nothing else
  run gcloud compute tpus tpu-vm scp "$archive" "$name:mim_jax.tar.gz" "${where[@]}" --worker=all
  rm -f "$archive"
  on_all_workers "mkdir -p mim_jax && tar -xzf mim_jax.tar.gz -C mim_jax && cd mim_jax && ./launch/local.sh --help >/dev/null && .venv/bin/pip install --quiet 'jax[tpu]' gcsfs"
  # All workers run the same command; jax finds the others by itself. The first one's output is followed.
  code=0
  on_all_workers "cd mim_jax && ./launch/local.sh$arguments" || code=$?
  [ "$code" != 0 ] || exit 0
  # Only a run that was asked to stop (75), or a slice that was taken away, starts again.
  if [ "$code" != 75 ] && [ "$(state)" = READY ]; then exit "$code"; fi
  echo "mim_jax: the slice was preempted; starting again" >&2
  sleep 30
done
