"""A simulated interest log through jobs.cohorts: are the profiles found again, do cohorts keep their names, what it costs.

    python -m tests.benchmarks.cohorts [--quick]

Users mostly care for one of the 30 profiles of the tiny world (2 to 5 rows, newer and heavier), have noise interests
from others (0 to 2 rows, a third of the weight), one text in ten is misspelled and one row in two hundred is broken.
The second night has 5 % new users. The ratio is of texts a naive loop would embed (one a row) to what is embedded, in
seconds, the naive side measured on a sample. Exit code 1 below the bar.
"""

import argparse
import csv
import os
import random
import resource
import sys
import tempfile
import time
from pathlib import Path

import ray
import yaml
from sklearn.metrics import adjusted_rand_score

from adbooster.cohorts.checks import check as check_cohorts
from adbooster.cohorts.config import CohortsConfig
from adbooster.cohorts.job import cohorts
from adbooster.contracts.text import interest
from adbooster.models.clip import Clip
from adbooster.storage import tables
from adbooster.storage.objects import Root
from adbooster.tiny import world

TINY = Path(world.__file__).parent
BAR = 0.8
PROFILES = yaml.safe_load((TINY / "profiles.yaml").read_text())


def misspelled(text: str, rng: random.Random) -> str:
    """One letter doubled, dropped or swapped; few enough forms that they recur, as typos do."""
    words = text.split()
    w = rng.randrange(len(words))
    word, at = words[w], rng.randrange(min(3, len(words[w])))
    kind = rng.randrange(2)
    words[w] = word[:at] + (word[at] * 2 if kind else "") + word[at + 1 :]
    return " ".join(words)


def write_log(path: Path, first: int, users: int, seed: int) -> list[int]:
    """Appends the rows of some users; returns each user's profile."""
    rng, truth = random.Random(seed), []
    with path.open("a", newline="") as f:
        out = csv.writer(f)
        if first == 0:
            out.writerow(["user_id", "query", "context", "weight", "timestamp"])
        for u in range(first, first + users):
            mine = rng.randrange(len(PROFILES))
            truth.append(mine)
            rows = [(mine, 3, rng.randrange(30)) for _ in range(rng.randint(2, 5))]
            rows += [(rng.randrange(len(PROFILES)), 1, rng.randrange(90)) for _ in range(rng.randint(0, 2))]
            for p, weight, age in rows:
                query, context = PROFILES[p]["query"], PROFILES[p]["context"]
                if rng.random() < 0.1:
                    query = misspelled(query, rng)
                stamp = "?" if rng.random() < 0.005 else 1_790_000_000 - age * 86400
                out.writerow([f"user-{u}@shop", query, context, weight, stamp])
    return truth


def night(root: Root, path: Path, run_id: str, k: int):
    config = CohortsConfig.model_validate(
        {
            "root_uri": root.uri,
            "run_id": run_id,
            "interests_uri": str(path),
            "text_model": str(TINY / "models" / "rank"),
            "device": "cpu",
            "interests": {"memory_gib": 1},
            "clustering": {"k": k},
        }
    )
    started = time.monotonic()
    check_cohorts(config)
    report = cohorts(config)
    return report, time.monotonic() - started


def found_again(root: Root, truth: list[int]) -> float:
    """Adjusted Rand index of tables/members against the profiles."""
    import hmac

    salt = os.environ["ADBOOSTER_USER_SALT"].encode()
    of_user = {r["user_hash"]: r["cohort_id"] for r in tables.read(root, "members").to_pylist()}
    hashes = [hmac.digest(salt, f"user-{u}@shop".encode(), "sha256").hex()[:32] for u in range(len(truth))]
    return adjusted_rand_score(truth, [of_user.get(h, "lost") for h in hashes])


def texts_of(root: Root) -> dict:
    return {r["cohort_id"]: (r["query"], r["context"]) for r in tables.read(root, "cohorts").to_pylist()}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--users", type=int, default=200_000)
    parser.add_argument("--k", type=int, default=0, help="0: chosen by silhouette")
    args = parser.parse_args()
    users = 20_000 if args.quick else args.users
    os.environ.setdefault("ADBOOSTER_USER_SALT", "a benchmark's salt")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    ray.init(address="local", num_cpus=8, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    with tempfile.TemporaryDirectory() as folder:
        root, path = Root(f"{folder}/root"), Path(folder) / "log.csv"
        truth = write_log(path, 0, users, seed=0)
        first, first_s = night(root, path, "night-1", args.k)
        ari, before = found_again(root, truth), texts_of(root)
        truth += write_log(path, users, users // 20, seed=1)
        second, second_s = night(root, path, "night-2", args.k)
        again, after = found_again(root, truth), texts_of(root)
        same = sum(after.get(name) == text for name, text in before.items())
        some = [interest(r["query"], r["context"]) for r in list(csv.DictReader(path.open()))[:5000]]
        ranker = Clip(TINY / "models" / "rank", "cpu")
        started = time.monotonic()
        for at in range(0, len(some), 512):
            ranker.embed_texts(some[at : at + 512])
            ranker.texts.clear()
        naive_s = (time.monotonic() - started) * second.log.rows / len(some)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"night 1: {first.log.rows} rows, {first.log.users} users, {first.log.texts} distinct texts, {first_s:.1f} s, "
        f"{first.log.rows / first_s:.0f} rows/s; dropped {first.log.rows_dropped}"
    )
    print(
        f"cohorts {first.cohorts} (clusters {first.log.clusters}, merged {first.log.merged}), ARI {ari:.3f}, bar {BAR}"
    )
    print(
        f"night 2, 5 % new users: {second_s:.1f} s, {second.cohorts} cohorts, ARI {again:.3f}; same id and text: "
        f"{same} of {len(before)}, kept {second.log.kept}, gone {second.removed}"
    )
    print(f"peak memory of the driver {peak:.2f} GiB (memory_gib 1 for DuckDB)")
    print(f"whole second night {second_s:.1f} s; embedding a text a row alone would take {naive_s:.1f} s")
    print(f"ratio {naive_s / second_s:.2f}")
    ray.shutdown()
    return 0 if min(ari, again) >= BAR and same == len(before) else 1


if __name__ == "__main__":
    sys.exit(main())
