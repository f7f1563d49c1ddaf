"""The audit: attacks on a cohort, with controls.

``medsynth.audit("run.name=ct")`` is also the verb, like its siblings, so this package can be called.
"""

import sys
from types import ModuleType
from typing import Any


class _Verb(ModuleType):
    def __call__(self, *overrides: str) -> Any:
        return sys.modules["medsynth"].verb("audit")(*overrides)


sys.modules[__name__].__class__ = _Verb
