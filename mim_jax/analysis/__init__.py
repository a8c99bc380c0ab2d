"""The analyses of "Dark Secrets of Masked Image Modeling" (docs/papers/dark_secrets.md 2), on any of our runs."""
