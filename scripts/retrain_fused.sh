#!/usr/bin/env bash
# Win back what fusion costs a trained model: a few epochs at a small rate, with the model itself, unfused, as the teacher
# (after R-MeeTo, arXiv 2412.12496, written from its description).
#
#   bash scripts/retrain_fused.sh output/fmnist/checkpoint.pth -- --fusion-strategy all --fusion-cost 0.7
#
# Model, data, batch and augmentation are those of args.json beside the checkpoint. Flags after -- go to main.py and come
# last, so they win; name the fusion there. From the environment come
#   EPOCHS   1 to 3 are usual; 3
#   LR       the rate at the start, scaled as the run's; a tenth of the run's
#   ALPHA    the teacher's share of the loss; 0.9
#   GPUS     processes, one a GPU; as many as PyTorch finds, or 1
#   OUTPUT   where the run goes; the checkpoint's directory with -retrained after its name
# The same command continues after an interruption.
if [ $# -lt 3 ] || [ "$2" != -- ]; then
    echo "usage: bash $0 CHECKPOINT -- FUSION FLAGS, such as --fusion-strategy all --fusion-cost 0.7" >&2
    exit 2
fi
checkpoint="$(realpath -m -- "$1")"
run="$(dirname "$checkpoint")"
output="$(realpath -m "${OUTPUT:-$run-retrained}")"
shift 2
for file in "$checkpoint" "$run/args.json"; do
    if [ ! -f "$file" ]; then
        echo "$0: there is no file $file; the checkpoint must lie in its run's directory" >&2
        exit 2
    fi
done
source "$(dirname "${BASH_SOURCE[0]}")/tables.sh"
table=retrain_fused
bash scripts/setup.sh
GPUS="${GPUS:-$(.venv/bin/python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
told="$(.venv/bin/python -c 'import json, sys; r = json.load(open(sys.argv[1])); print(r["model"], r["lr"] / 10)' "$run/args.json")"
train --config "$run/args.json" --finetune "$checkpoint" --output_dir "$output" \
    --epochs "${EPOCHS:-3}" --lr "${LR:-${told#* }}" --sched cosine --sched-on-updates --warmup-epochs 0 --min-lr 0 \
    --no-cosub --distillation-type soft --teacher-model "${told% *}" --teacher-path "$checkpoint" \
    --distillation-alpha "${ALPHA:-0.9}" "$@"
