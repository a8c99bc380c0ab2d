"""What a long k-means is asked for."""

import dataclasses

import jax


@dataclasses.dataclass(frozen=True)
class KMeansOptions:
    """What a fit depends on besides its points; the defaults are the paper's.

    start: subset (random points) or plus_plus (k-means++ on a random sample of `sample` points).
    mode: lloyd (full passes) or minibatch. A mini-batch is the next `rows` points in the source's order, which should
        be random; another number of hosts makes other batches. Inertia, usage and empty clusters are of the moving
        centroids, but for the last pass, which is a full one.
    iterations: passes over the points, a restart.
    tolerance: stop a restart when a pass lowers the inertia by a smaller share; 0: only when no centroid moves.
    max_points_per_centroid: of more points, so many times `clusters` are drawn.
    rows: points that all hosts together hand to the devices at once.
    """

    clusters: int = 8192
    iterations: int = 20
    restarts: int = 5
    start: str = "subset"
    mode: str = "lloyd"
    tolerance: float = 0.0
    max_points_per_centroid: int = 512
    rows: int = 16384
    sample: int = 32768
    seed: int = 1234

    def refuse_nonsense(self) -> None:
        """Raises ValueError where a value cannot be meant."""
        for name, allowed in (("start", ("subset", "plus_plus")), ("mode", ("lloyd", "minibatch"))):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {' or '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("clusters", "restarts", "max_points_per_centroid", "rows"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}, but it must be 1 at least")
        if self.iterations < 0 or self.tolerance < 0:
            raise ValueError("iterations and tolerance must not be negative")
        if self.start == "plus_plus" and self.sample < self.clusters:
            raise ValueError(
                f"k-means++ needs a sample of more than {self.sample} points for {self.clusters} clusters"
            )
        if self.rows % jax.process_count():
            raise ValueError(f"rows={self.rows} cannot be divided by {jax.process_count()} hosts")
