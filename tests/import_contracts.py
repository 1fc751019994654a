"""A contract for import-linter: between rooms, only what a room exports is imported."""

import ast
import importlib.util
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class ExportsContract(Contract):
    """Modules of one room import from another room the room itself, or what its `__init__` lists in `__all__`."""

    type_name = "exports"
    package = fields.StringField()

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        exported = {room: _exports(room) for room in graph.find_children(self.package)}
        broken = []
        for importer in sorted(graph.modules):
            room = _room(importer, self.package)
            for imported in sorted(graph.find_modules_directly_imported_by(importer)):
                other = _room(imported, self.package)
                if other is None or other == room or imported == other:
                    continue
                if imported.removeprefix(f"{other}.").split(".")[0] not in exported[other]:
                    broken.append((importer, imported))
        return ContractCheck(kept=not broken, metadata={"broken": broken})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["broken"]:
            output.print_error(f"{importer} imports {imported}, which its room does not export (__all__).", bold=False)


def _room(module: str, package: str) -> str | None:
    """`package.room` of a module in one; None for what lies outside the package."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == package and len(parts) > 1 else None


def _exports(room: str) -> set[str]:
    spec = importlib.util.find_spec(room)
    if spec is None or not spec.origin:
        return set()
    for node in ast.parse(Path(spec.origin).read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return set(ast.literal_eval(node.value))
    return set()
