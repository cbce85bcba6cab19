"""What tools leave behind is whole."""

import json

import pytest
from matplotlib.figure import Figure

from diffrl_lightning.tools import outputs
from diffrl_lightning.types import InputError


def test_results_and_picture(tmp_path):
    outputs.write(str(tmp_path / "deep" / "a"), {"x": 1}, Figure())
    assert json.loads((tmp_path / "deep" / "a.json").read_text()) == {"x": 1}
    assert (tmp_path / "deep" / "a.png").read_bytes().startswith(b"\x89PNG")
    assert len(list((tmp_path / "deep").iterdir())) == 2


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"a\.json' can not be written"):
        outputs.write(str(tmp_path / "file" / "a"), {})
