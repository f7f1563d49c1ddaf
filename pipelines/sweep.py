"""``medsynth sweep`` as a Hydra program."""

import sys

import hydra
from omegaconf import DictConfig

from medsynth import config
from medsynth.cli import guarded_job

config.register()


@hydra.main(version_base="1.3", config_path="../conf", config_name="config")
def main(cfg: DictConfig) -> None:
    guarded_job("sweep", cfg)


if __name__ == "__main__":
    config.refuse_mistakes(sys.argv[1:])
    main()
