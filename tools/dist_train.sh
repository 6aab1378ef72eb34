#!/usr/bin/env bash
# Train on several GPUs of one or more machines, or with several processes on CPUs.
# Usage: tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON.
set -euo pipefail

if [[ $# -lt 2 || ! "$2" =~ ^([0-9]+|auto|gpu|cpu)$ ]]; then
    echo 'error: usage: tools/dist_train.sh CONFIG GPUS [flags of tools/train.py]' >&2
    exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$2" \
    "$(dirname "$0")/train.py" "$1" --launcher pytorch "${@:3}"
