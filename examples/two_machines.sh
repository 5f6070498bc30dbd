#!/bin/bash
# One run on two machines with two GPUs each. Both need the same code, packages, data_dir and
# out_dir (a file system that they share). Start it on both, with the name of the first:
#
#     examples/two_machines.sh FIRST_MACHINE config/partial_reverse.py
set -eu
first=${1:?usage: two_machines.sh FIRST_MACHINE CONFIG}
shift
source "${VENV:-.venv}/bin/activate"
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1  # torch 2.13 does not always reconnect without it
exec torchrun --nnodes=2 --nproc_per_node="${PROCESSES:-2}" --max-restarts=3 \
    --rdzv_backend=c10d --rdzv_endpoint="$first:29400" --rdzv_id=impossible-gpt2 train.py "$@"
