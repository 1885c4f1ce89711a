"""The fractal's MLP for benchmarks/gpu.py: a plain loop that stays on the device, and as one graph.

Its layers are so small that launching them takes longer than they do: what a CUDA graph, which is
launched at once, makes of it.
"""

import torch
from gpu_table import Found, timed
from gpu_training import PlainDraws, Task

BANK = 1 << 18  # points that are drawn beforehand


class Plain:
    """Steps of a plain loop: points, noise and averages on the device, nothing looked at."""

    def __init__(self, task: Task, device: torch.device):
        learner = task.recipe["learner"]
        self.device, self.size = device, task.batch
        self.model = task.model().to(device)
        self.parameters = list(self.model.parameters())
        self.clip = learner["gradient_clip"]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=learner["lr"], weight_decay=0.0, fused=True,
            capturable=device.type == "cuda",
        )  # fmt: skip
        self.averages = [[p.detach().clone() for p in self.parameters]
                         for _ in learner["ema_half_life"]]  # fmt: skip
        y, c = task.data.real("bank", 64 if task.tiny else BANK // task.data.num_classes)
        self.y, self.c = y.to(device), c.to(device)

    def step(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.work()

    def work(self) -> None:
        """A step, where there are no gradients yet."""
        draws = PlainDraws(self.size, self.device)
        rows = draws.integers(len(self.y))
        self.model.loss(self.y[rows], self.c[rows], draws).mean().backward()
        if self.clip:
            torch.nn.utils.clip_grad_norm_(self.parameters, self.clip)
        self.optimizer.step()
        with torch.no_grad():
            for averages in self.averages:
                torch._foreach_lerp_(averages, self.parameters, 0.001)

    def captured(self) -> torch.cuda.CUDAGraph:
        """A step as a graph; torch.cuda.graph's way of warming up."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(side)
        self.optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.work()
        return graph


def plain(task: Task, device: torch.device, *, graph: bool, limit: float | None) -> Found:
    """Steps a second of the plain loop, launched one kernel at a time or as a graph."""
    loop = Plain(task, device)
    if graph and device.type != "cuda":
        raise ValueError("a graph needs CUDA")
    run = loop.captured().replay if graph else loop.step
    seconds = timed(run, device, seconds=0.0 if task.tiny else 0.5)
    if not all(p.isfinite().all() for p in loop.parameters):
        raise ValueError("its weights are not finite")
    return Found.rate(seconds, 1, "steps", limit=limit)
