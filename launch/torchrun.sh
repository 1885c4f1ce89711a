#!/usr/bin/env bash
# A verb on several processes by torchrun, one for each GPU, where there is no SLURM.
#   launch/torchrun.sh 4 fit --config conf/cifar_edm.yaml
# On several machines the same command on each, with the first one's name and a free port of it:
#   NODES=2 MASTER=host0:29500 launch/torchrun.sh 4 fit --config conf/cifar_edm.yaml
# On CPUs add trainer.accelerator=cpu. If a process ends, torchrun ends the others and says which.
set -euo pipefail
processes=${1:?how many processes on this machine} verb=${2:?a verb, such as fit}
if [[ ${NODES:-1} == 1 ]]; then
    meeting=(--standalone)
else
    meeting=(--nnodes "$NODES" --rdzv-backend c10d --rdzv-id lightning_cfg
             --rdzv-endpoint "${MASTER:?host:port of the first machine}")
fi
exec python -m torch.distributed.run "${meeting[@]}" --nproc-per-node "$processes" \
    -m "lightning_cfg.$verb" "${@:3}"
