#!/usr/bin/env bash
# Everything that needs a GPU: tests and timings, with bfloat16. Results go to $1.
#
#     bash benchmarks/gpu.sh results-gpu                           # about half an hour on one large GPU: not yet run
#     bash benchmarks/gpu.sh results-gpu --quick                   # tiny sizes, also without a GPU
set -uo pipefail
cd "$(dirname "$0")/.."
export PYTHONPATH=src
out=${1:?folder for the results}
mkdir -p "$out"
device=$(python -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")

python -m pytest -m gpu -p no:cacheprovider -q | tee "$out/tests.txt"
for name in step end_to_end nt_xent mixed pgd trades views; do
  python -m benchmarks.run "$name" --device "$device" --out "$out" "${@:2}" || echo "$name failed" | tee -a "$out/failed.txt"
done
