#!/usr/bin/env bash
# Check a machine with a GPU, without network: what runs, how exact, how fast, and that a training learns.
#
#   bash scripts/gpu_check.sh                      all parts, meant to take under 8 minutes, into output/gpu_check
#   bash scripts/gpu_check.sh doctor tests scan    some of them; each part ends within 10 minutes
#   bash scripts/gpu_check.sh --interpret          on a CPU, at tiny sizes: tries the script, not the GPU
#
# Parts: doctor (python -m ssm), tests (tests/gpu), scan and train (scripts/bench_gpu.py), fmnist (five strategies, an
# epoch each on Fashion-MNIST at 224 pixels). A part that was done before is done again. From the environment come
#   OUTPUT   where logs and figures go; output/gpu_check if not given
#   DATA     the folder with Fashion-MNIST's four files; without it fmnist looks where Debian's package puts them
#   PYTHON   the interpreter; .venv's if there is one, else python3
#   EPOCHS, STRATEGIES   of fmnist; 1, and no all interleaved lower upper if not given
# The last lines say what passed; the exit code is 1 if anything failed.
set -uo pipefail
cd "$(dirname "$0")/.."

OUTPUT="${OUTPUT:-output/gpu_check}"
if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ ! -x .venv/bin/python ] || PYTHON=.venv/bin/python
fi
all_parts=(doctor tests scan train fmnist)
parts=()
interpret=""
for word in "$@"; do
    case "$word" in
        --interpret) interpret=yes ;;
        doctor | tests | scan | train | fmnist) parts+=("$word") ;;
        *)
            echo "usage: bash $0 [--interpret] [${all_parts[*]}]" >&2
            exit 2
            ;;
    esac
done
[ "${#parts[@]}" -gt 0 ] || parts=("${all_parts[@]}")
if [ -z "$interpret" ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "$0: PyTorch finds no CUDA GPU; --interpret tries the script without one" >&2
    exit 2
fi
mkdir -p "$OUTPUT"

doctor() {
    nvidia-smi || true
    "$PYTHON" -m ssm ${interpret:+--batch 1 --length 9 --channels 16 --rounds 1}
}

tests() {
    if ! "$PYTHON" -c 'import pytest'; then
        echo "the tests need pytest, pytest-timeout and hypothesis: pip install -r test_requirements.txt"
        return 1
    fi
    ${interpret:+env TRITON_INTERPRET=1} "$PYTHON" -m pytest tests/gpu -p no:cacheprovider
}

scan() {
    ${interpret:+env TRITON_INTERPRET=1} "$PYTHON" scripts/bench_gpu.py scan --json "$OUTPUT/scan.json" \
        ${interpret:+--device cpu --runs 1 --shapes 1x3x8x4}
}

train() {
    local sizes=(--compile)
    [ -z "$interpret" ] || sizes=(--device cpu --runs 1 --models vim_pico_patch2_8 --batch-size 2 --fuse)
    "$PYTHON" scripts/bench_gpu.py train --json "$OUTPUT/train.json" "${sizes[@]}"
}

# As many tokens of 24 layers fused by every strategy, as in scripts/tables.sh; the tiny ones for --interpret.
declare -A plans=([no]="" [all]="7" [interleaved]="14" [lower]="9 --fusion-layer 18" [upper]="9 --fusion-layer 6")
declare -A tiny=([no]="" [all]="1" [interleaved]="2" [lower]="2 --fusion-layer 4" [upper]="2 --fusion-layer 4")

fmnist() {
    local flags=(--model vim_tiny_patch16_224 --batch-size 128 --num_workers 16 --no-aug --smoothing 0)
    [ -z "$interpret" ] || flags=(--device cpu --model vim_pico_patch2_8 --batch-size 32 --num_workers 0 --no-aug)
    local name plan failed=0
    for name in ${STRATEGIES:-no all interleaved lower upper}; do
        plan="${plans[$name]}"
        [ -z "$interpret" ] || plan="${tiny[$name]}"
        # shellcheck disable=SC2086 # a plan is words
        "$PYTHON" main.py --data-set FMNIST ${DATA:+--data-path "$DATA"} "${flags[@]}" --recipe short \
            --epochs "${EPOCHS:-1}" --fusion-strategy "$name" ${plan:+--fusion-token $plan} \
            --output_dir "$OUTPUT/fmnist/$name" || failed=1
    done
    "$PYTHON" scripts/summarize.py "$OUTPUT/fmnist" || failed=1
    return "$failed"
}

# Parts run in a group of processes of their own, so that a part that hangs ends with all that it started.
export OUTPUT PYTHON interpret
summary=()
failed=0
for part in "${parts[@]}"; do
    echo "== $part (log: $OUTPUT/$part.log)"
    start=$SECONDS
    rm -rf "${OUTPUT:?}/$part" "$OUTPUT/$part.json"
    timeout --kill-after=10 590 bash -c "$(declare -f "$part"); $(declare -p plans tiny); $part" 2>&1 | tee "$OUTPUT/$part.log"
    code=${PIPESTATUS[0]}
    result=passed
    [ "$code" -eq 0 ] || { result="FAILED (exit code $code)"; failed=1; }
    summary+=("$(printf '| %-7s | %-22s | %5d s |' "$part" "$result" $((SECONDS - start)))")
done
echo
printf '%s\n' "| part    | result                 | time    |" "| --- | --- | --- |" "${summary[@]}" | tee "$OUTPUT/summary.md"
exit "$failed"
