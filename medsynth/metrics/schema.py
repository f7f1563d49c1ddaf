"""What an evaluation's JSON holds, as a JSON Schema (2020-12) that any program can check it against: ``metrics.schema.json`` beside this
file. ``evaluate/metrics.json`` and the release's ``metrics.json`` are both valid under it.
"""

from pathlib import Path

from medsynth.schema import Schema

SCHEMA = Path(__file__).with_name("metrics.schema.json")
_schema = Schema(SCHEMA, "A score", "Mend the metric, and evaluate again.")
faults_of, validated = _schema.faults_of, _schema.validated
