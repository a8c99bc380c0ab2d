"""Three pages of somebody else's, each with its configuration: nothing in mim_jax knows of them (test_extensions.py)."""
