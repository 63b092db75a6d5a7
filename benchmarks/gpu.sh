#!/usr/bin/env bash
# What only a machine with a GPU can show: the tests marked `gpu`, what steps cost there, and FixMatch on CIFAR-10 at its
# published settings. Results go where the tables of README and docs read them: benchmarks/results.
#
#   bash benchmarks/gpu.sh              # a day or two on one GPU; the same command goes on where it was stopped
#   bash benchmarks/gpu.sh --dry-run    # on any machine: collects the tests, plans the suite, trains nothing
#
# data.path=FOLDER after that names CIFAR-10's folder; else it is downloaded. Nothing of this has been run on a GPU yet.
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
dry=""
if [ "${1:-}" = "--dry-run" ]; then
    dry=--dry-run
    shift
elif ! "$python" -c "import sys, torch; sys.exit(not torch.cuda.is_available())"; then
    echo "gpu.sh: no GPU here; --dry-run checks what can be checked without one" >&2
    exit 2
fi

say() { printf '\n== %s\n' "$1"; }

say "tests marked gpu"
"$python" -m pytest -q -m gpu ${dry:+--collect-only} tests

say "what steps cost: benchmarks/results/throughput_gpu.json and .md"
"$python" benchmarks/throughput.py --to throughput_gpu ${dry:+--list}

say "CIFAR-10: FixMatch at published settings, the labels alone next to it"
"$python" -m semisup bench cifar10/published $dry "$@"
if [ -z "$dry" ]; then
    "$python" benchmarks/publish.py runs/cifar10-published
fi
