#!/usr/bin/env bash
# Vim-Ti on ImageNet-1k: bash scripts/imagenet_vim_tiny.sh upper, or table for all strategies. DATA holds train/ and val/.
# GPUS, DATA, OUTPUT, SEEDS and flags after -- are explained in scripts/tables.sh.
source "$(dirname "$0")/tables.sh"
table=imagenet_vim_tiny
recipe=(--model vim_tiny_patch16_224 --data-set IMNET --data-path "${DATA:-datasets/imagenet}" "${paper_recipe[@]}")
train_table "$@"
