#!/usr/bin/env bash
# The paper's question on a CPU and real images: a Vim of half a million parameters, 12 layers and 49 patches on all of
# Fashion-MNIST, every strategy fusing 36 patches and upper also half as many. About two hours on 2 cores.
#
#   bash scripts/fmnist_cpu.sh table
#
# DATA is not needed if Debian's dataset-fashion-mnist is installed. OUTPUT, SEEDS and flags after -- are explained in
# scripts/tables.sh.
GPUS=1 SEEDS="${SEEDS:-0 1}"
source "$(dirname "$0")/tables.sh"
table=fmnist_cpu
recipe=("${fashion_recipe[@]}")
names=(no all interleaved lower upper upper-half)
fusion=(
    [no]="--fusion-strategy no"
    [all]="--fusion-strategy all --fusion-token 3"
    [interleaved]="--fusion-strategy interleaved --fusion-token 6"
    [lower]="--fusion-strategy lower --fusion-layer 6 --fusion-token 6"
    [upper]="--fusion-strategy upper --fusion-layer 6 --fusion-token 6"
    [upper-half]="--fusion-strategy upper --fusion-layer 6 --fusion-token 3"
)
train_table "$@"
