#!/usr/bin/env bash
# Vim-Ti on CIFAR-100, the paper's first table: bash scripts/cifar100_vim_tiny.sh upper, or table for all strategies.
# GPUS, DATA, OUTPUT, SEEDS and flags after -- are explained in scripts/tables.sh.
source "$(dirname "$0")/tables.sh"
table=cifar100_vim_tiny
recipe=(--model vim_tiny_patch16_224 "${cifar_recipe[@]}")
train_table "$@"
