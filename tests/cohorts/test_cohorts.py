import numpy as np
import pytest
import yaml

from adbooster.cohorts.checks import check as check_cohorts
from adbooster.cohorts.config import CohortsConfig
from adbooster.cohorts.job import cohorts
from adbooster.contracts.errors import ConfigError
from adbooster.storage import tables
from adbooster.tiny import world
from tests.conftest import MODELS

PROFILES = world.__file__.replace("world.py", "profiles.yaml")


def run(root, path):
    return cohorts(CohortsConfig(root_uri=root.uri, run_id="r", cohorts_uri=str(path)))


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
        ("- {id: a, query: x}\n- {id: a, query: y}", "'a' appears more than once"),
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


def log_of(path, users: int, seed: int = 0, first: int = 0) -> list[int]:
    """A CSV log of `users` with two interests each; returns the profile that each mostly cares for."""
    rng = np.random.default_rng(seed)
    profiles = yaml.safe_load(open(PROFILES))[::6]
    truth, lines = [], []
    for u in range(users):
        mine = int(rng.integers(len(profiles)))
        other = int(rng.integers(len(profiles)))
        truth.append(mine)
        for p, weight in ((mine, 4), (other, 1)):
            lines.append(f"user{first + u:06d}@shop,{profiles[p]['query']},{profiles[p]['context']},{weight}")
    path.write_text("user_id,query,context,weight\n" + "\n".join(lines) + "\n")
    return truth


def from_log(root, path, run_id="r", **clustering):
    return CohortsConfig.model_validate(
        {
            "root_uri": root.uri,
            "run_id": run_id,
            "interests_uri": str(path),
            "text_model": str(MODELS / "rank"),
            "device": "cpu",
            "clustering": {"min_users": 20, "k_range": (2, 10)} | clustering,
        }
    )


def test_a_log_becomes_cohorts_that_keep_their_names(root, tmp_path, warm_ray, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_USER_SALT", "a salt")
    log_of(tmp_path / "a.csv", 1000)
    config = from_log(root, tmp_path / "a.csv")
    check_cohorts(config)
    dry = cohorts(config.model_copy(update={"dry_run": True}))
    assert (dry.cohorts, tables.version(root, "cohorts"), tables.version(root, "members")) == (5, None, None)
    first = cohorts(config)
    live = {r["cohort_id"]: r for r in tables.read(root, "cohorts").to_pylist()}
    profiles = yaml.safe_load(open(PROFILES))[::6]
    assert {(r["query"], r["context"]) for r in live.values()} == {(p["query"], p["context"]) for p in profiles}
    assert all(r["shares"][0] > 0.6 and r["interests"][0] == f"{r['query']}, {r['context']}" for r in live.values())
    members = tables.read(root, "members")
    assert members.num_rows == sum(r["size"] for r in live.values()) == first.log.users == 1000
    assert set(members["cohort_id"].to_pylist()) == set(live)
    assert not any("user0" in str(r) for r in (*live.values(), *members.slice(0, 50).to_pylist(), first))

    again = cohorts(config)
    assert (again.cohorts_version, again.log.members_version) == (first.cohorts_version, first.log.members_version)

    log_of(tmp_path / "b.csv", 50, seed=1, first=1000)
    with open(tmp_path / "a.csv", "a") as f:
        f.writelines(open(tmp_path / "b.csv").readlines()[1:])
    second = cohorts(from_log(root, tmp_path / "a.csv", "r2"))
    after = {r["cohort_id"]: r for r in tables.read(root, "cohorts").to_pylist()}
    texts = lambda rows: {i: (r["query"], r["context"]) for i, r in rows.items()}  # noqa: E731
    assert texts(after) == texts(live), "the same cohorts under the same names and texts"
    assert (second.log.kept, second.removed, second.log.users) == (5, 0, 1050)


def test_small_cohorts_are_merged_and_rare_texts_are_not_told(root, tmp_path, warm_ray, monkeypatch):
    monkeypatch.setenv("ADBOOSTER_USER_SALT", "a salt")
    log_of(tmp_path / "a.csv", 600)
    with open(tmp_path / "a.csv", "a") as f:
        f.writelines(f"x{i},my name is number{i},a secret place,9\n" for i in range(10))
    report = cohorts(from_log(root, tmp_path / "a.csv", k=6))
    rows = tables.read(root, "cohorts").to_pylist()
    assert report.smallest >= 20
    assert sum(r["size"] for r in rows) == 610
    assert "secret" not in str(rows)


@pytest.mark.parametrize(
    ("log", "settings", "says"),
    [
        ("user_id,weight\na,1\n", {}, "has no text"),
        ("user_id,query\na,boots\nb,hats\n", {"k": 9}, "k is 9 .* only 2 distinct texts"),
        ("user_id,query\na,boots\nb,hats\n", {"k": 2}, "form no cohort of at least min_users"),
    ],
)
def test_a_log_that_cannot_work_writes_nothing(root, tmp_path, warm_ray, monkeypatch, log, settings, says):
    monkeypatch.setenv("ADBOOSTER_USER_SALT", "a salt")
    (tmp_path / "log.csv").write_text(log)
    config = from_log(root, tmp_path / "log.csv", **settings)
    with pytest.raises(ConfigError, match=says):
        check_and_run(config)
    assert tables.version(root, "cohorts") is None
    assert tables.version(root, "members") is None


def check_and_run(config):
    check_cohorts(config)
    cohorts(config)


def test_a_file_or_a_log_not_both(root):
    with pytest.raises(ConfigError, match="neither is given"):
        check_cohorts(CohortsConfig(root_uri=root.uri))
    with pytest.raises(ConfigError, match="both are given"):
        check_cohorts(CohortsConfig(root_uri=root.uri, cohorts_uri="a", interests_uri="b"))
