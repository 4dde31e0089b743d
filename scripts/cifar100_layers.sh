#!/usr/bin/env bash
# Where upper and lower begin: Vim-Ti on CIFAR-100, 168 tokens fused in the layers below K, or in K and above, for several K.
#
#   bash scripts/cifar100_layers.sh table                           # all
#   KS="6 18" bash scripts/cifar100_layers.sh upper6
#
# KS names the layers, 6 9 12 15 18 if not set; GPUS, DATA, OUTPUT, SEEDS and flags after -- are explained in
# scripts/tables.sh.
source "$(dirname "$0")/tables.sh"
table=cifar100_layers
recipe=(--model vim_tiny_patch16_224 "${cifar_recipe[@]}")
names=(no)
fusion=([no]="--fusion-strategy no")
for k in ${KS:-6 9 12 15 18}; do
    names+=("lower$k" "upper$k")
    fusion["lower$k"]="--fusion-strategy lower --fusion-layer $k --fusion-total 168"
    fusion["upper$k"]="--fusion-strategy upper --fusion-layer $k --fusion-total 168"
done
train_table "$@"
