"""A disk that fills up."""

import subprocess
import sys

import pytest


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a tmpfs; the injected ENOSPC holds the same seams")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)
