#!/usr/bin/env bash
# All that a GPU is needed for in one command, on a machine that may have no network:
#   WHEELS=wheels DATA=data OUT=out SECONDS_LEFT=540 launch/gpu_trial.sh [tests] [bench] [mnist]
# Left out, the parts are all of them, in this order:
#   tests  tests/gpu, a process for each file, JOBS of them at once, at most TESTS_SECONDS (240)
#   bench  benchmarks/gpu.py, at most BENCH_SECONDS (300)
#   mnist  the training of conf/mnist.yaml for the time that is left, if that is over three minutes
# WHEELS        a folder of wheels of what the machine lacks; nothing is installed outside of a
#               temporary folder
# DATA          a folder with MNIST/raw, as it is or as the four packed files (.gz)
# SECONDS_LEFT  all that it may take
# OUT           for its results: trial.txt (all that is printed), tests.txt, tests.json, gpu.txt and
#               gpu.json of the benchmark, mnist.txt, mnist.csv, mnist.png
# PYTHON        python3
# DRY=1         tiny and on a CPU, to see that all of it runs (tests/test_gpu_trial.py)
# A part that fails does not stop the next one; the status is 1 if one did.
set -u
root=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-python3} dry=${DRY:-} failed=0
end=${SECONDS_LEFT:-540}
mkdir -p "${OUT:?a folder for the results}"
out=$(cd "$OUT" && pwd) work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
parts=("$@")
((${#parts[@]})) || parts=(tests bench mnist)

export PYTHONUNBUFFERED=1 PYTHONPATH="$work/site:$root" LIGHTNING_CFG_CACHE="$work/cache"
export CUBLAS_WORKSPACE_CONFIG=:4096:8  # what deterministic products need, read once
[[ $dry ]] && export CUDA_VISIBLE_DEVICES="" LIGHTNING_CFG_GPU_TESTS=cpu

left() { echo $((end - SECONDS)); }
least() { echo $(($1 < $2 ? $1 : $2)); }

machine() {
    local wheels=("${WHEELS:-none}"/*.whl)
    if [[ -f ${wheels[0]} ]]; then
        "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --upgrade \
            --target "$work/site" "${wheels[@]}" || failed=1
    fi
    [[ $dry ]] && echo "dry: tiny, on a CPU" ||
        nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader ||
        echo "NO GPU IS SEEN"
    "$python" - <<'END'
import os, sys
from importlib.metadata import PackageNotFoundError, version
print("python", sys.version.split()[0], "on", os.cpu_count(), "cores", end="; ")
for name in ("torch", "triton", "lightning", "torchmetrics", "omegaconf", "faiss-gpu", "faiss-cpu",
             "torch-fidelity", "torchdiffeq", "safetensors", "numpy"):
    try:
        print(name, version(name), end="; ")
    except PackageNotFoundError:
        print("no", name, end="; ")
print()
END
}

one_file() {  # of tests/gpu, at most $2 seconds: its log, its junit, and one line
    local name began=$SECONDS
    name=$(basename "$1" .py)
    timeout -k 10 "$2" "$python" -m pytest "$1" -v -rP --tb=short --durations=0 \
        -p no:cacheprovider -o junit_family=legacy --rootdir "$root" \
        --junitxml "$work/$name.xml" "${@:3}" >"$work/$name.log" 2>&1
    local status=$? last
    echo "$status" >"$work/$name.status"
    last=$(tail -n 1 "$work/$name.log")
    ((status == 124 || status == 137)) &&
        last="OUT OF TIME within $(grep :: "$work/$name.log" | tail -n 1)"
    echo "$name: ${last//=/} ($((SECONDS - began)) s, status $status)"
    grep -E '^(FAILED|ERROR)' "$work/$name.log" | cut -c 1-300
    return 0
}

tests() {
    local seconds files words=() jobs=${JOBS:-$((($(nproc) + 1) / 2))}
    seconds=$(least "${TESTS_SECONDS:-240}" "$(left)")
    "$python" -c 'import pytest_timeout' 2>/dev/null && words+=(--timeout 120)
    [[ $dry ]] && words+=(-k "seeds or forgotten or one_batch")
    files=("$root"/tests/gpu/test_*.py)
    [[ $dry ]] && files=("$root"/tests/gpu/test_gpu_sampling.py)
    export -f one_file
    export python root work
    local -x OMP_NUM_THREADS=1 TORCHINDUCTOR_COMPILE_THREADS=4  # several beside each other
    printf '%s\n' "${files[@]}" |
        xargs -P "$jobs" -I FILE bash -c 'one_file "$@"' - FILE "$seconds" "${words[@]}"
    cat "$work"/test_*.log >"$out/tests.txt"
    "$python" - "$work" "$out/tests.json" "${files[@]}" <<'END'
import json, sys
from pathlib import Path
from xml.etree import ElementTree

work, to, *files = sys.argv[1:]
found, broken = [], []
for name in (Path(file).stem for file in files):
    junit, status = Path(work, f"{name}.xml"), Path(work, f"{name}.status")
    if not status.is_file() or status.read_text().strip() not in ("0", "1"):
        broken.append(name)  # it ended before its last test
    if not junit.is_file():
        continue
    for case in ElementTree.parse(junit).iter("testcase"):
        trouble = {x.tag: x for x in case if x.tag in ("failure", "error", "skipped")}
        how, why = next(iter(trouble.items()), ("passed", None))
        told = {"file": name, "test": case.get("name"), "outcome": how}
        told["seconds"] = float(case.get("time"))
        told |= {} if why is None else {"why": (why.get("message") or "")[:500]}
        told |= {p.get("name"): p.get("value") for p in case.iter("property")}
        found.append(told)
Path(to).write_text(json.dumps({"tests": found, "cut_off": broken}, indent=1))
outcomes = [test["outcome"] for test in found]
counted = ", ".join(f"{outcomes.count(how)} {how}" for how in dict.fromkeys(outcomes))
print(f"tests: {counted or 'none'}" + (f"; CUT OFF: {', '.join(broken)}" if broken else ""))
sys.exit(bool(broken) or not found or bool({"failure", "error"} & set(outcomes)))
END
}

bench() {
    local seconds words=()
    [[ $dry ]] && words+=(--device cpu --tiny)
    seconds=$(least "${BENCH_SECONDS:-300}" $(($(left) - 15)))
    if ((seconds < 20)) && [[ ! $dry ]]; then
        echo "bench: left out, there are $(left) s" && return 1
    fi
    timeout -k 10 $((seconds + 15)) \
        "$python" "${BENCH:-$root/benchmarks/gpu.py}" --out "$out" --seconds "$seconds" "${words[@]}"
}

unpacked() {  # the folder of MNIST's four files, unpacked if they are packed
    local raw="${DATA:?a folder with MNIST/raw}/MNIST/raw" file
    if [[ -f $raw/train-images-idx3-ubyte ]]; then
        cd "$DATA" && pwd && return
    fi
    [[ -d $raw ]] || raw=$DATA
    mkdir -p "$work/data/MNIST/raw"
    for file in "$raw"/*-ubyte.gz; do
        gunzip -c "$file" >"$work/data/MNIST/raw/$(basename "$file" .gz)" || return 1
    done
    echo "$work/data"
}

mnist() {
    local seconds data words=(run_dir="$work/mnist" log_every=25 grids.every=500)
    if (($(left) <= 180)) && [[ ! $dry ]]; then
        echo "mnist: left out, there are $(left) s, and it is for more than 180" && return 0
    fi
    data=$(unpacked) || return 1
    seconds=$(($(left) - 60))  # for its start and its end
    words+=(data.root="$data")
    words+=(trainer.max_time="$(printf '00:00:%02d:%02d' $((seconds / 60)) $((seconds % 60)))")
    [[ $dry ]] && words+=(net.channels=32 net.blocks=1 batch_size=8 trainer.max_steps=4 log_every=2
                          grids.every=4 grids.columns=1 'grids.sampler={name: heun, steps: 2}'
                          trainer.accelerator=cpu)
    (cd "$root" && timeout -k 10 $((seconds + 50)) \
        "$python" -m lightning_cfg.fit --config conf/mnist.yaml "${words[@]}")
    local status=$?
    cp "$work"/mnist/logs/version_0/metrics.csv "$out/mnist.csv" 2>/dev/null
    cp "$(ls "$work"/mnist/figures/grid_*.png | tail -n 1)" "$out/mnist.png" 2>/dev/null
    "$python" - "$work/mnist" <<'END' | tee "$out/mnist.txt"
import csv, json, statistics, sys
from pathlib import Path

run = Path(sys.argv[1])
if (run / "manifest.json").is_file():
    told = json.loads((run / "manifest.json").read_text())
    names = ("step", "seconds", "loss", "device", "precision", "compile", "channels_last")
    print("; ".join(f"{name} {told.get(name)}" for name in names))
logs = sorted(run.glob("logs/version_*/metrics.csv"))
rows = list(csv.DictReader(open(logs[-1]))) if logs else []
rows = [{k: float(v) for k, v in row.items() if v} for row in rows]
speeds = [row["images_per_second"] for row in rows if "images_per_second" in row]
if len(speeds) > 1:  # in the first falls the compilation
    print(f"images/s: median {statistics.median(speeds[1:]):.0f}, most {max(speeds[1:]):.0f}")
for row in rows[:: max(1, len(rows) // 20)]:
    print(", ".join(f"{k} {row[k]:.5g}" for k in ("step", "loss", "gradient_norm",
          "images_per_second", "peak_memory_gib", "bad_gradients") if k in row))
END
    return $status
}

{
    echo "gpu_trial.sh: ${parts[*]}, in $end s"
    machine
    for part in "${parts[@]}"; do
        if [[ ! $part =~ ^(tests|bench|mnist)$ ]]; then
            echo "no part $part" && failed=1 && continue
        fi
        echo "== $part, $(left) s left"
        "$part" || { failed=1 && echo "== $part FAILED"; }
    done
    echo "== done in $SECONDS s, $([[ $failed == 0 ]] && echo all well || echo with failures)"
    echo $failed >"$work/failed"
} 2>&1 | tee "$out/trial.txt"
exit "$(cat "$work/failed")"
