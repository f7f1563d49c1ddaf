"""What an audit's JSON holds, as a JSON Schema (2020-12) that any program can check it against: ``audit.schema.json`` beside this file.

``audit/findings.json`` and the release's ``audit.json`` are both valid under it; the latter also tells the looks and the other releases.
"""

from pathlib import Path

from medsynth.schema import Schema

SCHEMA = Path(__file__).with_name("audit.schema.json")
_schema = Schema(SCHEMA, "A check's finding", "Mend the check, and audit again.")
faults_of, validated = _schema.faults_of, _schema.validated
