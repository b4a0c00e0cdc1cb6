"""What an examination found, as a table, as JSON, and as an exit code."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from lrtrain.runtime.table import table
from lrtrain.studies.doctor.finding import Finding

WORDS = {"pass": "passed", "warn": "to look at", "fail": "failed"}


def report(findings: Sequence[Finding]) -> str:
    """A row a finding, what to do below it, and a last line that counts."""
    rows = [["check", "", "found"]]
    for finding in findings:
        rows.append([finding.check, finding.status, finding.found])
        if finding.advice and finding.status != "pass":
            rows.append(["", "", f"→ {finding.advice}"])
    return f"{table(rows, numbers=False)}\n\n{verdict(findings)}"


def verdict(findings: Sequence[Finding]) -> str:
    """How many passed, warn and fail."""
    counts = [f"{sum(f.status == status for f in findings)} {word}" for status, word in WORDS.items()]
    return ", ".join(counts)


def as_dict(findings: Sequence[Finding]) -> dict[str, Any]:
    """The findings for JSON."""
    return {"findings": [asdict(finding) for finding in findings], "exit_code": exit_code(findings)}


def exit_code(findings: Sequence[Finding]) -> int:
    """2 where something failed, else 0."""
    return 2 if any(finding.status == "fail" for finding in findings) else 0
