"""Whether what we add has grown: the ratios of a run against those on record."""

import json
from collections.abc import Mapping
from pathlib import Path

BOUNDS = Path(__file__).parents[1] / "bounds.json"
MARGIN = 1.25  # machines differ, and others work on them meanwhile

Ratios = Mapping[str, float]


def too_dear(ratios: Ratios, recorded: Ratios) -> list[str]:
    """What to say of each ratio that is worse than its record by more than the margin, or is missing."""
    found = []
    for name, record in recorded.items():
        ratio = ratios.get(name)
        if ratio is None:
            found.append(f"{name}: not measured, {record:.2f} is on record")
        elif ratio > record * MARGIN:
            found.append(
                f"{name}: {ratio:.2f} times the bare relay, at most {record * MARGIN:.2f} ({record:.2f} on record)"
            )
    return found


def recorded() -> Ratios:
    """The ratios on record."""
    found: Ratios = json.loads(BOUNDS.read_text("utf-8"))
    return found


def record(ratios: Ratios) -> None:
    """Make these the record."""
    rounded = {name: round(ratio, 2) for name, ratio in ratios.items()}
    BOUNDS.write_text(json.dumps(rounded, indent=2, ensure_ascii=False) + "\n", "utf-8")
