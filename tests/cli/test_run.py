"""How a job ends: one sentence where it has one, wherever it was raised."""

import pytest
from ray.exceptions import RayTaskError, UserCodeException

from adbooster.cli import run


@pytest.mark.parametrize(("said", "shown"), [("StorageError: the disk is full", True), ("KeyError: 'x'", False)])
def test_a_workers_error_of_ours_is_one_sentence(said, shown):
    """Ray passes on a traceback with the error's name and text; whatever else it wraps stays a traceback."""
    text = f"Traceback:\n  File 'x.py', line 1\nadbooster.contracts.errors.{said}\n\nThe above exception was..."
    text = text if shown else text.replace("adbooster.contracts.errors.", "")
    error = RayTaskError("map", text, UserCodeException("UDF failed")).as_instanceof_cause()
    assert run._said_by_a_worker(error) == (said if shown else "")
    assert run._said_by_a_worker(ValueError(str(error))) == ""
