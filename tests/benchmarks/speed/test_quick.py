"""The benchmarks run, so that they can't rot; no absolute time is asserted."""

import pytest

from benchmarks.speed.__main__ import main


def test_every_row_of_the_table_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--quick"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    assert all(" ms" in line for line in lines)
