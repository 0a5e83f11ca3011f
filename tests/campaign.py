"""How far a campaign goes, from which seed, and what it found.

``ARRAYLIFT_CAMPAIGN_SCALE`` multiplies every count (0.1 for a try, 10 for a night),
``ARRAYLIFT_CAMPAIGN_SEED`` repeats a run, ``ARRAYLIFT_CAMPAIGN_LEDGER`` names the folder in which
figures add up over runs. Each campaign reports one line, which pytest shows at its end, whether
or not it passed; the short share of the default run reports too.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import time
from pathlib import Path

SEED_BITS = 32

_LINES: list[str] = []


def scale() -> float:
    """Factor on the counts of long campaigns; 1 reaches the figures of the reliability page."""
    return float(os.environ.get("ARRAYLIFT_CAMPAIGN_SCALE") or 1)


def scaled(count: int) -> int:
    """A campaign's count, at the scale asked for; never less than 1."""
    return max(1, round(count * scale()))


def seed_of(campaign: str) -> int:
    """The seed of a campaign: a fresh one, or one that follows from the seed asked for."""
    asked = os.environ.get("ARRAYLIFT_CAMPAIGN_SEED")
    if not asked:
        return secrets.randbits(SEED_BITS)
    return int.from_bytes(hashlib.sha256(f"{asked} {campaign}".encode()).digest()[: SEED_BITS // 8], "big")


def ledger_folder() -> Path:
    """Where ledgers are kept: a folder of the checkout that git ignores, unless told otherwise."""
    asked = os.environ.get("ARRAYLIFT_CAMPAIGN_LEDGER")
    folder = Path(asked) if asked else Path(__file__).resolve().parents[1] / ".campaigns"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def record(campaign: str, **figures: object) -> None:
    """Append one entry to a campaign's ledger, JSON a line."""
    entry = {"at": round(time.time()), **figures}
    with (ledger_folder() / f"{campaign}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def entries(campaign: str) -> list[dict[str, object]]:
    """Everything that runs so far have recorded."""
    path = ledger_folder() / f"{campaign}.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report(campaign: str, *, seed: int | str, **figures: object) -> None:
    """Say what a campaign found, for the table at the end of the run."""
    cells = [campaign, *(f"{name.replace('_', ' ')} {value}" for name, value in figures.items())]
    _LINES.append(" | ".join([*cells, f"seed {seed}"]))


def lines() -> list[str]:
    """All reports of this run."""
    return list(_LINES)
