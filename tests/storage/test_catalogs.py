"""Catalogs of one root: each with its own tables, runs, lock and nights; objects, weights and models are the root's."""

import json
import os
import pickle

import pyarrow as pa
import pytest
from pydantic import ValidationError

from adbooster.cli.console import main
from adbooster.cli.load import load
from adbooster.contracts import schema
from adbooster.contracts.errors import ConfigError, LockLost
from adbooster.contracts.settings import JobConfig
from adbooster.night.config import NightlyConfig
from adbooster.night.schedule import remember, trained
from adbooster.night.steps import as_file
from adbooster.report.fsck import fsck
from adbooster.storage import lock, tables
from adbooster.storage.lock import NightLock
from adbooster.storage.model_store import kept, local_copy, pull
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import vacuum
from tests.conftest import MODELS, row
from tests.storage.test_rollback import live, publish
from tests.storage.test_vacuum import NONE, stage, swept


@pytest.fixture(params=["disk", "s3"])
def above(request) -> Root:
    if request.param == "s3":
        return Root(request.getfixturevalue("s3_root"))
    return request.getfixturevalue("root")


def catalog(root: Root, name: str) -> Root:
    return Root(f"{root.uri}/catalogs/{name}")


def test_what_is_shared_lies_in_the_root_and_all_else_in_the_catalog(above):
    german = pickle.loads(pickle.dumps(catalog(above, "de")))
    uri = german.put(b"a photo", "png")
    german.write("weights/1/card.json", b"{}")
    german.write("models/clip/2/manifest.json", b"{}")
    german.write("runs/night/report.json", b"{}")
    german.write("weights/latest.json", b"{}")
    own = {"runs/night/report.json", "weights/latest.json"}
    shared = {uri, "weights/1/card.json", "models/clip/2/manifest.json"}
    assert set(above.stats("")) == {f"catalogs/de/{name}" for name in own} | shared
    assert above.read(uri) == german.read(uri) == catalog(above, "fr").read(uri) == b"a photo"
    assert set(german.stats("objects")) == {uri}
    assert german.missing([uri, "objects/ab/none.png"]) == ["objects/ab/none.png"]
    assert german.address("weights/1") == f"{above.uri}/weights/1"
    assert german.address("runs/night") == f"{above.uri}/catalogs/de/runs/night"
    assert [c.catalog for c in above.catalogs()] == ["de"]
    assert (above.catalog, german.catalog) == ("", "de")


def test_a_root_of_such_an_address_from_before_there_were_catalogs_stays_one(above):
    above.write("catalogs/old/objects/ab/photo.png", b"its own")
    old = catalog(above, "old")
    assert old.above is None
    assert old.read("objects/ab/photo.png") == b"its own"
    assert above.catalogs() == []
    assert catalog(old, "de").above.uri == old.uri


def test_a_catalog_holds_no_catalogs(root):
    inner = catalog(catalog(root, "de"), "berlin")
    with pytest.raises(ConfigError, match=f"catalog of a catalog; give the root {root.uri}$"):
        inner.put(b"x", "png")


def test_same_names_in_two_catalogs_do_not_meet(above):
    german, french = catalog(above, "de"), catalog(above, "fr")
    for shop, names in ((german, ["a", "b"]), (french, ["b", "c"]), (above, ["b"])):
        publish(shop, names)
    publish(german, ["d"], delete=["b"])
    assert (live(german), live(french), live(above)) == ({"a", "d"}, {"b", "c"}, {"b"})
    assert [tables.version(shop, "creatives") for shop in (german, french, above)] == [1, 0, 0]
    assert len(above.stats("objects")) == 4, "equal files of several catalogs are stored once"
    assert rollback(german, "creatives", 0).objects == 2
    assert live(german) == {"a", "b"}
    assert live(french) == {"b", "c"}


def test_nights_of_two_catalogs_run_at_once_each_under_its_own_lock(above):
    german, french = catalog(above, "de"), catalog(above, "fr")
    with NightLock(german, "night"), NightLock(french, "night"), NightLock(above, "night"):
        for shop in (german, french, above):
            publish(shop, ["a"])
        taken = lock.newest(german).model_copy(update={"token": "another"})
        german.write("locks/night/000000000002.json", taken.model_dump_json().encode())
        publish(french, ["b"])
        with pytest.raises(LockLost, match="catalogs/de expired"):
            publish(german, ["b"])
    assert lock.held(german) is lock.held(french) is None


def test_an_object_goes_when_no_catalog_names_it(above):
    german, french = catalog(above, "de"), catalog(above, "fr")
    publish(above, ["of the root"])
    publish(german, ["german", "common"])
    publish(french, ["french", "common"])
    publish(german, ["new"], delete=["german", "common"])
    being_made = stage(french, "unfinished", "being made")
    orphan = german.put(b"of nobody", "webp")
    for one in (german, french):
        with pytest.raises(ConfigError, match=f"is a catalog, .* vacuum {above.uri}, which covers"):
            vacuum(one, NONE, force=True)
    planned, before = swept(above, NONE, dry_run=True, force=True)[1], set(above.stats(""))
    done, gone = swept(above, NONE, force=True)
    assert planned == gone
    assert before - set(above.stats("")) == set(gone)
    assert {f for f in gone if f.startswith("objects/")} == {orphan, above.put(b"german", "webp")}
    assert [f.rsplit("/", 1)[0] for f in gone if f.endswith(".parquet")] == ["catalogs/de/tables/creatives"]
    assert (done.objects, done.table_files) == (2, 1)
    assert fsck(german).unnamed == 0, "what others name is not garbage of this one"
    assert (live(above), live(german), live(french)) == ({"of the root"}, {"new"}, {"french", "common"})
    assert above.exists(being_made)


def test_a_damaged_object_stays_until_the_last_that_names_it_is_repaired(above):
    german, french = catalog(above, "de"), catalog(above, "fr")
    for shop in (above, german, french):
        rows = [
            row(schema.CREATIVES, creative_id=n, request_id=n, product_id="P1", uri=shop.put(n.encode(), "webp"))
            for n in ("common", f"of {shop.catalog}")
        ]
        tables.merge(shop, "creatives", pa.Table.from_pylist(rows, schema.CREATIVES), "creative_id", None, {})
    common, own = above.put(b"common", "webp"), german.put(b"of de", "webp")
    for file in (common, own):
        above.write(file, b"damaged")
    told = "catalog fr name it too, or cannot be read; before the next night run adbooster fsck --repair --catalog fr"
    done = fsck(german, 1.0, repair=True)
    assert (done.repaired, done.repaint) == ({"objects": 1, "creatives": 2}, 2)
    assert (above.exists(common), above.exists(own)) == (True, False)
    assert [told in line for line in done.left] == [True]
    done = fsck(french, 1.0, repair=True)
    assert above.exists(common)
    assert (
        "live rows of the root name it too, or cannot be read; before the next night run adbooster fsck --repair without"
        in done.left[0]
    )
    assert {f.says for f in fsck(german, 1.0).findings} == {"live rows of the root name it, or cannot be read"}
    assert fsck(above, 1.0, repair=True).left == []
    assert not above.exists(common)
    assert all(fsck(shop, 1.0).clean for shop in (above, german, french))


def test_fsck_of_a_root_says_which_catalogs_it_did_not_check(root, capsys):
    for name in ("fr", "de"):
        publish(catalog(root, name), [name])
    with pytest.raises(ConfigError, match="holds only catalogs; run with --catalog NAME for: de, fr$"):
        fsck(root)
    publish(root, ["a"])
    root.remove([catalog(root, "de").put(b"de", "webp")])
    main(["fsck", "--root-uri", root.uri, "--all"])
    assert "not checked  run with --catalog NAME for: de, fr\n" in capsys.readouterr().out
    main(["fsck", "--root-uri", root.uri, "--json"])
    assert json.loads(capsys.readouterr().out)["unchecked"] == ["de", "fr"]
    assert fsck(catalog(root, "de")).unchecked == []


def test_no_vacuum_while_a_log_is_lost(above):
    shops = {"": above, "catalogs/de/": catalog(above, "de")}
    for shop in shops.values():
        publish(shop, ["a", shop.uri])
    for at, shop in shops.items():
        log = {file: shop.read(file) for file in shop.stats("tables/creatives/_delta_log")}
        shop.write(next(iter(log)), b"{not json")
        with pytest.raises(ConfigError, match=f"^{at}tables/creatives has a log that cannot be read, .* from a copy"):
            vacuum(above, NONE, force=True)
        assert [fsck(one).problems for one in shops.values()] == [{"table_unreadable": 1}] * 2
        shop.remove(log)
        before = set(above.stats(""))
        with pytest.raises(ConfigError, match=f"^{at}tables/creatives has data files and no log, .* from a copy"):
            vacuum(above, NONE, force=True)
        assert set(above.stats("")) == before
        for one in shops.values():
            assert [(f.problem, f.file) for f in fsck(one).findings] == [("table_unreadable", f"{at}tables/creatives")]
        for file, content in log.items():
            shop.write(file, content)
    assert vacuum(above, NONE, force=True).objects == 0


def test_a_root_that_holds_catalogs_alone_can_be_vacuumed(root):
    publish(catalog(root, "de"), ["a"])
    orphan = root.put(b"of nobody", "webp")
    assert swept(root, NONE, force=True)[1] == [orphan]


def test_models_are_the_roots_and_the_accepted_weights_the_catalogs(root):
    german, french = catalog(root, "de"), catalog(root, "fr")
    pulled = pull(german, str(MODELS / "mask" / "u2netp.onnx"))
    assert pulled.uri.startswith(f"{root.uri}/models/u2netp/")
    assert local_copy(pulled.uri).is_file()
    assert [k.uri for k in kept(french)] == [k.uri for k in kept(root)] == [pulled.uri]
    for shop, revision in ((german, "1111"), (french, "2222")):
        remember(shop, "night", revision)
    assert trained(german).weights == f"{root.uri}/weights/1111"
    assert trained(french).weights == f"{root.uri}/weights/2222"
    assert trained(root) is None


def test_the_setting_completes_the_address_once():
    settings = JobConfig(root_uri="/shop/", catalog="de-AT")
    assert settings.root_uri == "/shop/catalogs/de-AT"
    assert JobConfig.model_validate(settings.model_dump()) == settings
    assert JobConfig(root_uri="/shop").root_uri == "/shop"
    assert JobConfig(root_uri="s3://shop", catalog="a").root_uri == "s3://shop/catalogs/a"
    with pytest.raises(ValidationError, match="root_uri /shop/catalogs/fr is itself a catalog's address"):
        JobConfig(root_uri="/shop/catalogs/fr", catalog="de")
    for name in ("a/b", "..", ".hidden", "a" * 101, "ä"):
        with pytest.raises(ValidationError, match="catalog"):
            JobConfig(root_uri="/shop", catalog=name)


def test_every_section_of_a_night_is_of_its_catalog(tmp_path, monkeypatch):
    file = tmp_path / "night.yaml"
    file.write_text(
        "root_uri: /shop\nprepare: {feed_uri: f, mask_model: m, caption_model: c, catalog: other}\n"
        "cohorts: {cohorts_uri: c}\ngenerate: {weights: w, rank_model: r}\n"
    )
    night = load(NightlyConfig, ["--config", str(file), "--catalog", "de"])
    assert {c.root_uri for c in (night, night.prepare, night.cohorts, night.generate)} == {"/shop/catalogs/de"}
    (tmp_path / "step.yaml").write_text(as_file("prepare", night.prepare))
    assert load(type(night.prepare), ["--config", str(tmp_path / "step.yaml")]) == night.prepare
    monkeypatch.setenv("ADBOOSTER_CATALOG", "fr")
    assert load(NightlyConfig, ["--config", str(file)]).generate.root_uri == "/shop/catalogs/fr"


def test_commands_are_given_a_catalog_by_name_or_by_address(root, capsys):
    german = catalog(root, "de")
    publish(german, ["a"])
    publish(german, ["b"])
    publish(catalog(root, "fr"), ["c"])
    for where in (["--root-uri", root.uri, "--catalog", "de"], ["--root-uri", german.uri]):
        main(["history", *where, "--json"])
        assert len(json.loads(capsys.readouterr().out)) == 2
    main(["rollback", "--root-uri", root.uri, "--catalog", "de", "--to", "0"])
    assert live(german) == {"a"}
    capsys.readouterr()
    main(["status", "--root-uri", root.uri])
    told = capsys.readouterr().out
    assert [line.split("│")[1].strip() for line in told.splitlines() if "│" in line] == ["de", "fr"]
    main(["status", "--root-uri", root.uri, "--json"])
    found = json.loads(capsys.readouterr().out)["catalogs"]
    assert [(c["catalog"], c["live_version"]) for c in found] == [("de", 2), ("fr", 0)]
    with pytest.raises(SystemExit):
        main(["history", "--root-uri", root.uri, "--catalog", "../de"])
    assert "--catalog '../de' should be letters" in capsys.readouterr().err
    assert not os.path.exists(root.path("tables"))
