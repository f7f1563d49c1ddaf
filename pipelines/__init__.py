"""The stages as Hydra programs: ``python pipelines/train.py fit.steps=100``, also for sweeps (``--multirun``)."""
