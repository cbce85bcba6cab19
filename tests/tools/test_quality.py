"""Synthetic transitions beside controls, and what is refused."""

import json

import pytest

from diffrl_lightning.tools.quality import quality
from diffrl_lightning.types import InputError


def test_report(tmp_path, shared_data):
    """Real data pass, and the controls fail where they are to."""
    dataset = str(shared_data / "hopper-mixed.hdf5")
    kwargs = {"num_rows": 2_000, "num_neighbours": 500, "num_simulated": 1_000}
    several = {"all": dataset, "again": dataset}
    found = quality(dataset, several, **kwargs, output=str(tmp_path / "report"))
    assert list(found) == ["all", "again", "real", "Gaussian", "shuffled"]
    assert found["all"]["marginal"] > 0.95 < found["again"]["marginal"]
    assert found["real"]["dynamics_error"] < 1e-4
    assert found["real"]["missed_terminals"] == found["real"]["false_terminals"] == 0
    assert found["shuffled"]["terminal_rate"] == found["real"]["terminal_rate"] > 0
    assert found["real"]["marginal"] > 0.95
    assert found["shuffled"]["marginal"] > 0.95
    assert found["shuffled"]["dynamics_error"] > 0.5 > found["Gaussian"]["dynamics_error"] > 0.05
    assert found["Gaussian"]["marginal"] < found["real"]["marginal"]
    assert found["Gaussian"]["correlation"] > 0.97
    assert json.loads((tmp_path / "report.json").read_text()) == found
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_report_refuses_unlike_datasets(pendulum_file, shared_data):
    with pytest.raises(InputError, match="have unequal dimensions"):
        quality(str(shared_data / "hopper-mixed.hdf5"), str(pendulum_file))


def test_report_refuses_names_of_controls(pendulum_file):
    with pytest.raises(InputError, match="other names than real, Gaussian"):
        quality(str(pendulum_file), {"real": str(pendulum_file)})
