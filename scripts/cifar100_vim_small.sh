#!/usr/bin/env bash
# Vim-S on CIFAR-100, the paper's second table: bash scripts/cifar100_vim_small.sh upper, or table for all strategies.
# GPUS, DATA, OUTPUT, SEEDS and flags after -- are explained in scripts/tables.sh.
source "$(dirname "$0")/tables.sh"
table=cifar100_vim_small
recipe=(--model vim_small_patch16_224 "${cifar_recipe[@]}")
train_table "$@"
