"""medsynth: from a messy DICOM or NIfTI archive to a released, audited synthetic cohort.

Every verb of the command line is also a function of the same overrides::

    from medsynth import prepare, train, sample
    prepare("source=folder", "source.root=/data/mr", "run.name=mr")
"""

__version__ = "0.1.0"
__all__ = ["audit", "evaluate", "prepare", "release", "report", "run", "sample", "sweep", "train", "utility"]

from typing import Any


def __getattr__(name: str) -> Any:
    if name == "audit":  # also a package, which is callable: see its own first lines
        import medsynth.audit

        return medsynth.audit
    if name in __all__:
        return verb(name)
    raise AttributeError(f"module 'medsynth' has no attribute {name!r}")


def verb(name: str) -> Any:
    """The verb as a function of Hydra overrides; it returns the stage's folder. Nothing heavy is imported before it is asked for."""
    from medsynth.stages import verb_function

    return verb_function(name)
