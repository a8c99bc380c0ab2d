"""Methods compared under one protocol: python -m mim_jax.compare --config=configs/compare.py --config.data=PATH --workdir=DIR

An arm is a configuration, a cell an arm with a seed. A cell has stages: `pretrain`, then the evaluations of what it
trained. Every stage is a process of `mim_jax.main`; what it ended with lies in DIR/results, one file a stage, and
DIR/table.md, .csv and .html are made from these files alone. The same command goes on after a kill and tries failed
cells again.
"""
