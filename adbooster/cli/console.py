"""What operators type: `adbooster status`, `history`, `rollback --to 12`, `vacuum --older-than 7d`, `compact`, `fsck`, `plan`, `withdraw`, `inspect`..."""

import argparse
import json
import math
import os
import re
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

from pydantic import BaseModel
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from adbooster.cli import audit_table, fsck_table, inspect_table, plan_command, status_table
from adbooster.contracts.errors import AdboosterError, ConfigError
from adbooster.contracts.naming import catalog_uri, split_catalog
from adbooster.contracts.redaction import redact
from adbooster.deliver.withdraw import KINDS, Kind, take_back, withdraw
from adbooster.evaluate import blind_sheet
from adbooster.night import state
from adbooster.provenance import certificates
from adbooster.provenance.signing import read_anchors
from adbooster.report.audit import audit
from adbooster.report.fsck import fsck
from adbooster.report.inspect import inspect
from adbooster.storage import inputs, tables
from adbooster.storage.maintenance import MaintainConfig, maintain
from adbooster.storage.model_store import kept, pull
from adbooster.storage.objects import Root
from adbooster.storage.rollback import rollback
from adbooster.storage.vacuum import MINIMUM, vacuum

_BLIND = "Scores filled blind sheets of jobs.evaluate: how often people preferred the creative."
_SIGN = "Writes FILE.sig, HMAC-SHA256 of the file: with signing_key_env set, jobs refuse files without it."
_DEV = (
    "An authority and a signer for development, valid for 90 days: ca.pem, chain.pem, key.pem. Nobody else trusts them."
)
MAX_SHEET_BYTES = 16 << 20
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
UNITS = {"": "days", "d": "days", "h": "hours", "w": "weeks"}


def main(argv: list[str] | None = None) -> None:
    """Run one command; exit code 0 if it succeeded, 2 if it cannot work, 1 if another run committed first or a check fails."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.command in (_blind, _sign, _certificates, _inspect, _plan):
            return arguments.command(arguments)
        if not arguments.root_uri:
            raise ConfigError(
                "--root-uri is required: the folder or s3://bucket/prefix of the jobs; or ADBOOSTER_ROOT_URI"
            )
        arguments.command(_root(arguments), arguments)
    except AdboosterError as e:
        print(redact(f"{type(e).__name__}: {e}"), file=sys.stderr)
        raise SystemExit(2 if isinstance(e, ConfigError) else 1) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "adbooster", description="State of the night, what is live, rollback to an earlier night, and vacuum."
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    status = _add(commands, "status", _status, "state of the night: its steps, its lock, what is live")
    status.add_argument("--run-id", help="of a night; the newest if not given")
    status.add_argument("--limit", type=int, default=1, help="newest nights shown (default 1)")
    _add(commands, "history", _history, "the commits of a table, newest first", table=True).add_argument(
        "--limit", type=int, help="newest commits shown; all if not given"
    )
    back = _add(commands, "rollback", _rollback, "make an earlier version live again, as a new commit", table=True)
    back.add_argument("--to", type=int, required=True, metavar="VERSION", help="a version that `history` shows")
    clear = _add(commands, "vacuum", _vacuum, "remove files and objects that no version within the retention needs")
    clear.add_argument(
        "--older-than",
        type=_duration,
        default=timedelta(days=7),
        metavar="TIME",
        help="retention: how far back a rollback stays possible, 7 or 7d, 36h, 2w (default 7d)",
    )
    clear.add_argument(
        "--force",
        action="store_true",
        help=f"allow less than {MINIMUM.days} day; only while no job is running",
    )
    _add(commands, "compact", _compact, "merge the small files of tables and shorten their logs, as each night does")
    whole = "whether every live row's objects, proofs and data files are there and whole; exit code 1 if not"
    check = _add(commands, "fsck", _fsck, whole)
    share = check.add_mutually_exclusive_group()
    share.add_argument(
        "--sample",
        type=_share,
        default=0.01,
        metavar="SHARE",
        help="share of the objects whose content is read, the same ones each time (default 0.01)",
    )
    share.add_argument("--all", action="store_true", help="read every object")
    check.add_argument(
        "--repair",
        action="store_true",
        help="under the night's lock: what the next night can make again is taken out or marked",
    )
    pull_back = _add(
        commands, "withdraw", _withdraw, "take products, cohorts or creatives out of all channels' feeds now"
    )
    which = pull_back.add_mutually_exclusive_group(required=True)
    for kind in KINDS:
        which.add_argument(f"--{kind}", nargs="+", metavar="ID", help=f"ids of {kind}s")
    pull_back.add_argument("--undo", action="store_true", help="the next jobs.deliver may deliver them again")
    why = "where a creative comes from, and who approved, rejected or retired it, from which file and when"
    _add(commands, "audit", _audit, why).add_argument("creative_id", help="16 hex digits, as on the page and in feeds")
    what = "what a picture is, and whether file, marks, signature and the product's pixels hold; exit code 1 if not"
    look = _add(commands, "inspect", _inspect, what)
    look.add_argument("picture", help="a file, an https address, or the id of a creative")
    look.add_argument("--trust-anchors", default="", metavar="PEM", help="root certificates that a signer must lead to")
    made = commands.add_parser("certificates", help="certificates to try signing with", description=_DEV)
    made.add_argument("action", choices=["dev"])
    made.add_argument("--out", required=True, metavar="DIR", help="a folder; files in it are not overwritten")
    made.set_defaults(command=_certificates)
    signed = commands.add_parser("sign", help="sign a file of marks, targeting, cohorts or outcomes", description=_SIGN)
    signed.add_argument("file", help="a path or s3://...; its signature is written beside it")
    signed.add_argument(
        "--key-env", required=True, help="environment variable with the key: signing_key_env of the jobs"
    )
    signed.set_defaults(command=_sign)
    _add_models(commands)
    size = "what a night and a year of some size take: GPUs, cores, euros, storage; from measured figures alone"
    plan_command.add(_add(commands, "plan", _plan, size))
    sheet = commands.add_parser("blind", help="what people preferred, from filled blind sheets", description=_BLIND)
    sheet.add_argument("action", choices=["score"])
    sheet.add_argument("sheets", nargs="+", metavar="SHEET", help="filled sheets: CSV with pair, rater and choice")
    sheet.add_argument("--key", required=True, help="the key that was kept apart: runs/<run_id>/blind.key.json")
    sheet.add_argument("--json", action="store_true", help="one JSON document on stdout")
    sheet.set_defaults(command=_blind)
    for command in (back, clear, pull_back):
        command.add_argument("--dry-run", action="store_true", help="print what would be done; nothing is changed")
    return parser


def _add_models(commands: Commands) -> None:
    does = "copy models below the root, so that nights depend on no hub"
    models = commands.add_parser("models", help=does, description=does).add_subparsers(required=True, metavar="COMMAND")
    get = _add(models, "pull", _pull, "copy a model with its hashes to root_uri/models/<name>/<revision>/, once")
    get.add_argument("source", help="a folder or file, local or s3://..., or hub:<owner>/<name>")
    get.add_argument("--name", default="", help="its name below models/ (default: the last part of the source)")
    get.add_argument("--hub-revision", default="main", help="branch, tag or commit on the hub (default main)")
    _add(models, "list", _models, "the models below the root, with the uri that jobs are given")


def _add(commands: Commands, name: str, command: Callable, does: str, table: bool = False) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=does, description=does)
    parser.set_defaults(command=command)
    parser.add_argument(
        "--root-uri",
        default=os.environ.get("ADBOOSTER_ROOT_URI"),
        help="where tables and objects live: a folder or s3://bucket/prefix (or ADBOOSTER_ROOT_URI)",
    )
    parser.add_argument(
        "--catalog",
        default=os.environ.get("ADBOOSTER_CATALOG", ""),
        metavar="NAME",
        help="one of the root's catalogs (or ADBOOSTER_CATALOG)",
    )
    if table:
        parser.add_argument("--table", default="creatives", choices=sorted(tables.TABLES), help="default creatives")
    parser.add_argument("--json", action="store_true", help="one JSON document on stdout")
    return parser


def _root(arguments: argparse.Namespace) -> Root:
    """raises ConfigError for a catalog's name that is none"""
    if not arguments.catalog:
        return Root(arguments.root_uri)
    uri = catalog_uri(arguments.root_uri, arguments.catalog)
    if split_catalog(uri) is None:
        raise ConfigError(f"--catalog {arguments.catalog!r} should be letters, digits, dots, dashes and underscores")
    return Root(uri)


def _duration(text: str) -> timedelta:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([dhw]?)", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is not a time; 7 or 7d, 36h, 2w are")
    return timedelta(**{UNITS[match[2]]: float(match[1])})


def _share(text: str) -> float:
    if not re.fullmatch(r"0?\.\d+|0|1(\.0*)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; numbers from 0 to 1 are, such as 0.01")
    return float(text)


def _plan(arguments: argparse.Namespace) -> None:
    plan_command.plan(_root(arguments) if arguments.root_uri else None, arguments)


def _status(root: Root, arguments: argparse.Namespace) -> None:
    status = state.status(root, arguments.run_id, arguments.limit)
    if arguments.run_id and not status.nights:
        raise ConfigError(
            f"there is no night {arguments.run_id} below {root.uri}; without --run-id the newest is shown"
        )
    if arguments.json:
        print(status.model_dump_json(indent=2))
    else:
        status_table.show(status, Console(width=None if sys.stdout.isatty() else 160))


def _history(root: Root, arguments: argparse.Namespace) -> None:
    versions = tables.history(root, arguments.table)[: arguments.limit]
    if not versions:
        raise ConfigError(f"there is no table {root.uri}/tables/{arguments.table}")
    if arguments.json:
        print(json.dumps([v.model_dump(mode="json") for v in versions], indent=2))
        return
    table = Table("version", "time (UTC)", "operation", "rows +", "rows -", "run", "recipe", "weights", "git commit")
    for v in versions:
        operation = v.operation if v.rollback_to is None else f"{v.operation} of {v.rollback_to}"
        counts = ["" if n is None else str(n) for n in (v.rows_added, v.rows_removed)]
        names = [v.run_id or "", v.recipe_id or "", v.weights_revision or "", (v.git_commit or "")[:10]]
        table.add_row(str(v.version), f"{v.time:%Y-%m-%d %H:%M:%S}", operation, *counts, *names)
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def _rollback(root: Root, arguments: argparse.Namespace) -> None:
    done = rollback(root, arguments.table, arguments.to, arguments.dry_run)
    counted = f"{done.rows_added} added and {done.rows_removed} removed against version {done.rollback_from}"
    if done.rows_added is None:
        counted = f"version {done.rollback_from} cannot be read"
    verb = "would become" if arguments.dry_run else f"is now, as version {done.version},"
    _print_result(
        arguments,
        done,
        f"version {done.rollback_to} of tables/{done.table} {verb} what is live: {done.rows} rows, {counted}; "
        f"all {done.objects} objects that it names are there",
    )


def _vacuum(root: Root, arguments: argparse.Namespace) -> None:
    listed = arguments.dry_run and not arguments.json
    tell = print if listed else str
    done = vacuum(root, arguments.older_than, arguments.dry_run, arguments.force, tell, _to_stderr)
    _print_result(
        arguments,
        done,
        f"{'would remove' if done.dry_run else 'removed'} {done.objects} objects ({done.objects_kept} stay), "
        f"{done.table_files} table files and {done.staged_parts} staged parts: {done.size_bytes / 1e6:.1f} MB"
        + (f"; {done.refused} files stay, as the storage does not allow them to be removed" if done.refused else "")
        + (f"; night {done.night} is running, and what it has stored is young and stays" if done.night else "")
        + (f"; all of them are listed in {done.listed_in}" if done.listed_in else ""),
    )


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _fsck(root: Root, arguments: argparse.Namespace) -> None:
    done = fsck(root, 1.0 if arguments.all else arguments.sample, arguments.repair, _to_stderr)
    print(done.model_dump_json() if arguments.json else "\n".join(fsck_table.lines(done)))
    if not done.clean:
        raise SystemExit(1)


def _compact(root: Root, arguments: argparse.Namespace) -> None:
    if not tables.present(root):
        raise ConfigError(f"there are no tables below {root.uri}")
    run_id = f"compact-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    done = maintain(MaintainConfig(root_uri=root.uri, run_id=run_id, time_s=math.inf, history_days=None))
    changed = [
        f"{name} {table.files} to {table.files_after} files" + (", a checkpoint" if table.checkpoint else "")
        for name, table in done.tables.items()
        if table.checkpoint or table.files_after < table.files
    ]
    _print_result(arguments, done, "; ".join(changed) or "no table has enough small files or commits to be worth it")
    if done.errors:
        raise AdboosterError("; ".join(f"tables/{name} is as it was: {why}" for name, why in done.errors.items()))


def _withdraw(root: Root, arguments: argparse.Namespace) -> None:
    kind: Kind = next(kind for kind in KINDS if getattr(arguments, kind))
    run_id = f"withdraw-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    act = take_back if arguments.undo else withdraw
    done = act(root, kind, getattr(arguments, kind), run_id, arguments.dry_run)
    if not arguments.json:
        for address in done.addresses:
            print(address)
    would = "would be " if done.dry_run else ""
    feeds = ", ".join(f"{name} -{feed.removed} ~{feed.changed}" for name, feed in done.feeds.items())
    _print_result(
        arguments,
        done,
        f"{would}delivered again by the next jobs.deliver: {done.new} {kind} ids"
        if done.undone
        else f"{done.rows} rows {would}taken out of tables/deliveries; feeds: {feeds or 'none'}; {done.may_be_cached} files "
        "may still be cached, and stay until `adbooster vacuum`",
    )
    if done.failed:
        named = "; ".join(f"{channel} ({why})" for channel, why in done.failed.items())
        raise AdboosterError(f"the old feed stays of {named}; run the same command again once that is repaired")


def _audit(root: Root, arguments: argparse.Namespace) -> None:
    found = audit(root, arguments.creative_id)
    print(found.model_dump_json(indent=2) if arguments.json else "\n".join(audit_table.lines(found)))


def _inspect(arguments: argparse.Namespace) -> None:
    root = _root(arguments) if arguments.root_uri else None
    found = inspect(root, arguments.picture, read_anchors(arguments.trust_anchors))
    print(found.model_dump_json(indent=2) if arguments.json else "\n".join(inspect_table.lines(found)))
    if not found.holds:
        raise SystemExit(1)


def _certificates(arguments: argparse.Namespace) -> None:
    authority, chain, key = certificates.write_dev(Path(arguments.out))
    print(f"deliver:\n  signing:\n    chain: {chain}\n    key_file: {key}\n    trust_anchors: {authority}")


def _sign(arguments: argparse.Namespace) -> None:
    print(inputs.sign(arguments.file, arguments.key_env))


def _pull(root: Root, arguments: argparse.Namespace) -> None:
    done = pull(root, arguments.source, arguments.name, arguments.hub_revision)
    did = f"{done.files} files, {done.size_bytes / 1e6:.1f} MB" if done.copied else "was there already"
    _print_result(arguments, done, f"{done.uri} ({did})")


def _models(root: Root, arguments: argparse.Namespace) -> None:
    models = kept(root)
    if arguments.json:
        print(json.dumps([k.model_dump(mode="json") for k in models], indent=2))
        return
    if not models:
        print(f"there is no model below {root.address('models')}; `adbooster models pull` brings one")
    for k in models:
        facts = (
            f"{k.files} files, {k.size_bytes / 1e6:.1f} MB, {k.pulled_at:%Y-%m-%d %H:%M} UTC, from {redact(k.source)}"
        )
        print(f"{k.uri} ({facts})")


def _blind(arguments: argparse.Namespace) -> None:
    done = blind_sheet.score({uri: _text(uri) for uri in arguments.sheets}, _text(arguments.key))
    if arguments.json:
        return print(done.model_dump_json())
    table = Table("preferred", "share", "95 % interval", title=f"{done.answers} answers of {done.raters} raters")
    groups = {"the creative": done.preferred, **done.by_baseline, **done.by_family}
    for name, spread in groups.items():
        if spread:
            ends = "" if spread.low is None else f"{spread.low:.3f} to {spread.high:.3f}"
            label = name if name == "the creative" else f"... {name or '(none)'}"
            table.add_row(escape(label), f"{spread.mean:.3f}", ends)
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    p_value = "" if done.p_value is None else f", p {done.p_value:.3g} of no preference (binomial over pairs)"
    left = "" if done.left_share is None else f"; left was preferred in {done.left_share:.0%}"
    print(f"creative {done.creative}, the catalog's own {done.baseline}, same {done.same}{p_value}{left}")


def _text(uri: str) -> str:
    try:
        return inputs.read_input(uri, "file", MAX_SHEET_BYTES).content.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f"{uri} cannot be read as text: {e}") from e


def _print_result(arguments: argparse.Namespace, done: BaseModel, sentence: str) -> None:
    print(done.model_dump_json() if arguments.json else sentence)


if __name__ == "__main__":
    main()
