"""Faults of a data set, and how they are reported."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

SHOWN_VALUE_CHARS = 80


@dataclass(frozen=True)
class Fault:
    """Something wrong with a data set.

    Attributes:
        kind: stable name, e.g. "missing-file".
        image_id, annotation_id: None if not applicable.
        message: what was found, and what to do about it or what training does.
        fatal: whether training would be wrong.
    """

    kind: str
    image_id: int | None
    annotation_id: int | None
    message: str
    fatal: bool = True

    def __str__(self) -> str:
        return f"{'FATAL ' if self.fatal else ''}{self.kind}: {self.place}{self.message}"

    @property
    def place(self) -> str:
        """Image and annotation, each followed by a colon; empty for a fault of the whole set."""
        places = (("image", self.image_id), ("annotation", self.annotation_id))
        return "".join(f"{name} {value}: " for name, value in places if value is not None)


def describe(faults: Sequence[Fault], limit: int) -> str:
    """At most `limit` lines per kind, then the ids of the others; the last line counts all."""
    of_kind: dict[str, list[Fault]] = {}
    for fault in faults:
        of_kind.setdefault(fault.kind, []).append(fault)
    lines = []
    for kind, group in of_kind.items():
        lines += [str(fault) for fault in group[:limit]]
        if rest := group[limit:]:
            lines.append(f"{kind}: and {len(rest)} more: {_ids(rest)}")
    counts = ", ".join(f"{len(group)} {kind}" for kind, group in of_kind.items())
    num_fatal = sum(fault.fatal for fault in faults)
    total = "1 fault" if len(faults) == 1 else f"{len(faults) or 'no'} faults"
    lines.append(f"{total}, {num_fatal or 'none'} fatal: {counts}" if faults else total)
    return "\n".join(lines)


def shown(value: object) -> str:
    """A value for a message: as JSON writes it, shortened if it is long."""
    text = json.dumps(value, ensure_ascii=False, default=repr)
    return text if len(text) <= SHOWN_VALUE_CHARS else f"{text[:SHOWN_VALUE_CHARS]}..."


def _ids(faults: list[Fault]) -> str:
    annotations = [str(f.annotation_id) for f in faults if f.annotation_id is not None]
    images = [str(f.image_id) for f in faults if f.annotation_id is None]
    groups = (("annotations", annotations), ("images", images))
    return "; ".join(f"{name} {', '.join(ids)}" for name, ids in groups if ids)
