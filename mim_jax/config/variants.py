"""The names of the networks' sizes."""

VARIANTS: dict[str, dict[str, int]] = {
    "mu": dict(width=32, depth=2, heads=2),  # tests
    "nano": dict(width=96, depth=4, heads=3),  # demos on a CPU
    "ti": dict(width=192, depth=12, heads=3),
    "s": dict(width=384, depth=12, heads=6),
    "b": dict(width=768, depth=12, heads=12),
    "l": dict(width=1024, depth=24, heads=16),
    "h": dict(width=1280, depth=32, heads=16),
}

SWINS = ("swinv2_mu", "swinv2_nano", "swinv2_t", "swinv2_s", "swinv2_b", "swinv2_l", "swinv2_h")
"""Their sizes: models/swin.py."""
