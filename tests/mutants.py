"""A mutation run: does a test fail when the code is wrong?

    python -m tests.mutants [WORD ...]     all mutants, or those whose file or text holds one of the words; two at a time

Each mutant replaces one piece of source text, on import, in a pytest process of its own that runs the tests of that file. A
mutant that no test notices is printed as survived, and the exit code is 1, unless EQUIVALENT says why it changes nothing.
The list is by hand: mistakes that a person makes (a sign, an axis, a bound, a constant, a key, an order), one a line.
"""

import importlib.abc
import importlib.machinery
import importlib.util
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
VARIABLE = "MIM_JAX_MUTANT"
TIMEOUT = 600


class Mutant(NamedTuple):
    """Text of one file, as it is and as it becomes."""

    path: str
    before: str
    after: str

    @property
    def name(self) -> str:
        return f"{self.path}: {' '.join(self.before.split())}  ->  {' '.join(self.after.split())}"


TESTS: dict[str, tuple[str, ...]] = {
    "corruptions/masking.py": ("corruptions/test_masking.py", "corruptions/test_units.py"),
    "corruptions/permutation.py": ("corruptions/test_permutation.py",),
    "corruptions/misalignment.py": ("corruptions/test_misalignment.py",),
    "corruptions/degradation.py": ("corruptions/test_degradation.py",),
    "corruptions/colour.py": ("corruptions/test_colour.py",),
    "corruptions/mixing.py": ("corruptions/test_mixing.py",),
    "corruptions/attention_driven.py": ("corruptions/test_attention_driven.py",),
    "targets/pixels.py": ("targets/test_pixels.py", "targets/test_local_norm.py"),
    "keys.py": ("training/test_keys.py",),
    "methods/terms.py": ("training/test_step.py",),
    "training/step.py": ("training/test_keys.py", "training/test_step.py"),
    "training/optimiser.py": ("training/test_optimiser.py", "methods/test_classify.py"),
    "training/epochs.py": ("methods/test_amt.py",),
    "data/keys.py": ("data/test_order.py", "data/test_crop.py"),
    "data/order.py": ("data/test_order.py",),
    "methods/mae.py": ("methods/test_pixel_methods.py", "methods/test_parity.py"),
    "methods/simmim.py": (
        "methods/test_pixel_methods.py",
        "methods/test_swin_simmim.py",
        "methods/test_parity.py",
    ),
    "methods/mapet.py": ("methods/test_objectives.py", "methods/test_parity.py"),
    "methods/mim.py": ("methods/test_objectives.py", "methods/test_parity.py"),
    "methods/token_method.py": (
        "methods/test_objectives.py",
        "methods/test_parity.py",
        "test_tokenize.py",
    ),
    "methods/amt.py": ("methods/test_amt.py", "methods/test_parity.py"),
    "methods/attention_bank.py": ("methods/test_amt.py",),
    "methods/beyond_masking.py": ("methods/test_beyond_masking.py",),
    "methods/classify.py": ("methods/test_classify.py",),
    "methods/rules.py": (
        "methods/test_classify.py",
        "methods/test_objectives.py",
        "methods/test_pixel_methods.py",
    ),
    "models/layers.py": ("models/test_vit.py", "models/test_bfloat16.py"),
    "models/attention.py": ("models/test_vit.py", "models/test_bfloat16.py"),
    "models/classifier.py": ("methods/test_classify.py",),
}
"""File under mim_jax/ -> the test files that should notice a mistake in it."""

M = Mutant
# fmt: off
MUTANTS = (
    # Corruptions.
    M("corruptions/masking.py", "return int(num_patches * (1.0 - ratio))", "return round(num_patches * (1.0 - ratio))"),
    M("corruptions/masking.py", "place >= length - num_masked", "place > length - num_masked"),
    M("corruptions/masking.py", "place >= length - num_masked", "place < num_masked"),
    M("corruptions/masking.py", "jnp.argsort(jnp.argsort(noise, axis=-1, stable=True), axis=-1)", "jnp.argsort(noise, axis=-1, stable=True)"),
    M("corruptions/masking.py", "order = jnp.argsort(noise, axis=-1, stable=True).astype(jnp.int32)\n    return order[..., :num_visible]", "order = jnp.argsort(-noise, axis=-1, stable=True).astype(jnp.int32)\n    return order[..., :num_visible]"),
    M("corruptions/masking.py", "order = jnp.argsort(noise, axis=-1, stable=True)", "order = jnp.argsort(noise[..., ::-1], axis=-1, stable=True)"),
    M("corruptions/masking.py", "jnp.argsort(~mask, axis=-1, stable=True)", "jnp.argsort(mask, axis=-1, stable=True)"),
    M("corruptions/masking.py", "return math.ceil(ratio * (rows * columns))", "return round(ratio * (rows * columns))"),
    M("corruptions/masking.py", ".reshape(*noise.shape[:-1], rows, 1, columns, 1)", ".reshape(*noise.shape[:-1], columns, 1, rows, 1).swapaxes(-4, -2)"),
    M("corruptions/masking.py", "jnp.where(mask, 1.0 + noise, noise)", "jnp.where(mask, noise, noise)"),
    M("corruptions/masking.py", "area = min_block + draw[0] * (allowed - min_block)", "area = min_block + draw[0] * (num_masked - min_block)"),
    M("corruptions/masking.py", "height = jnp.round(jnp.sqrt(area * ratio))", "height = jnp.round(jnp.sqrt(area / ratio))"),
    M("corruptions/masking.py", "(rows - height + 1)", "(rows - height)"),
    M("corruptions/masking.py", "inside & ~mask", "inside"),
    M("corruptions/masking.py", "block = inside[jnp.argmax(fits)]", "block = inside[-1]"),
    M("corruptions/masking.py", "(new >= 1) & (new <= allowed)", "(new <= allowed)"),
    M("corruptions/permutation.py", "jnp.argsort(order, axis=-1).astype", "jnp.asarray(order).astype"),
    M("corruptions/permutation.py", "patches = 1 + jnp.argsort(noise", "patches = 1 + jnp.argsort(-noise"),
    M("corruptions/permutation.py", "(rank[..., None, :] < context) | (rank[..., None, :] <= horizon[..., :, None])", "(rank[..., None, :] <= horizon[..., :, None])"),
    M("corruptions/permutation.py", "rank[..., None, :] <= horizon[..., :, None])", "rank[..., None, :] < horizon[..., :, None])"),
    M("corruptions/permutation.py", "mask_tokens = target_rank[..., None, :] > horizon", "mask_tokens = target_rank[..., None, :] >= horizon"),
    M("corruptions/permutation.py", "query = allow(target_rank - 1,", "query = allow(target_rank,"),
    M("corruptions/permutation.py", "MASK_HORIZON = -1", "MASK_HORIZON = 10**6"),
    M("corruptions/permutation.py", "targets, axis=-1) <= upper", "targets, axis=-1) < upper"),
    M("corruptions/permutation.py", "first = -(-group * num_targets // groups)", "first = group * num_targets // groups"),
    M("corruptions/misalignment.py", "-(-(rows + 1) * size_in // size_out)", "(rows + 1) * size_in // size_out"),
    M("corruptions/misalignment.py", "/ (stop - start)", "/ (size_in / size_out)"),
    M("corruptions/misalignment.py", "place = jnp.where(place < 0, -1 - place, place)", "place = jnp.where(place < 0, -place, place)"),
    M("corruptions/misalignment.py", "2 * length - 1 - place", "2 * length - 2 - place"),
    M("corruptions/misalignment.py", "(2,), 0, jnp.maximum", "(2,), 1, jnp.maximum"),
    M("corruptions/misalignment.py", "STRENGTH = (0.15, 0.25)", "STRENGTH = (0.1, 0.25)"),
    M("corruptions/misalignment.py", "towards = centre - place", "towards = place - centre"),
    M("corruptions/misalignment.py", "y * width + x", "x * width + y"),
    M("corruptions/misalignment.py", "right * at(y0, x1)", "right * at(y1, x0)"),
    M("corruptions/misalignment.py", "return (1 - lower) * above + lower * below", "return lower * above + (1 - lower) * below"),
    M("corruptions/degradation.py", "1.0 / size**2 + std", "1.0 / size + std"),
    M("corruptions/degradation.py", "kernels.astype(dtype).transpose(0, 3, 1, 4, 2)", "kernels.astype(dtype).transpose(0, 3, 2, 4, 1)"),
    M("corruptions/degradation.py", "terms[:, y, :, y : y + height]", "terms[:, y, :, side - 1 - y : side - 1 - y + height]"),
    M("corruptions/degradation.py", "MAX_WEIGHT = 0.667", "MAX_WEIGHT = 1.0"),
    M("corruptions/colour.py", "LUMA = (0.299, 0.587, 0.114)", "LUMA = (0.114, 0.587, 0.299)"),
    M("corruptions/colour.py", "minval=1.0 - strength", "minval=1.0"),
    M("corruptions/colour.py", "jnp.full_like(x, jnp.mean(x @ luma))", "jnp.full_like(x, jnp.mean(x))"),
    M("corruptions/colour.py", "image = jax.lax.switch(order[place]", "image = jax.lax.switch(place"),
    M("corruptions/mixing.py", "off = smoothing / num_classes", "off = smoothing / (num_classes - 1)"),
    M("corruptions/mixing.py", "jnp.where(labels[..., None] >= 0, rows, 0.0)", "jnp.where(labels[..., None] > 0, rows, 0.0)"),
    M("corruptions/mixing.py", "return weight * own + (1.0 - weight) * own[::-1]", "return (1.0 - weight) * own + weight * own[::-1]"),
    M("corruptions/mixing.py", "lam * targets + (1.0 - lam) * targets[::-1]", "(1.0 - lam) * targets + lam * targets[::-1]"),
    M("corruptions/mixing.py", "jnp.sqrt(1.0 - jnp.asarray(lam, jnp.float32))", "1.0 - jnp.asarray(lam, jnp.float32)"),
    M("corruptions/mixing.py", "1.0 - (y1 - y0) * (x1 - x0) / (height * width)", "jnp.asarray(lam, jnp.float32) + 0 * (y1 - y0) * x1 * x0"),
    M("corruptions/mixing.py", "fits = (rows < height) & (columns < width)", "fits = (rows <= height) & (columns <= width)"),
    M("corruptions/attention_driven.py", "int(num_patches * (mask_ratio + throw_ratio))", "int(num_patches * mask_ratio) + int(num_patches * throw_ratio)"),
    M("corruptions/attention_driven.py", "jnp.argsort(-scores, axis=-1, stable=True)", "jnp.argsort(scores, axis=-1, stable=True)[..., ::-1]"),
    M("corruptions/attention_driven.py", "jnp.argsort(-scores, axis=-1, stable=True)", "jnp.argsort(scores, axis=-1, stable=True)"),
    M("corruptions/attention_driven.py", "noise + jnp.where(some, jnp.log(", "noise + jnp.where(some, 2 * jnp.log("),
    M("corruptions/attention_driven.py", "jnp.where(some, weights, 1.0)), NEVER)", "jnp.where(some, weights, 1.0)), 0.0)"),
    M("corruptions/attention_driven.py", "jnp.mean((attention - low) / jnp.maximum(high - low, 1e-12), axis=-2)", "jnp.mean(attention, axis=-2)"),
    M("corruptions/attention_driven.py", "(jnp.arange(places) + 0.5) * (size * cells / places) - 0.5", "(jnp.arange(places) + 0.5) * (size * cells / places)"),
    M("corruptions/attention_driven.py", "horizontal = _linear(box[1], box[3], attention.shape[1], grid[1])\n    horizontal = jnp.where(flip, horizontal[::-1], horizontal)", "horizontal = _linear(box[1], box[3], attention.shape[1], grid[1])"),
    M("corruptions/attention_driven.py", "(units // columns) * unit * grid[1] + (units % columns) * unit", "(units // columns) * unit * grid[1] + (units % columns)"),
    M("corruptions/attention_driven.py", "return parts.sum(axis=(-3, -1))", "return parts.max(axis=(-3, -1))"),
    # Targets.
    M("targets/pixels.py", "return blocks.transpose(0, 1, 3, 2, 4, 5).reshape(batch, rows * columns", "return blocks.transpose(0, 1, 3, 4, 2, 5).reshape(batch, rows * columns"),
    M("targets/pixels.py", "/ (values.shape[axis] - 1)", "/ values.shape[axis]"),
    M("targets/pixels.py", "return centred / jnp.sqrt(var + NORM_EPS)", "return centred / (jnp.sqrt(var) + NORM_EPS)"),
    M("targets/pixels.py", "NORM_EPS = 1e-6", "NORM_EPS = 1e-5"),
    M("targets/pixels.py", "images[:, :, ::-1], images)", "images[:, ::-1], images)"),
    M("targets/pixels.py", "counts / (counts - 1)", "counts / counts"),
    M("targets/pixels.py", "<= reach)", "< reach)"),
    M("targets/pixels.py", "/ 255.0 if", "/ 256.0 if"),
    # Keys, order, step, optimiser.
    M("keys.py", "jax.random.fold_in(jax.random.fold_in(key, d), i)", "jax.random.fold_in(key, i)"),
    M("keys.py", "jax.random.fold_in(jax.random.fold_in(key, d), i)", "jax.random.fold_in(key, d)"),
    M("keys.py", "jax.random.fold_in(jax.random.fold_in(key, d), i)", "jax.random.fold_in(key, d + i)"),
    M("keys.py", "fold_in(jax.random.key(seed), int(purpose))", "fold_in(jax.random.key(seed), 0)"),
    M("keys.py", "HELDOUT = 3", "HELDOUT = 2"),
    M("data/keys.py", "*numbers: int) -> np.random.Philox:", "*numbers: int, unused: int = 0) -> np.random.Philox:\n    numbers = numbers[:1]"),
    M("data/keys.py", "packed + purpose.encode()", "packed"),
    M("data/keys.py", "np.uint64(11)) * 2.0**-53", "np.uint64(11)) * 2.0**-52"),
    M("data/order.py", 'keys.permutation(length, seed, "order", epoch)', 'keys.permutation(length, seed, "order", 0)'),
    M("data/order.py", "np.divmod(positions, length)", "np.divmod(positions, length + 1)"),
    M("training/step.py", 'example_keys(seed, Purpose.CORRUPT, batch["epoch"], batch["index"])', 'example_keys(seed, Purpose.CORRUPT, 0 * batch["epoch"], batch["index"])'),
    M("training/step.py", "forward_keys = example_keys(seed, Purpose.FORWARD", "forward_keys = example_keys(seed, Purpose.CORRUPT"),
    M("methods/terms.py", "jnp.sum(jnp.where(valid, total, 0.0))", "jnp.sum(total)"),
    M("methods/terms.py", "jnp.sum(jnp.where(valid, count, 0.0))", "jnp.sum(count)"),
    M("training/step.py", "x.reshape(x.shape[0] // parts, parts, *x.shape[1:]).swapaxes(0, 1)", "jnp.broadcast_to(x[: x.shape[0] // parts], (parts, x.shape[0] // parts, *x.shape[1:]))"),
    M("training/step.py", "counts = jax.tree.map(lambda c: jnp.sum(c, axis=0), part_counts)", "counts = jax.tree.map(lambda c: jnp.mean(c, axis=0), part_counts)"),
    M("training/step.py", "state.ema, 1.0 - decay)", "state.ema, decay)"),
    M("training/step.py", "step=state.step + 1", "step=state.step + 2"),
    M("training/step.py", "learning_rate(state.step, config", "learning_rate(state.step + 1, config"),
    M("training/optimiser.py", "optax.scale_by_adam(o.beta1, o.beta2, o.eps)", "optax.scale_by_adam(o.beta2, o.beta1, o.eps)"),
    M("training/optimiser.py", "optax.scale_by_adam(o.beta1, o.beta2, o.eps)", "optax.scale_by_adam(o.beta1, o.beta2)"),
    M("training/optimiser.py", "optax.add_decayed_weights(o.weight_decay, decayed),", "optax.add_decayed_weights(o.weight_decay),"),
    M("training/optimiser.py", "        parts.append(optax.stateless(by_layer))", "        parts.insert(0, optax.stateless(by_layer))"),
    M("training/optimiser.py", "        parts.append(optax.stateless(by_layer))", "        parts.insert(len(parts) - 1, optax.stateless(by_layer))"),
    M("training/optimiser.py", "(rules.last_layer - id)", "(id)"),
    M("training/optimiser.py", "LARS_TRUST = 0.001", "LARS_TRUST = 0.01"),
    M("training/optimiser.py", "optax.trace(o.momentum)", "optax.trace(o.momentum, nesterov=True)"),
    M("training/optimiser.py", "jnp.square(jnp.sin(0.5 * jnp.pi * remaining))", "jnp.sin(0.5 * jnp.pi * remaining)"),
    M("training/optimiser.py", 's.cosine_from == "warmup"', 's.cosine_from != "warmup"'),
    M("training/optimiser.py", "s.warmup_lr + done", "done"),
    M("training/optimiser.py", "jnp.where(done < warmup, rising, cosine)", "jnp.where(done <= warmup, rising, cosine)"),
    M("training/optimiser.py", 'side="right"', 'side="left"'),
    M("training/epochs.py", "-(-epoch * num_examples // batch_size)", "epoch * num_examples // batch_size"),
    # Methods.
    M("methods/mae.py", "jnp.mean(error, axis=-1), axis=1)", "jnp.sum(error, axis=-1), axis=1)"),
    M("methods/mae.py", 'gather_tokens(patches, hidden), "joint"', 'gather_tokens(patches, hidden), "channel"'),
    M("methods/mae.py", '(r"(kernel|cls_token|mask_token)$", True)', '(r"(kernel|cls_token)$", True)'),
    M("methods/simmim.py", "std = 0.02 / (2.0 * (index + 1)) ** 0.5", "std = 0.02 / (2.0 * index + 1) ** 0.5"),
    M("methods/simmim.py", "error = jnp.abs(", "error = jnp.square("),
    M("methods/simmim.py", "count = target.shape[1] * target.shape[2]", "count = target.shape[1]"),
    M("methods/simmim.py", "47 if swin else 0", "45 if swin else 0"),
    M("methods/mapet.py", "1 + round(self.vit.num_patches / 4)", "round(self.vit.num_patches / 4)"),
    M("methods/mapet.py", "targets = order[:, self.context :] - 1", "targets = order[:, self.context :]"),
    M("methods/mapet.py", '("pim", "full_pim")\n', '("pim",)\n'),
    M("methods/mim.py", "round(options.mask_ratio * length)", "round((1 - options.mask_ratio) * length)"),
    M("methods/token_method.py", "jnp.argmax(log_probability, axis=-1) == labels", "jnp.argmin(log_probability, axis=-1) == labels"),
    M("methods/token_method.py", 'flip_where(to_unit(batch["teacher"]), batch["flip"])', 'to_unit(batch["teacher"])'),
    M("methods/amt.py", '("mae", "amt"): (0.45, 0.40)', '("mae", "amt"): (0.40, 0.45)'),
    M("methods/amt.py", "masked, _, visible = partition(scores", "visible, _, masked = partition(-scores"),
    M("methods/amt.py", "units = self.vit.num_patches // options.unit**2", "units = self.vit.num_patches // options.unit"),
    M("methods/attention_bank.py", "return self.start + 1", "return self.start"),
    M("methods/attention_bank.py", "% self.interval == 0", "% self.interval == 1"),
    M("methods/attention_bank.py", "jnp.round(code * maps)", "jnp.floor(code * maps)"),
    M("methods/attention_bank.py", "rows[..., method.vit.prefix :]", "rows[..., : method.vit.num_patches]"),
    M("methods/beyond_masking.py", '{"centre": 0.8, "edge": 0.2}', '{"centre": 0.5, "edge": 0.5}'),
    M("methods/beyond_masking.py", 'normalise_patches(patchify(images, self.vit.patch), "channel")', 'normalise_patches(patchify(images, self.vit.patch), "joint")'),
    M("methods/beyond_masking.py", "jnp.argsort(jnp.concatenate(indices, axis=1), axis=1)", "jnp.concatenate(indices, axis=1)"),
    M("methods/beyond_masking.py", "middle[:, :, :margin], middle[:, :, -margin:]", "squares[:, :, :margin], squares[:, :, -margin:]"),
    M("methods/classify.py", "variance * len(features) / max(1, len(features) - 1)", "variance"),
    M("methods/classify.py", '(r"(kernel|table)$", True)', '(r"kernel$", True)'),
    M("methods/classify.py", "jax.random.fold_in(keys[0], 6)", "jax.random.fold_in(keys[0], 5)"),
    M("methods/rules.py", "for index in range(depth)]\n    return (*blocks", "for index in range(depth - 1)]\n    return (*blocks"),
    M("methods/rules.py", "(6.0 / (fan_in + fan_out)) ** 0.5", "(3.0 / (fan_in + fan_out)) ** 0.5"),
    # Models.
    M("models/layers.py", "(1.0 + jax.lax.erf(x * 0.5**0.5))", "(1.0 + jnp.tanh(0.7978845608 * (x + 0.044715 * x**3)))"),
    M("models/layers.py", "return (x.astype(wide_dtype(x)) + parameter).astype(x.dtype)", "return x + parameter.astype(x.dtype)"),
    M("models/layers.py", "return jnp.broadcast_to(parameter, shape).astype(dtype)", "return jnp.broadcast_to(parameter.astype(dtype), shape)"),
    M("models/layers.py", "preferred_element_type=kernel.dtype", "preferred_element_type=None"),
    M("models/layers.py", "return (x.astype(wide_dtype(x)) * gamma).astype(x.dtype)", "return x * gamma.astype(x.dtype)"),
    M("models/layers.py", "branch / (1.0 - rate)", "branch"),
    M("models/layers.py", "jax.random.fold_in(key, salt)", "key"),
    M("models/attention.py", "cotangent = cotangent.astype(q.dtype)", "cotangent = cotangent * 1.0"),
    M("models/attention.py", "q * q.shape[-1] ** -0.5", "q * q.shape[-2] ** -0.5"),
    M("models/classifier.py", "BN_EPS = 1e-6", "BN_EPS = 1e-5"),
    M("models/classifier.py", "BN_MOMENTUM = 0.1", "BN_MOMENTUM = 0.9"),
)
# fmt: on

EQUIVALENT: dict[str, str] = {
    "jax.random.fold_in(keys[0], 5)": "another stream of random numbers, as good as the one before",
}
"""Text after the change -> why no test can see it."""


class _Loader(importlib.machinery.SourceFileLoader):
    """Loads the mutated source; nothing is written to disk."""

    def __init__(self, fullname: str, path: str, mutant: Mutant) -> None:
        super().__init__(fullname, path)
        self.mutant = mutant

    def get_code(self, fullname: str):  # type: ignore[no-untyped-def]
        source = Path(self.path).read_text().replace(self.mutant.before, self.mutant.after, 1)
        return compile(source, self.path, "exec")


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutant: Mutant) -> None:
        self.mutant = mutant
        self.module = "mim_jax." + mutant.path.removesuffix(".py").replace("/", ".")

    def find_spec(self, fullname: str, path: object = None, target: object = None):  # type: ignore[no-untyped-def]
        if fullname != self.module:
            return None
        file = str(ROOT / "mim_jax" / self.mutant.path)
        return importlib.util.spec_from_loader(fullname, _Loader(fullname, file, self.mutant))


def pytest_configure() -> None:
    """As a plugin of pytest, in the process of one mutant: found before conftest's checks of annotations find the file as it is."""
    if VARIABLE in os.environ:
        sys.meta_path.insert(0, _Finder(MUTANTS[int(os.environ[VARIABLE])]))


def run(number: int) -> tuple[Mutant, str, float]:
    """One mutant: "killed", "survived" or "broken" (its tests could not run at all), and the seconds it took."""
    mutant, started = MUTANTS[number], time.monotonic()
    files = [f"tests/{name}" for name in TESTS[mutant.path]]
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-p",
        "tests.mutants",
        "-p",
        "no:cacheprovider",
        *files,
    ]
    environment = {**os.environ, VARIABLE: str(number)}
    try:
        code = subprocess.run(
            command, cwd=ROOT, env=environment, timeout=TIMEOUT, capture_output=True, check=False
        ).returncode
    except subprocess.TimeoutExpired:
        code = 1
    word = {0: "survived", 1: "killed"}.get(code, f"broken ({code})")
    return mutant, word, time.monotonic() - started


def main(words: list[str]) -> int:
    """Runs the mutants; the exit code: 0 if every one was killed, or is known to be equivalent."""
    for mutant in MUTANTS:
        if mutant.before not in (ROOT / "mim_jax" / mutant.path).read_text():
            print(f"no such text any more: {mutant.name}")
            return 2
    chosen = [n for n, m in enumerate(MUTANTS) if not words or any(word in m.name for word in words)]
    counts: dict[str, int] = {}
    with ThreadPoolExecutor(2) as pool:
        for mutant, word, seconds in pool.map(run, chosen):
            word = "equivalent" if word == "survived" and mutant.after in EQUIVALENT else word
            counts[word] = counts.get(word, 0) + 1
            print(f"{word:10} {seconds:5.0f} s  {mutant.name}", flush=True)
    print(", ".join(f"{count} {word}" for word, count in counts.items()))
    return int(set(counts) - {"killed", "equivalent"} != set())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
