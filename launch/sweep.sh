#!/usr/bin/env bash
#SBATCH --job-name=sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --output=%x_%j.log
# Runs of a W&B sweep, one after the other, until there are none left or the time is up.
#   wandb sweep launch/sweep_guidance.yaml               says the sweep's name, ENTITY/PROJECT/ID
#   sbatch launch/sweep.sh ENTITY/PROJECT/ID             as often as there are GPUs to spare
# One agent in this script asks for the values; every run that it starts goes by srun (the file
# `python` below), so that it has all the job's tasks, and not one agent per task.
# Without W&B's server, the same as an array, a run per task (15 runs, at most 4 at a time):
#   sbatch --array=0-14%4 launch/sweep.sh launch/sweep_guidance.yaml
# and afterwards the table:   python -m lightning_cfg.sweep launch/sweep_guidance.yaml --report
set -euo pipefail
sweep=${1:?name a W&B sweep, ENTITY/PROJECT/ID, or with --array a sweep file}
cd "${SLURM_SUBMIT_DIR:-$PWD}"

if [[ $sweep == *.yaml ]]; then
    exec srun python -m lightning_cfg.sweep "$sweep" --index "${SLURM_ARRAY_TASK_ID:?needs --array}" "${@:2}"
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python=$(command -v python)
printf '#!/bin/sh\nexec srun --kill-on-bad-exit=1 "%s" "$@"\n' "$python" >"$folder/python"
chmod +x "$folder/python"
PATH=$folder:$PATH "$python" -m wandb agent "$sweep" "${@:2}"
