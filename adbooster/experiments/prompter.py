"""Prompts of pairs as the arms that they are in write them."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.contracts import schema
from adbooster.experiments.arms import arms_of, prompting_of
from adbooster.experiments.config import Experiment
from adbooster.prompts.config import Prompting
from adbooster.prompts.writer import Prompter
from adbooster.storage import tables
from adbooster.storage.objects import Root


class ArmPrompter:
    """Writes prompts as `Prompter` does, those of each pair as its arms say; `figures` counts all that it has written."""

    def __init__(
        self,
        root: Root,
        prompting: Prompting,
        experiments: Sequence[Experiment] = (),
        dry_run: bool = False,
        tokenizer_path: Path | None = None,
    ):
        self.prompting, self.experiments = prompting, experiments
        self._new = partial(Prompter, root, dry_run=dry_run, tokenizer_path=tokenizer_path)
        plain = self._new(prompting)
        self._prompters, self.figures = {"": plain}, plain.figures
        self._weights = schema.ALLOCATIONS.empty_table()
        if experiments:
            self._weights = tables.read(root, "allocations", where=pc.field("level") == "arm")

    def write(self, pairs: pa.Table) -> pa.Table:
        """`pairs` (schema.PAIRS) in their order as schema.PROMPTED, with the column `arm`."""
        if not self.experiments:
            prompted = self._prompters[""].write(pairs)
            self.figures = self._prompters[""].figures
            return prompted.append_column("arm", pa.nulls(len(prompted), pa.string()))
        names = pairs["product_id"], pairs["cohort_id"]
        arms = arms_of(*names, pairs["family"], self.experiments, self._weights)
        coded = pc.fill_null(arms, "").dictionary_encode()
        done, order = [schema.PROMPTED.empty_table()], [np.array([], np.int64)]
        for i, name in enumerate(coded.dictionary.to_pylist()):
            at = np.flatnonzero(coded.indices.to_numpy() == i)
            prompter = self._prompter(name)
            prompter.figures = self.figures  # what one has asked of a language model counts for all
            done.append(prompter.write(pairs.take(pa.array(at))))
            self.figures = prompter.figures
            order.append(at)
        back = np.argsort(np.concatenate(order), kind="stable")
        return pa.concat_tables(done).take(pa.array(back)).append_column("arm", arms)

    def _prompter(self, arms: str) -> Prompter:
        """arms  as `arms_of` names them; empty: none"""
        if arms not in self._prompters:
            named = {f"{e.name}={arm.name}": arm for e in self.experiments for arm in e.arms}
            self._prompters[arms] = self._new(prompting_of(self.prompting, [named[name] for name in arms.split(",")]))
        return self._prompters[arms]
