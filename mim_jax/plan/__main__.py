"""Compiles a run's own train step for devices that are not there, and says whether it fits and where the time would go.

    python -m mim_jax.plan --config=configs/mae.py:imagenet --topology=v5e:4x4
    python -m mim_jax.plan --config=mae:imagenet --config.model.variant=l --config.mesh.fsdp=8 --topology=h100:8 --json=plan.json

Nothing of the network's size is allocated: the step is compiled from shapes, every phase of it, by the compiler of the devices
(libtpu: pip install -r requirements-tpu.txt; jax's CUDA build: requirements-cuda.txt). Times and MFU are the compiler's
estimates, which leave out the network between devices; a GPU's compiler gives none. The data need not be here either: say how
many there are with --num_examples.

Exit codes: 0 it fits, 1 it does not, 2 a mistake of the user's."""

import argparse
import dataclasses
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from mim_jax.config.arguments import Parser, command, positive, start
from mim_jax.config.check import ConfigError, check
from mim_jax.config.files import load, override
from mim_jax.config.resolve import resolve
from mim_jax.config.scaling import AUTO
from mim_jax.config.schema import Config, resolved
from mim_jax.data.bench_loader import write_jpegs
from mim_jax.data.crop import ExampleKey
from mim_jax.data.errors import DataError
from mim_jax.data.examples import ClassLabel, EncodedImage, Example
from mim_jax.data.memory import median_side
from mim_jax.errors import ExitCode
from mim_jax.methods import Method, build_method, complete_options
from mim_jax.plan.report import as_json, as_text
from mim_jax.plan.step import Memory, StepPlan, largest_batch, plan_step
from mim_jax.plan.topology import FORMS, Topology, open_topology, prepare_process
from mim_jax.storage import parse_path, write_json
from mim_jax.training.datasets import open_split
from mim_jax.training.monitoring.run_info import phase_steps
from mim_jax.training.pretrained import with_network_of_init
from mim_jax.training.synthetic_inputs import without_token_cache

KNOWN_SIZES = {"tfds:imagenet2012": (1_281_167, 1000)}
"""Source -> training images and classes, where the data are not at hand."""
MEASURE_SECONDS = 2.0


@dataclasses.dataclass(frozen=True)
class DataShape:
    """As much of a dataset as a plan needs; stands where a Dataset is asked for its size and classes."""

    num_examples: int
    num_classes: int
    annotation: type | None
    side: int | None  # median of the shorter sides; None = unknown

    def __len__(self) -> int:
        return self.num_examples


def parse(argv: Sequence[str]) -> tuple[argparse.Namespace, dict[str, str]]:
    """The options, and what --config.KEY=VALUE sets. Raises ConfigError."""
    parser = Parser("python -m mim_jax.plan", __doc__)
    parser.add_config()
    parser.add_argument("--topology", metavar="NAME", required=True, help=FORMS)
    parser.add_argument("--json", metavar="FILE", help="also writes the plan there, for programs")
    parser.add_argument(
        "--largest_batch",
        action="store_true",
        help="also finds the largest batch that fits, by compiling some four more",
    )
    parser.add_argument(
        "--num_examples", type=positive, metavar="N", help="training images, where the data are not here"
    )
    parser.add_argument(
        "--num_classes", type=positive, metavar="N", help="classes, where the data are not here (1000)"
    )
    parser.add_argument(
        "--loader_rate", type=float, metavar="R",
        help="images a second that one core of a host decodes and crops; measured on this machine in two seconds if not given",
    )  # fmt: skip
    return parser.parse_with_assignments(argv)


@command
def run(argv: Sequence[str]) -> int:
    """The plan, printed and written; the exit code."""
    options, values = parse(argv)
    prepare_process(options.topology)
    topology = open_topology(options.topology)
    given = override(load(options.config), values)
    tokens = without_token_cache(given) if "method" in given else False
    asked = with_network_of_init(check(given))
    data = data_shape(asked, options)
    plan = Planner(asked, topology, data, tokens)
    config, method = plan.build(None)
    steps = [plan.step(phase) for phase in range(len(method.phases))]
    largest = None
    if options.largest_batch:
        largest = largest_batch(
            plan.memory, config.data.batch_size, len(topology.devices) * config.optim.accumulation
        )
    rate = options.loader_rate or measure_loader(method)
    counts = phase_steps(method, resolved(config.schedule.steps), len(data), config.data.batch_size)
    summary = as_json(config, method, topology, steps, counts, rate, largest)
    print(as_text(config, method, topology, steps, counts, rate, largest))
    if options.json:
        write_json(parse_path(options.json, "--json"), summary)
    return ExitCode.DONE if summary["fits"] else ExitCode.FAILED


class Planner:
    """One configuration on one topology, at any batch size."""

    def __init__(self, config: Config, topology: Topology, data: DataShape, tokens: bool) -> None:
        self._config, self._topology, self._data, self._tokens = config, topology, data, tokens

    def build(self, batch_size: int | None) -> tuple[Config, Method]:
        """The configuration, resolved for the topology, and its method. batch_size: None = its own."""
        config = self._config
        if batch_size is not None:
            config = dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=batch_size))
        if config.model.variant == AUTO and self._data.side is None:
            raise ConfigError(
                "config.model.variant=auto follows from the images, which are not here: give a variant"
            )
        config = resolve(
            config,
            num_examples=len(self._data),
            num_devices=len(self._topology.devices),
            platform={"cuda": "gpu"}.get(self._topology.platform, self._topology.platform),
            image_side=self._data.side,
        )
        config = complete_options(config, self._data)  # type: ignore[arg-type]
        return config, build_method(config)

    def step(self, phase: int, batch_size: int | None = None) -> StepPlan:
        """What the compiler says of a phase's step."""
        config, method = self.build(batch_size)
        vocabulary = config.method["vocabulary"] if self._tokens else 0
        return plan_step(config, method, phase, self._topology, len(self._data), vocabulary)

    def memory(self, batch_size: int) -> Memory:
        """Of the phase that takes the most."""
        _, method = self.build(batch_size)
        steps = [self.step(phase, batch_size) for phase in range(len(method.phases))]
        return max((step.memory for step in steps), key=lambda memory: memory.total)


def data_shape(config: Config, options: argparse.Namespace) -> DataShape:
    """Of the training split: as it is here, or as the options or what is known of its source say.

    Raises:
        ConfigError: none of these.
    """
    if options.num_examples:
        return DataShape(options.num_examples, options.num_classes or 1000, ClassLabel, None)
    if config.data.source in KNOWN_SIZES:
        return DataShape(*KNOWN_SIZES[config.data.source], ClassLabel, None)
    try:
        dataset = open_split(config.data, config.data.split, config.seed)
    except (DataError, ConfigError) as error:
        raise ConfigError(
            f"{error}; or give --num_examples=N and --num_classes=C, and no data are needed"
        ) from error
    return DataShape(len(dataset), dataset.num_classes, dataset.annotation, median_side(dataset))


def measure_loader(method: Method) -> float:
    """Images a second that one core of this machine decodes, crops and resizes for `method`: JPEGs of 500 x 375."""
    view = method.view(train=True)
    with tempfile.TemporaryDirectory() as folder:
        contents = [path.read_bytes() for path in write_jpegs(Path(folder), 8)]
    count, started = 0, time.process_time()
    while (seconds := time.process_time() - started) < MEASURE_SECONDS:
        example = Example(EncodedImage(contents[count % len(contents)], "jpeg"), ClassLabel(0))
        view.render(example, ExampleKey(seed=0, epoch=0, index=count))
        count += 1
    return count / seconds


if __name__ == "__main__":
    sys.exit(start(run, sys.argv[1:]))
