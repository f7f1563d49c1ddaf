"""What cases cost the trained model, in bits per dimension: the bound, and the likelihood along the ODE.

A case's cost is a function of its id and the seed: on a CPU, cases are taken one at a time with one thread each, as in `sample`.
"""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from tqdm import tqdm

from medsynth.cohort import Case, Cohort
from medsynth.diffusion.checkpoint import load_denoiser
from medsynth.diffusion.guidance import Guidance
from medsynth.diffusion.likelihood import FLOOR, flow_cost, hutchinson, rising, variational_bound
from medsynth.diffusion.noise import CaseNoise
from medsynth.rng import generator_for, seed_for
from medsynth.stages import Run
from medsynth.training.hardware import device_for, one_thread_each

LEVELS = 32  # noise levels of the bound, a case
PROBE = -2  # the step of a case's noise whose signs probe the trace
NAMES = ("likelihood_bound", "likelihood_flow")  # the columns


def costs(run: Run, cohorts: Mapping[str, Cohort], steps: int, seed: int) -> tuple[dict[str, np.ndarray], float]:
    """``(case, 2)`` for each cohort: variational bound and likelihood by ``steps`` of the ODE, conditional on the case's own condition;
    and the noise floor above which they are counted: the common one, unless the process was trained for higher levels only."""
    denoiser, _ = load_denoiser(run.folder("train") / "denoiser")
    device = device_for((run.settings.trainer or {}).get("accelerator", "auto"))
    denoiser.requires_grad_(False).to(device)
    sigma_max = denoiser.process.sigma_max
    floor = max(FLOOR, denoiser.process.sigma_min)
    levels = rising(steps, sigma_max, floor)

    def of(cohort: Cohort, case: Case) -> list[float]:
        own = seed_for(seed, "likelihood", case.id)
        x = torch.from_numpy(np.array(cohort.pixels(case)))[None].to(device)
        schema = cohort.header.conditions
        condition = torch.tensor([schema.encode(case.condition)], device=device) if schema.size else None
        denoise = Guidance().bind(denoiser, condition)
        noise = CaseNoise([own], tuple(x.shape[1:]), device)
        offset = torch.tensor([generator_for(own, "levels").random()], device=device)
        with torch.no_grad():
            bound = variational_bound(denoise, x, (noise(k) for k in range(LEVELS)), LEVELS, offset, sigma_max, floor)
            flow = flow_cost(denoise, x, noise.initial(), hutchinson(noise(PROBE).sign()), levels)
        return [bound.item(), flow.item()]

    found = {}
    workers = torch.get_num_threads() if device.type == "cpu" else 1
    with one_thread_each(device), ThreadPoolExecutor(workers) as pool:
        for name, cohort in cohorts.items():
            rows = pool.map(lambda case, cohort=cohort: of(cohort, case), cohort)
            found[name] = np.array(list(tqdm(rows, desc=f"likelihood: {name}", total=len(cohort), unit="case")), float).reshape(-1, 2)
    return found, floor
