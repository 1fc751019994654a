"""Salient-object networks of four nodes as ONNX files: what is dark is the product."""

from pathlib import Path

from onnx import TensorProto, checker, helper, save

FLOAT, FLOAT16, UINT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.UINT8


def write_network(
    path: Path,
    outputs: tuple[str, ...] = ("logits",),
    shape: tuple[int | str, ...] = (1, 3, 64, 64),
    kind: int = FLOAT,
    gain: float = -8.0,
) -> Path:
    """`gain` times the mean of the channels: as it is (`logits`), after a sigmoid (`map`), the input itself (`features`)."""
    nodes = [
        helper.make_node("ReduceMean", ["picture"], ["grey"], axes=[1], keepdims=1),
        helper.make_node("Mul", ["grey", "gain"], ["logits"]),
        helper.make_node("Sigmoid", ["logits"], ["map"]),
        helper.make_node("Identity", ["picture"], ["features"]),
    ]
    wide = {"logits": 1, "map": 1, "features": 3}
    results = [helper.make_tensor_value_info(n, kind, [shape[0], wide[n], *shape[2:]]) for n in outputs]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("picture", kind, list(shape))],
        results,
        [helper.make_tensor("gain", kind, [], [gain])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    checker.check_model(model)
    save(model, path)
    return path


def write_bytes_network(path: Path) -> Path:
    """A graph that takes bytes, which no network here does."""
    picture, result = (helper.make_tensor_value_info(n, UINT8, [1, 3, 8, 8]) for n in ("picture", "map"))
    graph = helper.make_graph([helper.make_node("Identity", ["picture"], ["map"])], "bytes", [picture], [result])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return path
