"""Stages for tests of the engine. They lie here alone, as an actor imports the whole module that its stage is in."""

import os
import time

import pyarrow as pa

from adbooster.contracts import schema

ROWS = pa.schema([("n", pa.int64()), ("reject", pa.string())])
MARKED = pa.schema([*ROWS, ("process", pa.int64()), ("call", pa.int64())])


class Copier:
    """Gives back the rows that it gets."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        return rows


class Marker:
    """Adds the process and the number of the call."""

    def __init__(self, first_call: int = 0):
        self.call = first_call

    def __call__(self, rows: pa.Table) -> pa.Table:
        self.call += 1
        n = rows.num_rows
        return schema.extend(rows, MARKED, process=[os.getpid()] * n, call=[self.call] * n)


class Uneven:
    """Takes two seconds over the row 0, so that with two actors later blocks are finished before it."""

    def __call__(self, rows: pa.Table) -> pa.Table:
        if rows["n"][0].as_py() == 0:
            time.sleep(2)
        return rows


class Breaker:
    """A stage that cannot be built."""

    def __init__(self):
        raise RuntimeError("built for a row that is rejected")
