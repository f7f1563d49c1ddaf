"""A run for tests of single stages: tiny settings and objects, without Hydra, a receipt or a tracking server."""

from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Trainer

from medsynth.config import FitSettings, RunSettings, SamplingSettings, Settings
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.networks import UNetSettings
from medsynth.diffusion.process import EDM
from medsynth.diffusion.samplers import dpmpp_2m
from medsynth.diffusion.schedule import LogSNR
from medsynth.stages import Run

TINY = UNetSettings(channels=(8, 8), attention_levels=(False, True), res_blocks=1, head_channels=8, norm_groups=4)


class NoTracker:
    """Takes what a tracker takes, and keeps the metrics."""

    def __init__(self) -> None:
        self.recorded: list[tuple[int, dict]] = []

    def metrics(self, values: dict, step: int | None = None, *, model: str | None = None) -> None:
        self.recorded.append((step, dict(values)))

    def table(self, name: str, rows: list[dict]) -> None: ...

    def model(self, weights: str) -> None: ...

    def alias(self, weights: str, alias: str) -> None: ...

    def parameters(self, settings: dict) -> None: ...

    def dataset(self, name: str, digest: str, cases: int, context: str) -> None: ...

    def figure(self, name: str, png: Path, *, synthetic: bool) -> None: ...

    def artifact(self, path: Path, to: str) -> None: ...


def make_run(root: Path, *, fit: dict | None = None, sampling: dict | None = None, seed: int = 1, network: UNetSettings = TINY) -> Run:
    """``fit`` and ``sampling`` change the tiny defaults. The prepared cohort is expected at ``root / "prepare"``."""
    small = {"steps": 12, "global_batch": 4, "warmup": 3, "ema_halflife": 4, "precision": "fp32", "checkpoint_every": 4}
    small |= {"validate_every": 6, "preview_every": 12}
    settings = Settings(
        run=RunSettings(name=root.name, seed=seed),
        fit=FitSettings(**(small | (fit or {}))),
        sampling=SamplingSettings(**({"cases": 7, "steps": 4, "batch": 4} | (sampling or {}))),
        trainer={"accelerator": "cpu"},
    )
    objects = {
        "network": network,
        "process": EDM(),
        "schedule": LogSNR(),
        "sampler": dpmpp_2m,
        "guidance": Guidance(),
        "privacy": None,
        "optimizer": partial(torch.optim.AdamW, lr=1e-3, fused=True),
        "trainer": partial(Trainer, accelerator="cpu", devices=1, num_nodes=1),
    }
    return Run(settings=settings, objects=objects, root=root, tracker=NoTracker())
