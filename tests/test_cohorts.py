import pytest

from adbooster import cohorts, tables
from adbooster.errors import ConfigError
from adbooster.tiny import world

PROFILES = world.__file__.replace("world.py", "profiles.yaml")


def run(root, path):
    return cohorts.cohorts(cohorts.CohortsConfig(root_uri=root.uri, run_id="r", cohorts_uri=str(path)))


def test_thirty_profiles_ten_a_family(root):
    report = run(root, PROFILES)
    assert report.cohorts == 30
    assert report.families == dict.fromkeys(world.FAMILIES, 10)


def test_only_what_changed_is_written(root, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text("- {id: a, query: boots}\n- {id: b, query: hats, context: snow}\n")
    first = run(root, path)
    assert run(root, path).cohorts_version == first.cohorts_version
    path.write_text("- {id: a, query: boots}\n- {id: c, query: hats, context: snow}\n")
    last = run(root, path)
    assert (last.new_or_changed, last.removed) == (1, 1)
    assert {r["cohort_id"] for r in tables.read(root, "cohorts").to_pylist()} == {"a", "c"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "holds none"),
        ("a: b", "should be a list"),
        ("- {id: a, query: x}\n- {id: a, query: y}", "'a' stands there more than once"),
        ("- {id: a}", "query"),
        ("- {id: '../../x', query: x}", "id '../../x'"),
        ("- {id: a, query: " + "x" * 5000 + "}", "at most 300"),
        ("- {id: a, query: x, contxt: y}", "contxt"),
        ("- [", "is not YAML"),
    ],
)
def test_a_bad_file_is_one_sentence_and_writes_nothing(root, tmp_path, text, says):
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=says):
        run(root, path)
    assert tables.version(root, "cohorts") is None


def test_control_characters_do_not_reach_the_table(root, tmp_path):
    path = tmp_path / "c.yaml"
    path.write_text('- {id: a, query: "bo\\u0007ots\\n", context: "\\u202esnow"}\n')
    run(root, path)
    assert tables.read(root, "cohorts").to_pylist()[0]["interests"] == ["boots", "snow"]
