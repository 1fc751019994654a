"""Targeting tables: the pairs of product and cohort that people list."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pac
import pyarrow.parquet as pap

from adbooster.contracts.errors import ConfigError
from adbooster.contracts.text import shown
from adbooster.storage.inputs import read_input

COLUMNS = ("product_id", "cohort_id")
MAX_BYTES = 1 << 30  # some twenty million pairs
MAX_LENGTH = 300  # characters of an id


def read_targeting(uri: str, signing_key_env: str = "") -> pa.Table:
    """The columns product_id and cohort_id of a CSV or Parquet file, as text.

    signing_key_env  environment variable with the key of its signature; empty: none is asked for
    raises           ConfigError that names the line and the value for a file that is missing, too large or no such table
    """
    given = read_input(uri, "targeting table", MAX_BYTES, signing_key_env)
    try:
        if uri.endswith(".parquet"):
            table = pap.read_table(pa.BufferReader(given.content))
        else:
            as_text = pac.ConvertOptions(column_types=dict.fromkeys(COLUMNS, pa.string()), strings_can_be_null=True)
            one_by_one = pac.ReadOptions(use_threads=False)  # errors name the line
            table = pac.read_csv(pa.BufferReader(given.content), one_by_one, convert_options=as_text)
        if missing := [name for name in COLUMNS if table.column_names.count(name) != 1]:
            raise ConfigError(f"the targeting table {uri} lacks the column {missing[0]!r}, or has it more than once")
        table = pa.table({name: table[name].cast(pa.string()).combine_chunks() for name in COLUMNS})
    except (pa.ArrowException, UnicodeDecodeError) as e:
        raise ConfigError(f"the targeting table {uri} cannot be read: {str(e).splitlines()[0][:300]}") from e
    for name in COLUMNS:
        length = pc.fill_null(pc.utf8_length(table[name]), 0)
        bad = pc.or_(pc.equal(length, 0), pc.greater(length, MAX_LENGTH))
        if (row := pc.index(bad, True).as_py()) >= 0:
            raise ConfigError(
                f"the targeting table {uri}, row {row + 1}: {name} {shown(table[name][row].as_py())} should be an id of 1 "
                f"to {MAX_LENGTH} characters"
            )
    return table


class Listed:
    """The pairs of a targeting table; an unknown cohort is an error.

    signing_key_env  as for read_targeting
    """

    def __init__(self, cohorts: pa.Table, uri: str, signing_key_env: str = ""):
        table = read_targeting(uri, signing_key_env)
        of_cohort = pc.index_in(table["cohort_id"], value_set=cohorts["cohort_id"].combine_chunks())
        if of_cohort.null_count:
            row = pc.index(pc.is_null(of_cohort), True).as_py()
            raise ConfigError(
                f"the targeting table {uri}, row {row + 1}, names the cohort {shown(table['cohort_id'][row].as_py())}, "
                "which tables/cohorts does not have"
            )
        self.uri, self.cohorts = uri, of_cohort.combine_chunks()
        self.products = table["product_id"].combine_chunks().dictionary_encode()

    def pairs(self, products: pa.Table) -> tuple[pa.Array, pa.Array]:
        """Rows of the product and of the cohort of every pair, in order; pairs of other products are left out."""
        of_product = pc.index_in(self.products.dictionary, value_set=products["product_id"].combine_chunks())
        of_product = of_product.take(self.products.indices)
        usable = pc.is_valid(of_product)
        pairs = np.unique(np.stack([of_product.filter(usable), self.cohorts.filter(usable)], axis=1), axis=0)
        return pa.array(pairs[:, 0]), pa.array(pairs[:, 1])
