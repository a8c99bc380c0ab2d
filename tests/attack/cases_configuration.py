"""Mistakes of configuration: values out of range or of another kind, keys that are not there, files that are none."""

from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attack.case import Act, Case, compare, config_file, main, tokenize, train

AREA = "configuration"


def _set(*overrides: str, config: str = "mapet") -> Callable[[Path], Act]:
    return lambda tmp: train(tmp / "run", *overrides, config=config)


def _values(says: str, *settings: str, config: str = "mapet") -> list[Case]:
    """A case for every setting, alone; `says`: what each sentence must hold beside the key."""
    cases = []
    for setting in settings:
        key = setting.partition("=")[0].replace(".", r"\.")
        name = f"{config} {setting[:60]}"
        cases.append(Case(AREA, name, _set(setting, config=config), says=rf"config\.{key}.*({says})"))
    return cases


BELOW = _values(
    "at least 1\\b",
    *(f"model.{key}=0" for key in ("width", "heads", "depth", "patch", "image_size", "window")),
    "model.width=-12",
    "data.batch_size=0",
    "data.batch_size=-64",
    "data.crops_per_picture=0",
    "optim.accumulation=0",
    "optim.accumulation=-1",
    "optim.lr_batch=0",
    "schedule.steps=0",
    "schedule.steps=-5",
    "mesh.fsdp=0",
    "mesh.tensor=-1",
    "eval.every_steps=0",
    "eval.batch_size=0",
    "eval.knn_k=0",
    "eval.knn_examples=0",
    "checkpoint.every_steps=0",
    "checkpoint.keep_last=0",
    "log.every_steps=0",
    "log.every_steps=-3",
    "method.context=0",
    "method.groups=0",
    "method.kmeans_patches=0",
)
NEGATIVE = _values(
    "at least 0\\b",
    "optim.weight_decay=-1",
    "optim.beta1=-0.5",
    "optim.beta2=-0.5",
    "optim.momentum=-0.1",
    "optim.base_lr=-1e-3",
    "optim.lr=-1",
    "optim.ema=-0.1",
    "schedule.warmup_epochs=-1",
    "schedule.warmup_steps=-1",
    "schedule.min_lr=-1",
    "schedule.warmup_lr=-1",
    "schedule.cooldown_epochs=-1",
    "model.drop_path=-0.1",
    "augment.jitter=-1",
    "eval.heldout_examples=-1",
    "eval.attention_images=-1",
    "checkpoint.keep_every=-1",
    "data.threads=-1",
    "data.prefetch=-1",
    "seed=-1",
    "surgery.seed=-1",
    "surgery.blocks=-1",
    "data.mean=(-0.1,0.5,0.5)",
)
ABOVE = _values(
    "(at most|below) ",
    "model.drop_path=2",
    "model.drop_path=1",
    "model.depth=100000",
    "model.width=1000000",
    "model.mlp_ratio=1e9",
    "optim.ema=1.5",
    "optim.ema=1",
    "optim.beta1=1",
    "optim.beta2=2",
    "optim.layer_decay=3",
    "optim.lr=1e30",
    "augment.scale=(0.5,1.5)",
    "augment.jitter=2",
    "data.threads=1000000",
    "data.prefetch=1000000000",
    "data.crops_per_picture=1000000000000",
    "data.batch_size=99999999999999999999",
    "eval.knn_k=1000000000",
    "schedule.steps=99999999999",
    "schedule.epochs=1e300",
    "seed=18446744073709551616",
    "seed=" + "9" * 4000,
    "seed=4294967296",
    "method.vocabulary=999999999999",
    "data.mean=(0.5,0.5,128)",
)
ZERO = _values(
    "(above 0|at least)",
    "model.mlp_ratio=0",
    "model.layer_scale=0",
    "model.norm_eps=0",
    "optim.eps=0",
    "optim.eps=-1e-8",
    "optim.clip_norm=0",
    "optim.layer_decay=0",
    "schedule.epochs=0",
    "schedule.epochs=-3",
    "augment.scale=(0,1)",
    "augment.ratio=(0,1)",
    "eval.knn_temperature=0",
    "eval.knn_temperature=-1",
    "data.std=(0,1,1)",
    "data.std=(-1,1,1)",
    "method.vocabulary=1",
)
NOT_FINITE = _values(
    "finite number",
    *(f"{key}={value}" for value in ("nan", "inf", "-inf") for key in ("optim.lr", "schedule.epochs")),
    "eval.knn_temperature=nan",
    "model.mlp_ratio=nan",
    "model.drop_path=nan",
    "optim.weight_decay=nan",
    "optim.beta2=nan",
    "optim.clip_norm=inf",
    "optim.ema=nan",
    "schedule.min_lr=nan",
    "schedule.warmup_epochs=inf",
    "augment.jitter=nan",
    "optim.lr=1e400",
)
KINDS = _values(
    "must (be|hold|rise)",
    "model.depth=deep",
    "model.depth=2.5",
    "model.depth=True",
    "model.width=()",
    "model.cls=maybe",
    "model.cls=2",
    "model.image_size=big",
    "model.image_size=(32,)",
    "model.image_size=(8,8,8)",
    "model.image_size=8.5",
    "model.layer_scale=small",
    "model.pretrained_windows=x",
    "data.batch_size=many",
    "data.batch_size=1e2",
    "data.batch_size=None",
    "data.mean=abc",
    "data.mean=(0.5,)",
    "data.mean=0.5",
    "data.mean=()",
    "data.mean=(nan,0,0)",
    "data.mean=('a','b','c')",
    "data.mean=(0.5,0.5,None)",
    "data.mean=(((0.5,),),0,0)",
    "data.std=(1,1)",
    "augment.scale=(0.5,)",
    "augment.scale=(0.9,0.2)",
    "augment.scale=0.5",
    "augment.ratio=(2,1)",
    "augment.ratio=(1,2,3)",
    "augment.flip=5",
    "optim.lr=fast",
    "optim.clip_norm=x",
    "schedule.steps=3.5",
    "eval.knn_k=()",
    "eval.knn_k=(5,5)",
    "eval.knn_k=(5,'a')",
    "eval.knn_k=[1.5]",
    "eval.knn=perhaps",
    "log.tensorboard=sometimes",
    "seed=1.0",
    "seed=one",
    "method.context=x",
    "data.batch_size=" + "(" * 300,
)
WORDS = _values(
    "one of",
    "task=pretrian",
    "model.variant=xxl",
    "model.positions=sin",
    "model.relative_bias=all",
    "model.qkv_bias=q",
    "model.activation=relu",
    "model.remat=all",
    "model.attention=flash",
    "model.dtype=float16",
    "data.on_bad_image=ignore",
    "augment.crop=center",
    "augment.eval_crop=middle",
    "augment.resample=nearest",
    "optim.name=sgd",
    "schedule.cosine_from=end",
    "eval.knn_pool=max",
    "surgery.mode=cut",
    "method.objective=mapeet",
    "method.masking=blocks",
    "method.tokenizer=clip",
    "method.name=mapett",
)
METHODS = [
    *_values("at least 0", "method.mask_ratio=-0.5", config="mae"),
    *_values("at most 1", "method.mask_ratio=1.5", config="mae"),
    *_values("finite", "method.mask_ratio=nan", config="mae"),
    *_values("visible", "method.mask_ratio=1", "method.mask_ratio=0", config="mae"),
    *_values(
        "at least 1",
        "method.decoder_depth=0",
        "method.decoder_width=0",
        "method.decoder_heads=0",
        config="mae",
    ),
    *_values("multiple", "method.decoder_width=50", config="mae"),
    *_values("at least 1", "method.unit=0", config="simmim"),
    *_values("units of 3x3", "method.unit=3", config="simmim"),
    *_values("odd", "method.local_norm=2", config="simmim"),
    *_values("cells", "method.mask_ratio=0", "method.mask_ratio=1", config="simmim"),
    *_values("at least 0", "method.local_norm=-1", "method.mask_ratio=-1", config="simmim"),
    *_values("one of", "method.base=beit", "method.mode=at", "method.mapping=corner", config="amt"),
    *_values("one of", "method.control=none2", "method.bank=disk", "method.bank_dtype=int8", config="amt"),
    *_values("at least", "method.start=-1", "method.interval=0", config="amt"),
    *_values("is '", "method.task=mask+zoom", "method.task=mask+", "method.task=+", config="beyond_masking"),
    *_values("once", "method.task=mask+mask", "method.task=zoom_in+zoom_out", config="beyond_masking"),
    *_values("empty", "method.task=", config="beyond_masking"),
    *_values("one of", "method.draws=image", config="beyond_masking"),
    *_values("image_size", "method.zoom_in_size=1", "method.zoom_in_size=37", config="beyond_masking"),
    *_values("at least 1", "method.num_masked=0", "method.min_block=0", config="beit"),
    *_values("number of patches", "method.num_masked=65", config="beit"),
    *_values("one of", "method.pool=max", config="supervised"),
    *_values("below 1", "method.label_smoothing=1", config="supervised"),
    *_values("at least 0", "method.mixup=-1", "method.cutmix=-1", "method.erase=-1", config="supervised"),
    *_values("at least 0", "method.rand_augment=-2", "method.head_std=-1", config="supervised"),
    *_values("classes", "method.num_classes=7", config="supervised"),
    *_values("block", "method.layer=99", config="supervised"),
]
CROSSED = [
    Case(
        AREA,
        "amt thrown",
        _set("schedule.steps=None", "method.throw_ratio=1", config="amt"),
        says="throw_ratio",
    ),
    Case(AREA, "min_lr above lr", _set("schedule.min_lr=5"), says="min_lr=5 is above the peak rate"),
    Case(AREA, "warmup_lr above lr", _set("schedule.warmup_lr=5"), says="warmup_lr=5 is above the peak rate"),
    Case(AREA, "knn_layer", _set("eval.knn=True", "eval.knn_layer=99"), says=r"knn_layer=99.*0\.\.1"),
    Case(AREA, "warm-up longer", _set("schedule.warmup_steps=9"), says="warmup_steps=9 is longer"),
    Case(AREA, "heads", _set("model.heads=5"), says="width=32 cannot be split into config.model.heads=5"),
    Case(
        AREA, "patch above the image", _set("model.patch=64"), says="multiple of config.model.patch=64.*is 64"
    ),
    Case(AREA, "image_size", _set("model.image_size=9"), says="the nearest is 8"),
    Case(AREA, "image_size pair", _set("model.image_size=(9,15)"), says=r"the nearest is \(8, 16\)"),
    Case(AREA, "accumulation", _set("optim.accumulation=3"), says="batch_size=16 cannot be split evenly"),
    Case(AREA, "fsdp", _set("mesh.fsdp=3"), says="fsdp=3 x tensor=1 does not divide"),
    Case(AREA, "mesh.data", _set("mesh.data=0"), says="data=0 x fsdp=1"),
    Case(
        AREA,
        "cls pool without cls",
        _set(
            "model.cls=False",
            "eval.knn=True",
            "eval.knn_pool=cls",
            "model.relative_bias=none",
            config="simmim",
        ),
        says="no CLS token",
    ),
    Case(AREA, "mlp of no channel", _set("model.mlp_ratio=0.001"), says="mlp_ratio=0.001 leaves"),
    Case(
        AREA,
        "sincos width",
        _set("model.positions=sincos_2d", "model.width=34", "model.heads=2"),
        says="multiple of 4",
    ),
    Case(AREA, "context beyond", _set("method.context=17"), says="context=17"),
    Case(
        AREA,
        "too many steps",
        _set(
            "schedule.steps=None",
            "schedule.epochs=1e6",
            "data.source=synthetic:1000000:8",
            "data.batch_size=1",
        ),
        says="epochs=.* are 1e.12 steps",
    ),
    Case(AREA, "source=init without init", _set("data.source=init"), says="source=init"),
    Case(AREA, "surgery without init", _set("surgery.mode=reinit"), says="config.init"),
    Case(AREA, "vit method on a swin", _set("model.variant=swinv2_mu"), says="needs a ViT"),
]
MEMORY = [
    Case(AREA, "batch of a thousand million", _set("data.batch_size=999999999", config="mae"), says="config.data.batch_size"),
    Case(AREA, "image of 100000", _set("model.image_size=100000", config="mae"), says="config.model.image_size"),
    Case(AREA, "image of 100000, mapet", _set("model.image_size=100000", "augment.crop=random_resized"), says="config.model.image_size"),
    Case(AREA, "image of 1048576, patch 1", _set("model.image_size=1048576", "model.patch=1", config="simmim"), says="config.model.image_size"),
    Case(AREA, "evaluation of a thousand million", _set("eval.batch_size=999999999", config="mae"), says="config.eval.batch_size"),
    Case(AREA, "width of 65536", _set("model.width=65536", "model.heads=64", "model.depth=200", config="mae"), says="config.model"),
    Case(AREA, "crops by the million", _set("data.source=photos", "data.crops_per_picture=1000000", "data.prefetch=1024", "data.batch_size=100000000", config="mae"), says="config.data.batch_size"),
    Case(AREA, "prefetch of 1024 large batches", _set("data.prefetch=1024", "data.batch_size=16384", "model.image_size=224", config="mae"), says="config.data"),
]  # fmt: skip


def _arguments(*arguments: str) -> Callable[[Path], Act]:
    return lambda tmp: main([f"--config={config_file('mapet')}", f"--workdir={tmp / 'run'}", *arguments])


KEYS = [
    Case(AREA, f"argument {argument!r}", _arguments(argument), says=says)
    for argument, says in (
        ("--config.optim.lrr=1", r"unknown key config\.optim\.lrr; did you mean config\.optim\.lr\?"),
        ("--config.optm.lr=1", r"unknown key config\.optm\.lr; did you mean config\.optim\.lr\?"),
        ("--config.Attribute=1", r"unknown key config\.Attribute"),
        ("--config.optim.lr.x=1", r"config\.optim\.lr is a value, not a section"),
        ("--config.method.objectiv=pim", r"did you mean config\.method\.objective\?"),
        ("--config.=1", r"unknown key config\.$|unknown key config\.[;]"),
        ("--config..lr=1", r"unknown key config\.\.lr"),
        ("--config.optim=3", r"config\.optim is a section"),
        ("--config.method=mae", r"config\.method is a section"),
        ("--config.model.heads.=3", "not a section"),
        ("--config.optim.lr", "has no value"),
        ("--config.mro=1", "unknown key"),
        ("--config._fields=1", "unknown key"),
        ("--config.lock=1", "unknown key"),
        ("--config.items=1", "unknown key"),
        ("--wrkdir=x", r"unknown option --wrkdir=x; did you mean --workdir\?"),
        ("--overwrite=yes", "overwrite"),
        ("-x", "unknown option -x"),
        ("demo", "unexpected argument 'demo'"),
        ("--config.method.name=mae", "unknown key config.method"),
        ("--config.data.source=folder:/no\nwhere", r"/no\\nwhere"),
        ("--config.data.source=folder:/no\x1b[31mwhere", r"/no\\x1b"),
        ("--config.init=/no\nwhere", r"/no\\nwhere"),
        ("--config.data.source=", "source is empty"),
        ("--config.data.split=", "split is empty"),
        ("--config.data.source=folder:a\0b", "null character"),
    )
]


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
        (["--jobs=0"], "--jobs=0"),
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
    Case(AREA, f"legitimate {' '.join(given)}", _set(*given, config=config), accepted=True, seconds=60.0)
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
CASES = [
    *BELOW, *NEGATIVE, *ABOVE, *ZERO, *NOT_FINITE, *KINDS, *WORDS, *METHODS, *CROSSED, *MEMORY, *KEYS, *FILES, *NAMES,
    *OTHERS, *JOBS, *LEGITIMATE,
]  # fmt: skip
