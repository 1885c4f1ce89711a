"""What more processes are worth to `fit`, and what a step spends on neither forward nor backward.

    OMP_NUM_THREADS=1 python benchmarks/scaling.py --config conf/mnist_small.yaml \
        --batch 32 --steps 60 trainer.accelerator=cpu data.root=data
    python benchmarks/scaling.py --config conf/cifar_edm.yaml --batch 128 --processes 1 2 4 8

Each process has the same batch (weak scaling), so perfect is n times the images per second of one;
--whole shares --batch among them instead (strong scaling). Runs of each number of processes take
turns, --rounds times, so that whatever else the machine does meets all; medians are told. The
exchange of gradients overlaps with backward and counts as it: it shows in the efficiency. On GPUs a
step waits for them at each of its parts, which costs a little of the overlap that `fit` has.

--apart also trains as many single processes at the same time, which exchange nothing: what is
lost against these is the exchange and what each draws for all; the rest is lost to what
processes share on one machine, memory and cores, and to whatever else runs there.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from lightning_cfg.training.learners import Diffusion

WARM = 20  # steps that do not count


class Timed(Diffusion):
    """Diffusion with a watch: seconds of forward, backward and all, after the first steps."""

    def on_train_start(self) -> None:
        super().on_train_start()
        self.spent = {"forward": 0.0, "backward": 0.0}
        self.began = None

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        if self.began is None and self.trainer.global_step >= WARM:
            self.began = self._now()

    def training_step(self, batch: dict, batch_idx: int) -> torch.Tensor:
        start = self._now()
        loss = super().training_step(batch, batch_idx)
        self._add("forward", start)
        return loss

    def backward(self, loss: torch.Tensor, *args: object, **kwargs: object) -> None:
        start = self._now()
        super().backward(loss, *args, **kwargs)
        self._add("backward", start)

    def on_train_end(self) -> None:
        self.spent["all"] = self._now() - self.began
        self.spent["steps"] = self.trainer.global_step - WARM
        if self.trainer.is_global_zero:
            Path(self.trainer.default_root_dir, "timed.json").write_text(json.dumps(self.spent))

    def _add(self, what: str, start: float) -> None:
        if self.began is not None:
            self.spent[what] += self._now() - start

    def _now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def apart(processes: int, *asked: object) -> dict:
    """As many trainings of one process at the same time: images per second of all."""
    with ThreadPoolExecutor(processes) as pool:
        runs = list(pool.map(lambda _: measured(*asked), range(processes)))
    return {key: sum(run[key] for run in runs) for key in runs[0]}


def measured(config: str, processes: int, batch: int, steps: int, words: list[str]) -> dict:
    """One training: images per second, and the share of time outside forward and backward."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            sys.executable, "-m", "lightning_cfg.fit", "--config", config, f"run_dir={folder}/run",
            "learner.name=scaling.Timed", f"batch_size={batch}", f"trainer.devices={processes}",
            f"trainer.max_steps={WARM + steps}", "checkpoint_every=1_000_000", *words,
        ]  # fmt: skip
        path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
        )
        if done.returncode:
            sys.exit(done.stderr)
        spent = json.loads(Path(folder, "run/timed.json").read_text())
    rate = spent["steps"] * batch / spent["all"]
    return {"rate": rate, "outside": 1 - (spent["forward"] + spent["backward"]) / spent["all"]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", required=True, help="of `fit`, with learner Diffusion")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--batch", type=int, required=True, help="of one process")
    parser.add_argument("--whole", action="store_true", help="it is of all together")
    parser.add_argument("--apart", action="store_true", help="beside single ones at once")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    asked, words = parser.parse_known_args()
    found: dict[int, list[dict]] = {n: [] for n in asked.processes}
    single: dict[int, list[dict]] = {n: [] for n in asked.processes if asked.apart and n > 1}
    for _ in range(asked.rounds):
        for n, runs in found.items():
            batch = asked.batch if asked.whole else n * asked.batch
            runs.append(measured(asked.config, n, batch, asked.steps, words))
            if n in single:
                how = asked.config, 1, batch // n, asked.steps, words
                single[n].append(apart(n, *how))
    print(
        "| processes | global batch | images/s | efficiency | outside forward and backward |",
        end="",
    )
    print(" of as many apart |\n|--:|--:|--:|--:|--:|--:|" if single else "\n|--:|--:|--:|--:|--:|")
    rates = {n: statistics.median(run["rate"] for run in runs) for n, runs in found.items()}
    one = min(rates)
    for n, runs in found.items():
        outside = statistics.median(run["outside"] for run in runs)
        pairs = zip(runs, single.get(n, []), strict=False)
        beside = [run["rate"] / other["rate"] for run, other in pairs]
        print(
            f"| {n} | {asked.batch if asked.whole else n * asked.batch} | {rates[n]:.4g} | "
            f"{rates[n] * one / (rates[one] * n):.1%} | {outside:.1%} |"
            + (f" {statistics.median(beside):.1%} |" if beside else " |" if single else "")
        )


if __name__ == "__main__":
    main()
