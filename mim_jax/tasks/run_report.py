"""The report of a finished run: its facts, curves and results, and what the network predicts of some held-out images."""

import json
from collections.abc import Mapping
from typing import Any

import jax
from clu import parameter_overview
from etils.epath import Path

from mim_jax.config.check import to_dict
from mim_jax.config.schema import Config
from mim_jax.data import Dataset, evenly_spaced, over_classes
from mim_jax.data.examples import class_index
from mim_jax.keys import Purpose, example_keys
from mim_jax.methods import ImageGrid, Method, Variables
from mim_jax.methods.method import Batch, EvaluationContext
from mim_jax.progress import log
from mim_jax.training.monitoring.goodput import describe_goodput
from mim_jax.training.monitoring.metric_writers import read_metrics, read_sessions
from mim_jax.training.monitoring.report import EXAMPLES, FIRST_BATCH, REPORT, label_text, write_report
from mim_jax.training.monitoring.results_table import format_rows, result_rows
from mim_jax.training.monitoring.run_info import (
    format_bad_images,
    init_name,
    run_info,
    start_label,
    wall_time,
)
from mim_jax.transfer.classification import CONFUSION


def write_run_report(
    config: Config, method: Method, variables: Variables, context: EvaluationContext, bad: Mapping[str, str]
) -> None:
    """Writes report.html. bad: images that could not be used, name to reason."""
    shown = over_classes(evenly_spaced(context.test, config.eval.heldout_examples), EXAMPLES)
    grid = _image_grid(config, method, variables, context, shown)
    if jax.process_index():
        return
    records = read_metrics(context.workdir / "metrics.jsonl")
    origin = f", from {init_name(config)}" if config.init else ""
    write_report(
        context.workdir / REPORT,
        title=f"{config.method['name']} on {context.train.name}{origin}",
        info=run_info(config, method, context.train, len(context.test), context.workdir),
        records=records,
        rows=result_rows(records),
        image_grid=grid,
        names=_class_names(shown) if grid else (),
        start=start_label(config),
        figures=(
            (
                "Confusion matrix",
                "Held-out images: of each true class (row) the percentage that was predicted as each class (column).",
                context.workdir / CONFUSION,
            ),
            (
                "First training batch",
                "Images as the loader gave them, cropped and mirrored, before any corruption.",
                context.workdir / FIRST_BATCH,
            ),
        ),
        bad=bad,
        parameters=parameter_overview.get_parameter_overview(variables.params, include_stats=False),
        config_text=json.dumps(to_dict(config), indent=2),
    )


def _class_names(dataset: Dataset) -> list[str]:
    """The class of every image of a small dataset; '' where it has none, or several."""
    labels = [class_index(dataset[number].annotation) for number in range(len(dataset))]
    return [label_text(label, dataset.class_names) for label in labels]


def _image_grid(
    config: Config, method: Method, variables: Variables, context: EvaluationContext, shown: Dataset
) -> ImageGrid | None:
    """The method's images of the first batch, in its last phase; None where it has none."""
    if jax.process_count() > 1 or not len(shown):  # drawing needs whole arrays on one host
        return None
    last = method.phases[-1].method
    view = last.eval_view(shown)
    if view is None or type(last).image_grid is Method.image_grid:
        return None

    @jax.jit  # operation by operation it would compile some hundred programs
    def view_and_outputs(variables: Variables, batch: Batch) -> tuple[Any, Any]:
        keys = example_keys(config.seed, Purpose.HELDOUT, batch["epoch"], batch["index"])
        seen = last.corrupt(keys, batch, variables, train=False)
        return seen, last.forward(variables, seen, keys, False)

    first = dict(next(iter(context.batches(shown, view, "examples"))))
    seen, outputs = view_and_outputs(variables, {name: value[:EXAMPLES] for name, value in first.items()})
    return last.image_grid(seen, outputs, variables)


def log_result(workdir: Path, bad: Mapping[str, str], start: str = "untrained") -> None:
    """Logs the end of a run: the result table, bad images, where the report is. start: see `start_label`."""
    rows = result_rows(read_metrics(workdir / "metrics.jsonl"))
    for part in (format_rows(rows, start), format_bad_images(bad)):
        if part:
            log(f"\n{part}")
    if goodput := describe_goodput(read_sessions(workdir)):
        log(f"\ntime: {wall_time(workdir)}: {goodput}")
    log(f"\nreport: {workdir / REPORT}")
