"""Arms of experiments: which pair of product and cohort is in which, and the settings of its prompt."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from adbooster.experiments.config import Arm, Experiment
from adbooster.experiments.holdout import positions
from adbooster.experiments.variants import bounds, probabilities
from adbooster.prompts.config import Prompting

Texts: TypeAlias = pa.Array | pa.ChunkedArray


def arms_of(
    product_ids: Texts, cohort_ids: Texts, families: Texts, experiments: Sequence[Experiment], weights: pa.Table
) -> pa.Array:
    """The arms of each pair as "experiment=arm", comma between, in the experiments' order; null: it is in none.

    A pair has one position between 0 and 1 in each experiment, by its names alone, and the arms divide that range in their
    order: with other weights those pairs alone change whose position lies between an old bound and the new one.
    families  of the pairs' cohorts
    weights   schema.ALLOCATIONS; of a family in which an arm has none see variants.probabilities
    """
    if not experiments:
        return pa.nulls(len(product_ids), pa.string())
    said = (
        weights.filter(pc.equal(weights["level"], "arm")).select(["experiment", "family", "arm", "weight"]).to_pylist()
    )
    learned = {(row["experiment"], row["family"], row["arm"]): row["weight"] for row in said}
    whole = families.combine_chunks() if isinstance(families, pa.ChunkedArray) else families
    coded = pc.fill_null(whole, "").dictionary_encode()
    columns = [_arms(e, product_ids, cohort_ids, coded, learned) for e in experiments]
    begin = pa.array([""]).take(pa.array(np.zeros(len(coded), np.int64)))  # Arrow leaves out rows of nulls alone
    joined = pc.utf8_slice_codeunits(pc.binary_join_element_wise(begin, *columns, ",", null_handling="skip"), 1)
    return pc.if_else(pc.equal(joined, ""), None, joined)


def _arms(
    experiment: Experiment,
    product_ids: Texts,
    cohort_ids: Texts,
    families: pa.DictionaryArray,
    learned: dict[tuple[str, str, str], float],
) -> pa.Array:
    """Of each pair "experiment=arm"; null: the experiment does not run in its cohort's family."""
    names = [arm.name for arm in experiment.arms]
    number, family_of = np.full(len(families), -1), families.indices.to_numpy()
    at = None if experiment.ended else positions(product_ids, cohort_ids, "arm", experiment.name)
    for i, family in enumerate(families.dictionary.to_pylist()):
        if experiment.families and family not in experiment.families:
            continue
        mine = family_of == i
        if at is None:
            number[mine] = names.index(experiment.ended)
        else:
            ends = bounds(probabilities([learned.get((experiment.name, family, name)) for name in names]))
            number[mine] = np.searchsorted(ends, at[mine], side="right")
    texts = pa.array([f"{experiment.name}={name}" for name in names])
    return texts.take(pa.array(number, mask=number < 0))


def prompting_of(prompting: Prompting, arms: Iterable[Arm]) -> Prompting:
    """The settings of prompts as arms change them; of what several arms set, the last one's holds.

    raises  pydantic.ValidationError for a template that the settings would not take
    """
    told = {name: value for arm in arms for name in ("style", "template") if (value := getattr(arm, name)) is not None}
    return Prompting.model_validate(prompting.model_dump() | told) if told else prompting
