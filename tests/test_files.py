"""Files are written whole or not at all."""

import os
import subprocess
import sys
import time

import pytest

from diffrl_lightning.files import while_room, whole_file, whole_path, write_whole, writing
from diffrl_lightning.types import InputError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_target_changes_at_the_end_of_the_block(tmp_path):
    target = tmp_path / "deep" / "a.bin"
    write_whole(target, "old")
    with whole_file(target) as file:
        file.write(b"new")
        assert target.read_bytes() == b"old"
        assert names(target.parent) == [f".a.bin.{os.getpid()}.partial", "a.bin"]
    assert target.read_bytes() == b"new"
    assert names(target.parent) == ["a.bin"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_exception_leaves_the_older_file(tmp_path, error):
    write_whole(tmp_path / "a.bin", b"old")
    with pytest.raises(error), whole_file(tmp_path / "a.bin") as file:  # noqa: PT012
        file.write(b"half")
        raise error
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_whole(tmp_path / "link", b"new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "there").read_bytes() == b"new"


FULL = """
import resource
import h5py, numpy, torch
from diffrl_lightning.files import InputError, whole_file, whole_path, write_whole

def as_torch():
    with whole_file("a.bin") as file:
        torch.save(torch.zeros(99_999), file)

def as_hdf5():
    with whole_path("a.bin") as path, h5py.File(path, "w") as file:
        file["a"] = numpy.zeros(99_999)

resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))  # as a disk that is full
for write in (lambda: write_whole("a.bin", b"x" * 9_999), as_torch, as_hdf5):
    try:
        write()
    except InputError as error:
        print(error)
"""


def test_a_full_disk_is_one_sentence(tmp_path):
    write_whole(tmp_path / "a.bin", b"old")
    result = subprocess.run(
        [sys.executable, "-c", FULL], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    sentence = "'a.bin' can not be written (File too large): make room or write elsewhere."
    assert result.stdout.splitlines() == [sentence] * 3
    assert (tmp_path / "a.bin").read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_what_can_not_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a.bin", tmp_path / "folder"):
        with pytest.raises(InputError, match="can not be written"):
            write_whole(path, b"")


def test_leftovers_of_killed_processes_go_after_a_day(tmp_path):
    old, new = tmp_path / ".a.1.partial", tmp_path / ".b.1.partial"
    others = [tmp_path / "c.1.partial", tmp_path / ".c.partial"]
    for path in (old, new, *others):
        path.write_text("")
    two_days_ago = time.time() - 2 * 86_400
    for path in (old, *others):
        os.utime(path, (two_days_ago, two_days_ago))
    with whole_path(tmp_path / "d") as temporary:
        temporary.write_text("")
    assert names(tmp_path) == [".b.1.partial", ".c.partial", "c.1.partial", "d"]


def test_items_are_written_while_there_is_room(tmp_path):
    assert list(while_room([1, 2], tmp_path, least=0)) == [1, 2]
    with (
        pytest.raises(InputError, match=r"'new-v0' can not be written \(No space"),
        writing("new-v0"),
    ):
        list(while_room([1, 2], tmp_path, least=10**18))


def test_other_errors_of_a_block_stay_what_they_are(tmp_path):
    with pytest.raises(RuntimeError, match="mine"), whole_file(tmp_path / "a"):
        raise RuntimeError("mine")
    with pytest.raises(InputError, match="theirs"), whole_file(tmp_path / "a"):
        raise InputError("theirs")
    assert names(tmp_path) == []
