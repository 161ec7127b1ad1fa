"""A folder to work in, for the tests of one file."""

import shutil
from pathlib import Path

import pytest
from launcher import ROOT


@pytest.fixture(scope="module")
def workplace(tmp_path_factory) -> Path:
    """A folder with the tiny network in it; tables and PruningNets are shared by the tests of one file."""
    folder = tmp_path_factory.mktemp("work")
    shutil.copy(ROOT / "tests" / "tinynet.py", folder)
    return folder
