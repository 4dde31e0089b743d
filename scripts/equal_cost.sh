#!/usr/bin/env bash
# What loses least at one price: the model and the images of scripts/fmnist_cpu.sh, where every row but the first costs
# about 0.7 of the multiply-adds of no fusion. The plan of searched is what scripts/search_plan.py found for a model
# that was trained without fusion (docs/results.md); smaller has eight layers instead of twelve. Hours on 2 cores.
#
#   bash scripts/equal_cost.sh table
#
# DATA is not needed if Debian's dataset-fashion-mnist is installed. OUTPUT, SEEDS and flags after -- are explained in
# scripts/tables.sh.
GPUS=1 SEEDS="${SEEDS:-0 1 2}"
source "$(dirname "$0")/tables.sh"
table=equal_cost
recipe=("${fashion_recipe[@]}" --val-interval 3)
names=(no smaller all interleaved lower upper searched)
fusion=(
    [no]="--fusion-strategy no"
    [smaller]="--model-kwargs depth=8"
    [all]="--fusion-strategy all --fusion-cost 0.7"
    [interleaved]="--fusion-strategy interleaved --fusion-cost 0.7"
    [lower]="--fusion-strategy lower --fusion-layer 6 --fusion-cost 0.7"
    [upper]="--fusion-strategy upper --fusion-layer 5 --fusion-schedule decreasing --fusion-cost 0.7" # no later K can
    [searched]="--fusion-plan 0,0,0,0,0,5,16,12,7,4,1,0"
)
train_table "$@"
