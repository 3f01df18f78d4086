"""A ``.pt2`` of a bundle is data: whatever in it could run code is found before torch opens it."""

import contextlib
import io
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.export.pt2_archive import PT2ArchiveReader, PT2ArchiveWriter

from pipeline.inference.bundle import BundleError
from pipeline.inference.graphs import load_graph
from pipeline.inference.torch_graph import find_code
from pipeline.models import formats

MODEL, EXAMPLE = "models/model.json", "data/sample_inputs/model.pt"
WEIGHTS, CONSTANTS = "data/weights/model_weights_config.json", "data/constants/model_constants_config.json"
Attack = Callable[[dict[str, bytes], str], None]


class Net(torch.nn.Module):
    """Few operators, one parameter, and a size that follows from the batch's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.reshape(2 * images.shape[0], 4).float()).reshape(-1, 4).softmax(1)


class Evil:
    """Evaluates Python when it is unpickled."""

    def __init__(self, code: str) -> None:
        self.code = code

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (self.code,)


@pytest.fixture(scope="module")
def program() -> torch.export.ExportedProgram:
    return formats.trace(Net(), torch.zeros(2, 2, 2, 2, dtype=torch.uint8))


def read_records(content: bytes) -> dict[str, bytes]:
    reader = PT2ArchiveReader(io.BytesIO(content))
    return {name: reader.read_bytes(name) for name in reader.get_file_names() if not name.startswith(".data/")}


def write_records(path: Path, records: dict[str, bytes]) -> Path:
    with PT2ArchiveWriter(str(path)) as writer:
        for name, content in records.items():
            writer.write_bytes(name, content)
    return path


def pickled(code: str) -> bytes:
    buffer = io.BytesIO()
    torch.save((Evil(code),), buffer)
    return buffer.getvalue()


def edit(record: str, change: Callable[[Any, str], object]) -> Attack:
    """Change a JSON record; ``change`` gets it and the code that is to run."""

    def attack(records: dict[str, bytes], code: str) -> None:
        content = json.loads(records[record])
        change(content, code)
        records[record] = json.dumps(content).encode()

    return attack


def in_examples(records: dict[str, bytes], code: str) -> None:
    records[EXAMPLE] = pickled(code)


def in_weights(records: dict[str, bytes], code: str) -> None:
    edit(WEIGHTS, lambda config, _: config["config"]["fc.bias"].update(use_pickle=True))(records, code)
    path = json.loads(records[WEIGHTS])["config"]["fc.bias"]["path_name"]
    records[f"data/weights/{path}"] = pickled(code)


def in_old_weights(records: dict[str, bytes], code: str) -> None:
    records["data/weights/model.pt"] = pickled(code)


def in_a_constant(records: dict[str, bytes], code: str) -> None:
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": True, "tensor_meta": None}
    edit(CONSTANTS, lambda config, _: config["config"].update(thing=meta))(records, code)
    records["data/constants/opaque_obj_0"] = pickle.dumps(Evil(code))


def _expressions(value: Any) -> list[dict[str, Any]]:
    """All dicts that hold an expression."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [value] * (isinstance(value, dict) and "expr_str" in value) + [
        x for each in inner for x in _expressions(each)
    ]


def in_an_expression(model: Any, code: str) -> None:
    for found in _expressions(model):
        found["expr_str"] = f"[{code}, {found['expr_str']}][1]"


def in_a_name(model: Any, code: str) -> None:
    text = json.dumps(model).replace('"images"', json.dumps(f"images={code}"))
    model |= json.loads(text)


ATTACKS: dict[str, tuple[Attack, str]] = {
    "examples": (in_examples, "pickled examples"),
    "a pickled weight": (in_weights, "use_pickle"),
    "weights of an older format": (in_old_weights, "an entry 'data/weights/model.pt'"),
    "a pickled constant": (in_a_constant, "opaque_obj_0"),
    "an expression": (edit(MODEL, in_an_expression), "expr_str"),
    "the name of an input": (edit(MODEL, in_a_name), "name"),
}


@pytest.mark.parametrize("kind", ATTACKS)
def test_code_in_a_file_is_found_and_does_not_run(
    kind: str, program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    """Each of them does run where the file is trusted: they are attacks."""
    formats.write(program, tmp_path / "model.pt2", 18)
    records, mark = read_records((tmp_path / "model.pt2").read_bytes()), tmp_path / "it ran"
    attack, said = ATTACKS[kind]
    attack(records, f"__import__('pathlib').Path({str(mark)!r}).touch()")
    path = write_records(tmp_path / "evil.pt2", records)
    with pytest.raises(BundleError, match=rf"evil\.pt2 could run code.*{said}.*--trust"):
        load_graph(path)
    assert not mark.exists()
    with contextlib.suppress(Exception):
        load_graph(path, trust=True)
    assert mark.exists()


def set_node(**changes: object) -> Callable[[Any], object]:
    """Set keys of the graph's first node."""
    return lambda model: model["graph_module"]["graph"]["nodes"][0].update(changes)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda model: model["guards_code"].append("exit()"), "guards_code"),
        (lambda model: model.update(comment="two words"), "comment"),
        (set_node(target="torch.os.system"), "target"),
        (set_node(target="torch.ops.aten.__class__.mro"), "target"),
        (set_node(inputs=[{"arg": {"as_operator": "torch.os.system"}}]), "as_operator"),
        (set_node(inputs=[{"arg": {"as_string": "params.yaml"}}]), "as_string"),
        (set_node(metadata={"custom": "{}"}), "custom"),
    ],
)
def test_what_torch_would_evaluate_is_found(
    change: Callable[[Any], object], said: str, program: torch.export.ExportedProgram, tmp_path: Path
) -> None:
    formats.write(program, tmp_path / "model.pt2", 18)
    records = read_records((tmp_path / "model.pt2").read_bytes())
    edit(MODEL, lambda model, _: change(model))(records, "")
    assert said in str(find_code(write_records(tmp_path / "evil.pt2", records).read_bytes()))


def test_compiled_libraries_and_other_formats_are_found(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    formats.write(program, tmp_path / "model.pt2", 18)
    records = read_records((tmp_path / "model.pt2").read_bytes())
    more = records | {"data/aotinductor/model/model.so": b"\x7fELF"}
    assert "aotinductor" in str(find_code(write_records(tmp_path / "evil.pt2", more).read_bytes()))
    for content in (b"", b"PK", (tmp_path / "model.pt2").read_bytes()[:-200]):
        assert "cannot be read" in str(find_code(content))


def test_what_export_writes_needs_no_trust(program: torch.export.ExportedProgram, tmp_path: Path) -> None:
    path = tmp_path / "model.pt2"
    formats.write(program, path, 18)
    assert find_code(path.read_bytes()) is None
    images = np.random.default_rng(0).integers(0, 256, (5, 2, 2, 2), dtype=np.uint8)
    for size in (1, 5):
        expected = program.module()(torch.from_numpy(images[:size])).detach().numpy()
        np.testing.assert_array_equal(load_graph(path)(images[:size]), expected)
