"""The benchmark runs, and its table has a row for each way."""

from mim_jax.data import bench_loader


def test_the_table(capsys):
    bench_loader.main(count=40, batch_size=16, rounds=1)
    lines = capsys.readouterr().out.splitlines()
    assert any(line.startswith("32 JPEGs of 500 x 375") for line in lines)
    rows = {line.split("  ")[0]: line.split() for line in lines if line}
    assert {"bare loop", "Loader"} <= rows.keys() and float(rows["bare loop"][-1]) == 1.0
