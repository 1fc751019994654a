"""Fill the <places> of a cluster file or of a folder of manifests; refuse what is left empty or not pinned.

    python cluster/render.py ray_cluster.yaml --out my-cluster.yaml image=shop/adbooster@sha256:... instance-profile=...
    python cluster/render.py cluster/kuberay --out rendered image=... root-uri=s3://shop/adbooster ...
    python cluster/render.py cluster/kuberay                    # lists the places

Places whose name ends in `image` must be pinned by digest, `name@sha256:<64 hex digits>`: a tag may be moved between two
nights, and a night would then run untested code. Secrets are not places: see keys/ and the token of Ray.
"""

import argparse
import re
import sys
from pathlib import Path

PLACE = re.compile(r"<([a-z][a-z0-9-]*)>")
PINNED = re.compile(r"\S+@sha256:[0-9a-f]{64}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("cluster/render.py", description="Fill the <places> of cluster files.")
    parser.add_argument("source", type=Path, help="a file or a folder")
    parser.add_argument("--out", type=Path, help="a file or a folder like the source; not given: list the places")
    parser.add_argument("values", nargs="*", metavar="PLACE=VALUE")
    args = parser.parse_intermixed_args(argv)
    files = [p for p in sorted(args.source.rglob("*")) if p.is_file()] if args.source.is_dir() else [args.source]
    texts = {path: path.read_text() for path in files}
    places = sorted({name for text in texts.values() for name in PLACE.findall(text)})
    if args.out is None:
        print("\n".join(places))
        return 0
    values = dict(value.partition("=")[::2] for value in args.values)
    if problem := _problem(places, values):
        print(f"cluster/render.py: {problem}", file=sys.stderr)
        return 2
    for path, text in texts.items():
        target = args.out / path.relative_to(args.source) if args.source.is_dir() else args.out
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(PLACE.sub(lambda match: values[match[1]], text))
    return 0


def _problem(places: list[str], values: dict[str, str]) -> str | None:
    unknown = sorted(set(values) - set(places))
    if unknown:
        return f"there is no place {unknown[0]!r}; there are: {', '.join(places)}"
    empty = [name for name in places if name not in values]
    if empty:
        missing = " ".join(f"{name}=..." for name in empty)
        return f"these places are not filled: {missing} (`{empty[0]}=` leaves one empty)"
    loose = [name for name in places if name.endswith("image") and not PINNED.fullmatch(values[name])]
    if loose:
        return f"{loose[0]} {values[loose[0]]!r} is not pinned by digest; name@sha256:<64 hex digits> is"
    return None


if __name__ == "__main__":
    raise SystemExit(main())
