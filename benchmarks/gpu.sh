#!/usr/bin/env bash
# Ten minutes on one large GPU: tests, speed, and CIFAR-10 at real size. Not yet run on a GPU.
#
#     bash benchmarks/gpu.sh results/gpu                           # downloads CIFAR-10; other flags go to the examples
#     bash benchmarks/gpu.sh results/gpu --data folder --data-dir cifar10-jpeg
#     QUICK=1 bash benchmarks/gpu.sh results/quick                 # tiny sizes, also without a GPU
#
# Every part has a limit in seconds. Finished parts are kept, in at most eight files.
set -uo pipefail
cd "$(dirname "$0")/.."
out=$(realpath -m "${1:?folder for the results}") work=$(mktemp -d) python=${PYTHON:-python}
mkdir -p "$out"
export PYTHONPATH=src${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1
device=$("$python" -c "import torch; print('cuda' if torch.cuda.is_available() else 'cpu')")
if [[ -n ${QUICK:-} ]]; then
  quick=(--quick --repeats 1) labels=1.0 slower=10
  examples=(--data embedded --arch quickstart --limit 60 --test-limit 20 --batch-size 20 --epochs 1 --device "$device")
else
  quick=(--repeats 5) labels=0.01 slower=1
  examples=(--data cifar10 --amp bf16 --epochs 10 --device "$device")
fi
examples+=(--seed 1 "${@:2}")

part() { # limit, name, command: what it leaves is kept as soon as it ends
  local started=$SECONDS status=0
  # A compilation that is cut off leaves damaged files in its cache.
  TORCHINDUCTOR_CACHE_DIR="$work/$2.inductor" timeout $((slower * $1)) "$python" "${@:3}" > "$work/$2.txt" 2>&1 || status=$?
  echo "$2: status $status after $((SECONDS - started)) s
$(tail -n 200 "$work/$2.txt")" | tee -a "$out/log.txt"
  if [[ -e $work/$2/card.json ]]; then cat "$work/$2/card.json" >> "$out/cards.json"; fi
}
trap 'rm -rf "$work"' EXIT

# Speed: the GPU is not shared.
part 150 step -m benchmarks.run step --device "$device" "${quick[@]}" --out "$out"
part 80 end_to_end -m benchmarks.run end_to_end --device "$device" "${quick[@]}" --out "$out"
part 40 losses-and-views -m benchmarks.run nt_xent views --device "$device" "${quick[@]}" --out "$out"

# Tests and pre-training side by side: each is bound by its own process on the host.
part 200 pretrain-DS examples/cifar/pretrain.py "${examples[@]}" --mode DS --out "$work/pretrain-DS" &
part 200 pretrain-S2S examples/cifar/pretrain.py "${examples[@]}" --mode S2S --out "$work/pretrain-S2S" &
mapfile -t tests < <(grep -rl --include="*.py" "mark.gpu" tests)
part 100 tests -m pytest "${tests[@]}" -o addopts= -m gpu -p no:cacheprovider -q --tb=short
wait

# Fine-tuning of the encoders: 1 % of the labels, TRADES, PGD-20 on all test images.
for mode in random S2S DS; do
  encoder=$([[ $mode == random ]] && echo random || echo "$work/pretrain-$mode/final.safetensors")
  branch=$([[ $mode == DS ]] && echo adv || echo clean)
  part 100 finetune-$mode examples/cifar/finetune.py "${examples[@]}" --encoder "$encoder" --branch "$branch" \
    --labels "$labels" --out "$work/finetune-$mode" &
done
wait
