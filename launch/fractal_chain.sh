#!/usr/bin/env bash
# Every verb by hand, from file to file, on the 2-D fractal: what `study` does in one process.
# Arguments go to the two trainings, e.g.  launch/fractal_chain.sh trainer.max_steps=500
set -euo pipefail
cd "$(dirname "$0")/.."
verb() { python -m "lightning_cfg.$1" --config "conf/fractal_$2.yaml" "${@:3}"; }

verb fit base "$@"
verb generate guided                       # sources, seeds 0 ... 19999
verb pair pairs
verb fit flow "$@"
verb generate guided seed=1_000_000        # fresh samples
verb refine refine
verb evaluate evaluate
cat runs/fractal_evaluate/metrics/metrics.csv
