"""The tour in the README, line by line, as somebody who has read nothing else would type it."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import House, a_house, make_disk
from tests.programs import need

README = Path(__file__).parents[2] / "README.md"


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    with a_house(tmp_path) as made:
        yield made


def tour() -> list[list[str]]:
    """The words of each command, without its comment."""
    block = re.search(r"^```\n(arraylift up.*?)^```", README.read_text(), flags=re.DOTALL | re.MULTILINE)
    assert block is not None
    return [shlex.split(line, comments=True) for line in block[1].splitlines()]


@pytest.mark.timeout(240)
def test_every_line_of_the_tour_works_as_it_stands(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    need("mkfs.ext4", "debugfs")
    (tmp_path / "tree" / "etc").mkdir(parents=True)
    (tmp_path / "tree" / "etc" / "motd").write_text("monday\n")
    here = tmp_path / "here"
    here.mkdir()
    mkfs = shutil.which("mkfs.ext4") or "/sbin/mkfs.ext4"
    subprocess.run(
        [mkfs, "-q", "-F", "-d", str(tmp_path / "tree"), str(here / "root.img"), "16M"], check=True
    )
    make_disk(here / "data.img", seed=3, size_bytes=8 << 20)
    (here / "motd").write_text("tuesday\n")
    monkeypatch.chdir(here)  # whoever runs a command hands it his directory
    for program, *words in tour():
        assert program == "arraylift"
        if words == ["up"]:
            words += ["--base-port", str(house.base_port)]  # the usual ones may be somebody's
        ended = house.run(*words)
        assert ended.out, words
    assert (here / "motd.saved").read_text() == "tuesday\n"
