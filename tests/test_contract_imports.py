"""Who may know whom: layers within the package, by import-linter's contract in pyproject.toml; and the doors to other libraries."""

import ast
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"
DOORS = {
    "mlflow": {"tracking.py"},
    "torch.distributed": {"distributed.py"},
    "omegaconf": {"config.py", "cli.py", "worker.py", "stages/", "tools/", "pipelines/"},
    "hydra": {"config.py", "pipelines/"},
    "torchvision": set(),
    "requests": {"pacs/web.py"},
    "dicomweb_client": {"pacs/web.py"},
    "pynetdicom": {"pacs/dimse.py"},
}


def lint(root: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-c", LINT, "--no-cache", "--no-logo", "--config", str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        cwd=root,
        env={"PYTHONPATH": str(root)},
        check=False,
    )


def imported(path: Path) -> Iterator[str]:
    """Dotted names of everything that a module imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module
            yield from (f"{node.module}.{name.name}" for name in node.names)


def test_modules_know_only_what_stands_below_them():
    report = lint(ROOT)
    assert report.returncode == 0, report.stdout + report.stderr


def test_the_contract_is_broken_by_an_import_upwards(tmp_path: Path):
    shutil.copytree(ROOT / "medsynth", tmp_path / "medsynth", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "medsynth" / "io" / "nifti.py").open("a") as file:
        file.write("\nfrom medsynth.stages import perform  # noqa\n")
    report = lint(tmp_path)
    assert report.returncode == 1
    assert "medsynth.io is not allowed to import medsynth.stages" in report.stdout


@pytest.mark.parametrize("library", DOORS)
def test_a_library_is_imported_behind_its_one_door(library: str):
    users = {
        path.relative_to(root).as_posix() if root.name == "medsynth" else f"pipelines/{path.name}"
        for root in (ROOT / "medsynth", ROOT / "pipelines")
        for path in root.rglob("*.py")
        if any(name == library or name.startswith(f"{library}.") for name in imported(path))
    }
    astray = {user for user in users if not user.startswith(tuple(DOORS[library]))}
    assert not astray
