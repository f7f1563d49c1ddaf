"""What many tests share: where the real data lies, and that nothing phones home."""

import os
from pathlib import Path

import pytest

os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
# One thread a process, here and in processes that tests start: sums round by the number of threads, and two cores are shared by both.
os.environ["OMP_NUM_THREADS"] = "1"
SHARED_DATA = Path(__file__).resolve().parents[1] / "../shared/data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images beside the checkout. In CI it must be there."""
    if not SHARED_DATA.is_dir():
        if os.environ.get("CI"):
            pytest.fail(f"CI needs the real data at {SHARED_DATA}")
        pytest.skip(f"the real data is not at {SHARED_DATA}")
    return SHARED_DATA.resolve()
