# What the scripts that train a table share; they source this file, say what differs, and call train_table "$@".
#
# A script sets `table`, its name; `recipe`, the flags of all its runs; `names`, its rows in order; `fusion[NAME]`, the
# flags of each; and may set the defaults below. From the environment come
#   GPUS     processes, one a GPU; as many as PyTorch finds, or 1
#   DATA     where the images are
#   OUTPUT   where the runs go, each in a directory of its own: output/TABLE/NAME-seedS
#   SEEDS    one run of each row for every seed
#   HEAD     where several machines meet: the name or address of one of them; each runs the same command, on shared files
#   NODES    how many machines; PORT, the first port by which they meet (29500), one more for each run
# Relative paths start at the project's directory, wherever the command is given.
# Flags after -- go to main.py last and override the table's. Such runs are not the table's, so OUTPUT must name a place
# for them. A run that was interrupted continues, and one that is done is left alone: the same command starts the table
# and finishes it after an interruption.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

SEEDS="${SEEDS:-0}"

# The paper's setting (arXiv 2409.09808, section 4): 4 GPUs, and as many tokens fused by every strategy, of 196 patches.
paper_recipe=(--epochs 300 --batch-size 128 --drop-path 0.0 --weight-decay 0.1 --num_workers 25 --no_amp --dist-eval)
cifar_recipe=(--data-set CIFAR --data-path "${DATA:-datasets}" --download "${paper_recipe[@]}")
names=(no all interleaved lower upper)
declare -A fusion=(
    [no]="--fusion-strategy no"
    [all]="--fusion-strategy all --fusion-token 7"                            # 24 x 7 = 168
    [interleaved]="--fusion-strategy interleaved --fusion-token 14"           # 12 x 14 = 168
    [lower]="--fusion-strategy lower --fusion-layer 18 --fusion-token 9"      # 18 x 9 = 162
    [upper]="--fusion-strategy upper --fusion-layer 6 --fusion-token 9"       # 18 x 9 = 162
)

# Three epochs of Fashion-MNIST on a CPU.
fashion_recipe=(
    --device cpu --model vim_nano_patch4_32 --input-size 28 --data-set FMNIST ${DATA:+--data-path "$DATA"}
    --recipe short --epochs 3 --opt-betas 0.9 0.95 --no-aug --smoothing 0 --num_workers 0 --no_amp --save-steps 200
)

usage() {
    echo "usage: bash $0 NAME|table [-- FLAGS OF main.py]; NAME is one of: ${names[*]}" >&2
    exit 2
}

train_table() { # NAME|table [-- FLAGS...]
    local chosen="${1:-}" seed name
    [[ "$chosen" = table || -v fusion["$chosen"] ]] 2> /dev/null || usage
    [ $# -eq 1 ] || [ "$2" = -- ] || usage
    [ "$chosen" = table ] || names=("$chosen")
    shift $(($# > 1 ? 2 : 1))
    if [ $# -gt 0 ] && [ -z "${OUTPUT:-}" ]; then
        echo "$0: with flags after --, say where the runs go: OUTPUT=output/trial bash $0 ..." >&2
        exit 2
    fi
    OUTPUT="${OUTPUT:-output/$table}"
    bash scripts/setup.sh
    GPUS="${GPUS:-$(.venv/bin/python -c 'import torch; print(max(1, torch.cuda.device_count()))')}"
    for seed in $SEEDS; do
        for name in "${names[@]}"; do
            echo "== $table, $name, seed $seed"
            # shellcheck disable=SC2086 # the flags of a row are words
            train "${recipe[@]}" ${fusion[$name]} --seed "$seed" --output_dir "$OUTPUT/$name-seed$seed" "$@"
        done
    done
    [ "${SLURM_NODEID:-0}" != 0 ] || .venv/bin/python scripts/summarize.py "$OUTPUT"
}

# Bash would die of a SIGTERM, as SLURM sends it, before the training has saved: pass it on, and wait for that. In a
# session of its own the training doesn't get Ctrl-C a second time, straight from the terminal.
train() {
    local launcher="" stopped="" code=0 meeting=(--standalone)
    if [ -n "${HEAD:-}" ]; then
        PORT="${PORT:-29500}"
        meeting=(--nnodes="$NODES" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="$table-$PORT")
        PORT=$((PORT + 1)) # the next run can't meet what is left of this one
    fi
    trap 'stopped=yes; [ -z "$launcher" ] || kill -TERM "$launcher"' TERM INT
    setsid .venv/bin/python -m torch.distributed.run "${meeting[@]}" --nproc-per-node="$GPUS" \
        main.py --auto-resume "$@" &
    launcher=$!
    [ -z "$stopped" ] || kill -TERM "$launcher"
    wait "$launcher" || code=$?
    while kill -0 "$launcher" 2> /dev/null; do wait "$launcher" || code=$?; done
    trap - TERM INT
    return "$code"
}
