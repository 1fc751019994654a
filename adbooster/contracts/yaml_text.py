"""YAML as data of bounded size: a few lines of aliases can stand for more than any memory holds."""

from typing import Any

import yaml

from adbooster.contracts.errors import ConfigError

MAX_VALUES = 1_000_000  # with each use of an alias counted
MAX_MERGED = 10_000  # keys of one mapping after its `<<`


class _Loader(yaml.SafeLoader):
    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        super().flatten_mapping(node)
        if len(node.value) > MAX_MERGED:
            raise yaml.YAMLError(f"a mapping has more than {MAX_MERGED} keys")


def parse_yaml(content: str | bytes, what: str) -> Any:
    """The values of a YAML document.

    raises ConfigError, which names `what`, if it is none, or stands for more than MAX_VALUES values
    """
    try:
        value = _Loader(content).get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as e:
        raise ConfigError(f"{what} is not YAML: {str(e)[:500]}") from e
    left, seen = [value], 0
    while left:
        part = left.pop()
        inside = [*part, *part.values()] if isinstance(part, dict) else part if isinstance(part, list | tuple) else ()
        seen += len(inside)
        if seen > MAX_VALUES:
            raise ConfigError(f"{what} stands for more than {MAX_VALUES} values; its aliases repeat too much")
        left += inside
    return value
