"""Compares methods under one protocol: python -m mim_jax.compare --config=configs/compare.py --config.data=PATH --workdir=DIR

An arm is a configuration, a cell is an arm with a seed. A cell has stages: `pretrain`, then the evaluations of the network
that it trained. Every stage is a process of `mim_jax.main`; its result is a file in DIR/results, and DIR/table.md, .csv and
.html are made from these files alone. The same command resumes after a kill and retries failed cells.
"""
