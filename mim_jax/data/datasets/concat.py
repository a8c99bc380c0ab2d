"""Several datasets, one after another: concat:A+B+C, or several splits of one. A path with a plus sign in it cannot be part of
one."""

from bisect import bisect_right
from itertools import accumulate

from mim_jax.data.datasets.base import Dataset, class_count, fingerprint
from mim_jax.data.examples import Example


class ConcatDataset:
    """Annotations are kept only where all parts have those of one kind, and the same class names in the same order."""

    def __init__(self, parts: list[Dataset], name: str = "") -> None:
        self._parts = parts
        self._ends = list(accumulate(len(part) for part in parts))
        agree = len({(part.annotation, part.class_names) for part in parts}) == 1
        self.name = name or "concat:" + "+".join(part.name for part in parts)
        self.class_names = parts[0].class_names if agree else ()
        self.num_classes = len(self.class_names)
        self.fingerprint = fingerprint([part.fingerprint for part in parts])
        self.annotation = parts[0].annotation if agree else None

    @property
    def bad(self) -> dict[str, str]:
        """Bad images met so far by the parts that skip them: name to reason."""
        return {where: reason for part in self._parts for where, reason in getattr(part, "bad", {}).items()}

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self):
            raise IndexError(index)
        which = bisect_right(self._ends, index)
        start = self._ends[which - 1] if which else 0
        example = self._parts[which][index - start]
        return example if self.annotation else example._replace(annotation=None)

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
