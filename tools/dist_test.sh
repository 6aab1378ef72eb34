#!/usr/bin/env bash
# Test on several GPUs of one or more machines, or with several processes on CPUs.
# Usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]
# Environment: NNODES, NODE_RANK, MASTER_ADDR, PORT for several machines; PYTHON.
set -euo pipefail

if [[ $# -lt 3 || ! "$3" =~ ^([0-9]+|auto|gpu|cpu)$ ]]; then
    echo 'error: usage: tools/dist_test.sh CONFIG CHECKPOINT GPUS [flags of tools/test.py]' >&2
    exit 2
fi

exec "${PYTHON:-python}" -m torch.distributed.run \
    --nnodes="${NNODES:-1}" \
    --node-rank="${NODE_RANK:-0}" \
    --master-addr="${MASTER_ADDR:-127.0.0.1}" \
    --master-port="${PORT:-29500}" \
    --nproc-per-node="$3" \
    "$(dirname "$0")/test.py" "$1" "$2" --launcher pytorch "${@:4}"
