"""Several sources, one after another: concat:A+B+C, or several splits of one. A path with a plus sign in it cannot be part of
one."""

from bisect import bisect_right
from itertools import accumulate

from mim_jax.data.datasets.base import NO_LABEL, Dataset, Picture, class_count, fingerprint
from mim_jax.data.spec import Pixels


class Concat:
    """Labels are kept only where all parts have the same class names in the same order; else every label is
    -1."""

    def __init__(self, parts: list[Dataset], name: str = "") -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        agree = len({part.class_names for part in parts}) == 1
        self.name = name or "concat:" + "+".join(part.name for part in parts)
        self.class_names = parts[0].class_names if agree else ()
        self.num_classes = len(self.class_names)
        self.fingerprint = fingerprint([part.fingerprint for part in parts])
        self.multi_label = agree and parts[0].multi_label

    @property
    def bad(self) -> dict[str, str]:
        """Bad images met so far by the parts that skip them: name to reason."""
        return {where: reason for part in self._parts for where, reason in getattr(part, "bad", {}).items()}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Picture:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        start = self._ends[which - 1] if which else 0
        picture = self._parts[which][index - start]
        return picture if self.num_classes else _Unlabelled(picture)

    def describe(self) -> str:
        why = (
            ""
            if self.num_classes
            else ", as their classes differ"
            if any(p.num_classes for p in self._parts)
            else ""
        )
        inner = "; ".join(part.describe() for part in self._parts)
        return f"concat: {len(self)} images, {class_count(self.num_classes)}{why} [{inner}]"


class _Unlabelled:
    def __init__(self, picture: Picture) -> None:
        self._picture = picture
        self.height, self.width, self.label, self.labels = picture.height, picture.width, NO_LABEL, None

    def pixels(self) -> Pixels:
        return self._picture.pixels()
