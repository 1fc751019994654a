"""Creatives painted to be compared and never published: the same panel under other weights or prompts."""

import json
from collections.abc import Mapping

import pyarrow as pa
import pyarrow.parquet as pap

from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError
from adbooster.contracts.naming import digest
from adbooster.contracts.recipe import Gates, recipe_id
from adbooster.measure.config import CohortText, OwnPictures, Trial, TrialsConfig, revision
from adbooster.painting import requests
from adbooster.painting.config import Targeting
from adbooster.prompts.config import PromptFigures
from adbooster.storage.buckets import WHOLE
from adbooster.storage.model_store import content_hash, local_copy
from adbooster.storage.objects import Root


def trial_requests(
    root: Root,
    config: TrialsConfig,
    trial: Trial,
    products: Mapping[str, OwnPictures],
    cohorts: Mapping[str, CohortText],
) -> tuple[pa.Table, PromptFigures]:
    """The requests of a trial on the panel (schema.TRIAL_REQUESTS), and where their prompts came from.

    products, cohorts  as `subjects.own_pictures` and `subjects.cohort_texts` return them
    """
    pairs = config.panel.pairs(products, cohorts)
    if not pairs:
        raise ConfigError(f"{config.root_uri} has no usable product or no cohort to try weights on; run jobs.prepare")
    listed = f"runs/{config.run_id}/panel.parquet"
    buffer = pa.BufferOutputStream()
    columns = zip(*pairs, strict=True)
    pap.write_table(pa.table(dict(zip(("product_id", "cohort_id"), map(list, columns), strict=True))), buffer)
    root.write(listed, buffer.getvalue().to_pybytes())
    painting = config.recipe.model_copy(update={"gates": Gates(), "keep": 1, "max_rounds": 1})
    models = [content_hash(local_copy(trial.weights))]
    models += [f"{content_hash(local_copy(a.uri))} x {a.scale}" for a in trial.adapters]
    targeting = Targeting(rule="table", table_uri=f"{root.uri}/{listed}")
    planner = requests.Planner(
        root,
        painting,
        recipe_id(painting, models),
        trial.prompts,
        targeting,
        config.rank_model,
        tokenizer_path=local_copy(trial.weights) / "tokenizer",
    )
    asked, measured_by = planner.plan(WHOLE).requests, revision(config)
    pictures = [products[p] for p in asked["product_id"].to_pylist()]
    own = [json.dumps([p["neutral_uris"], p["contextual_uris"]]) for p in pictures]
    return schema.extend(
        asked,
        schema.TRIAL_REQUESTS,
        look_id=[digest(r, o, measured_by) for r, o in zip(asked["request_id"].to_pylist(), own, strict=True)],
        neutral_uris=[p["neutral_uris"] for p in pictures],
        contextual_uris=[p["contextual_uris"] for p in pictures],
    ), planner.prompter.figures
