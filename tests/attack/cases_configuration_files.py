"""Files that hold a configuration, names of files and presets, other commands and jobs."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attack.case import Act, Case, compare, main, tokenize
from tests.attack.cases_configuration import AREA, with_settings


def _file(text: str | bytes, preset: str = "") -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        path = tmp / "mine.py"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return main([f"--config={path}{preset}", f"--workdir={tmp / 'run'}"])

    return build


WHOLE = "from mim_jax.config.check import default_config\ndef get_config(preset=None):\n    c = default_config()\n"
FILES = [
    Case(AREA, f"file {name}", _file(text, preset), says=says)
    for name, text, preset, says in (
        ("empty", "", "", "defines no function get_config"),
        ("syntax", "def get_config(:\n", "", r"mine\.py, line 1, is no Python"),
        ("indentation", "def get_config():\nreturn 1\n", "", "line 2, is no Python"),
        ("null byte", b"x = 1\0\n", "", r"mine\.py"),
        ("latin-1", "# caf\xe9\n".encode("latin-1"), "", r"mine\.py"),
        ("raises at import", "import no_such_module\n", "", "line 1, raised ModuleNotFoundError"),
        ("raises", "def get_config(p=None):\n    return 1 / 0\n", "", "line 2, raised ZeroDivisionError"),
        ("raises an empty error", "def get_config(p=None):\n    raise ValueError\n", "", "line 2, raised ValueError"),
        ("exits", "raise SystemExit(0)\n", "", "raised SystemExit"),
        ("recursion", "def get_config(p=None):\n    return get_config(p)\n", "", "raised RecursionError"),
        ("returns nothing", "def get_config(p=None):\n    pass\n", "", "returns nothing"),
        ("returns a dict", "def get_config(p=None):\n    return {}\n", "", "returns dict"),
        ("get_config is a number", "get_config = 5\n", "", "no function get_config"),
        ("takes no preset", "def get_config():\n    pass\n", ":demo", "takes no preset"),
        ("no method", WHOLE + "    return c\n", "", "config.method.name is missing"),
        ("unknown method", WHOLE + "    c.method.unlock()\n    c.method.name = 'x'\n    return c\n", "", "config.method.name is 'x'"),
        ("method is a list", WHOLE + "    c.method.unlock()\n    c.method.name = [1]\n    return c\n", "", "config.method.name"),
        ("misspelt key", WHOLE + "    c.optm.lr = 1\n    return c\n", "", "line 4, raised"),
        ("section as a value", WHOLE + "    c.unlock()\n    c.optim = 5\n    return c\n", "", "line 5, raised TypeError"),
        ("number as a key", WHOLE + "    c.unlock()\n    c[5] = 5\n    return c\n", "", "unknown key config.5|raised"),
        ("unknown section", WHOLE + "    c.unlock()\n    c.more = 5\n    return c\n", "", "unknown key config.more"),
        ("a set", WHOLE + "    c.unlock()\n    c.seed = {1}\n    return c\n", "", "line 5, raised TypeError"),
        ("huge seed", WHOLE + "    c.unlock()\n    c.seed = 10**400\n    return c\n", "", "config.seed"),
        ("huge rate", WHOLE + "    c.unlock()\n    c.optim.lr = 10**400\n    return c\n", "", "config.optim.lr|raised"),
    )
]  # fmt: skip
NAMES = [
    Case(AREA, f"--config {name}", lambda tmp, given=given: main([*given]), says=says)
    for name, given, says in (
        ("not given", [], "no configuration was given"),
        ("empty", ["--config="], "no configuration was given"),
        ("missing", ["--config=configs/mapett.py"], r"did you mean configs/mapet\.py\?"),
        ("unknown name", ["--config=mappet"], r"did you mean mapet\?"),
        ("directory", ["--config=/"], "is a directory"),
        ("without a value", ["--config"], "--config"),
        ("very long", ["--config=" + "x" * 5000], "configuration file"),
        ("unknown preset", ["--config=mapet:cifar11"], r"did you mean cifar10\?"),
        ("null character", ["--config=a\0b"], "does not exist"),
    )
]


def _comparison(*arguments: str) -> Callable[[Path], Act]:
    def build(tmp: Path) -> Act:
        return compare(["--config=compare", f"--workdir={tmp / 'c'}", "--config.data=/nowhere", *arguments])

    return build


OTHERS = [
    Case(AREA, f"compare {' '.join(given)}", _comparison(*given), says=says)
    for given, says in (
        (["--config.seeds=0"], "does not exist"),  # one seed is legitimate; the folder is not there
        (["--config.seeds=()"], "config.seeds"),
        (["--config.seeds=0,0"], "different"),
        (["--config.seeds=a"], "config.seeds"),
        (["--config.seeds=-1"], "config.seeds"),
        (["--config.seeds=0,1.5"], "config.seeds"),
        (["--config.seeds=18446744073709551616"], "config.seeds"),
        (["--config.budget=hours"], "config.budget"),
        (["--config.budget=seconds", "--config.seconds=nan"], "config.seconds"),
        (["--config.budget=seconds", "--config.seconds=-5"], "config.seconds"),
        (["--config.calibration_steps=1"], "config.calibration_steps"),
        (["--config.only=maee"], "did you mean mae"),
        (["--config.columns=()"], "config.columns"),
        (["--config.columns=5"], "config.columns"),
        (["--config.arms=5"], "config.arms is a section"),
        (["--jobs=0"], "argument --jobs: 0 must be a whole number"),
        (["--jobs=x"], "--jobs"),
        (["--config.sed=1"], "unknown key config.sed"),
    )
]  # fmt: skip


def _task(config: str, *arguments: str) -> Callable[[Path], Act]:
    return lambda tmp: main([f"--config={config}", f"--workdir={tmp / 'run'}", *arguments])


def _tasks(config: str, more: Sequence[str], *cases: tuple[str, str]) -> list[Case]:
    return [
        Case(AREA, f"{config} {argument}", _task(config, *more, f"--config.{argument}"), says=says)
        for argument, says in cases
    ]


JOBS = [
    *_tasks("analyze", (), ("runs=", "names no run"), ("runs=/no/where", "/no/where")),
    *_tasks(
        "analyze",
        ("--config.runs=a",),
        ("job.units=inch", "one of"),
        ("job.cls=keep", "one of"),
        ("job.cka=fast", "one of"),
        ("job.images=1", "at least 4"),
        ("job.batch=0", "at least 1"),
        ("job.pictures=-1", "at least 0"),
        ("job.step=-1", "at least 0"),
    ),
    *_tasks(
        "tokenizer",
        (),
        ("job.teacher=clip", "one of"),
        ("job.vocabulary=0", "at least 2"),
        ("job.iterations=0", "at least 1"),
        ("job.restarts=-1", "at least 1"),
        ("job.mode=online", "one of"),
        ("job.start=random", "one of"),
        ("job.features_dtype=int8", "one of"),
        ("job.image_size=0", "at least 1"),
        ("job.patch=0", "at least 1"),
        ("job.points_per_code=0", "at least 1"),
        ("job.vocabluary=5", "did you mean config.job.vocabulary"),
        ("augment.flip=True", "fixed view"),
    ),
    *_tasks("gallery", (), ("model.patch=0", "at least 1"), ("seed=-1", "at least 0")),
    Case(AREA, "tokenize without weights", lambda tmp: tokenize(["--config=mapet"]), says="weights is empty"),
    Case(
        AREA,
        "tokenize batch_size",
        lambda tmp: tokenize(["--config=mapet", "--batch_size=0"]),
        says="batch_size",
    ),
    Case(AREA, "tokenize no config", lambda tmp: tokenize([]), says="--config"),
    Case(AREA, "tokenize mae", lambda tmp: tokenize(["--config=mae"]), says="no token ids"),
]
LEGITIMATE = [
    Case(
        AREA,
        f"legitimate {' '.join(given)}",
        with_settings(*given, config=config),
        accepted=True,
        seconds=60.0,
    )
    for config, given in (
        ("mae", ["model.layer_scale=0.1"]),
        ("mae", ["model.relative_bias=per_block"]),
        ("mapet", ["model.relative_bias=shared"]),
        ("mae", ["optim.lr=0"]),
        ("mae", ["eval.knn_k=5"]),
        ("mae", ["model.image_size=(32,64)", "augment.eval_crop=squash"]),
        ("mae", ["seed=4294967295"]),
    )
]

CASES = [*FILES, *NAMES, *OTHERS, *JOBS, *LEGITIMATE]
