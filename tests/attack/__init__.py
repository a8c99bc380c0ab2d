"""The attack: malformed input of every kind against the real entry points. `python -m tests.attack [AREA ...]` prints the table."""
