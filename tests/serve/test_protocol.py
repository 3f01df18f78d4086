"""MLflow's forms of a request: one value a row, whatever is in it, or a message that says what is wrong."""

import json

import pytest
from builders import MALFORMED, grey_png, to_base64

from pipeline.inference.requests import to_bytes
from pipeline.serve.protocol import Asked, Malformed, check_kind, parse

GOOD = to_base64(grey_png())
# What a client may put where a picture belongs.
VALUES = [GOOD, "", "%", "é", "\ud800", None, True, 0, -1.5, 10**300, [1], [GOOD], {}, {"image": 1}, {"b64": GOOD}]


def read(content: object, kind: str = "application/json") -> Asked:
    text = content if isinstance(content, str) else json.dumps(content)
    return parse(kind, [bytearray(text.encode("utf-8", "surrogatepass"))])


def payloads(values: list) -> dict[str, dict]:
    """A request for the same values in every form that MLflow takes."""
    return {
        "dataframe_split": {"dataframe_split": {"columns": ["id", "image"], "data": [[1, v] for v in values]}},
        "dataframe_records": {"dataframe_records": [{"image": v} for v in values]},
        "instances, records": {"instances": [{"image": v} for v in values]},
        "instances, values": {"instances": values},
        "inputs, column": {"inputs": {"image": values}},
        "inputs, records": {"inputs": [{"image": v} for v in values]},
        "inputs, values": {"inputs": values},
    }


@pytest.mark.parametrize("form", payloads([]))
def test_every_form_gives_one_value_a_row(form: str) -> None:
    values = [value for value in VALUES if not (isinstance(value, dict) and "values" in form)]
    for given in (values, [], [GOOD], [None, None], [True]):
        assert read(payloads(given)[form]).pictures == [to_bytes(value) for value in given]
    assert read(payloads(values)[form]).pictures[0] == grey_png()


def test_rows_without_the_column_keep_their_place() -> None:
    missing, picture = to_bytes(None), grey_png()
    for form in ("dataframe_records", "instances", "inputs"):
        assert read({form: [{"img": GOOD}, {"image": GOOD}, {}]}).pictures == [missing, picture, missing]
    for body in (
        {"inputs": {"img": [1, 2]}},
        {"dataframe_split": {"columns": ["img"], "data": [[1], [2]]}},
        {"dataframe_split": {"columns": ["image"], "data": [[GOOD, 1], []]}},
    ):
        assert read(body).pictures == [missing, missing]


def test_params() -> None:
    assert read({"inputs": [1], "params": {"faces": True, "json": False, "other": 5}})[1:] == (True, False, False)
    assert read({"inputs": [1], "params": {"faces": None, "describe": True}})[1:] == (None, True, False)
    for params in (5, "x", {"faces": "yes"}, {"faces": 1}, {"describe": "no"}):
        with pytest.raises(Malformed, match="true or false"):
            read({"inputs": [1], "params": params})


@pytest.mark.parametrize(
    ("text", "pictures"),
    [
        (f"image\n{GOOD}\n", [grey_png()]),
        (f"\ufeffimage\r\n{GOOD}", [grey_png()]),
        (f'id,image,名\r1,"{GOOD}",x\r\r2\r3,,\r', [grey_png(), None, None]),
        (f'image\n"{GOOD[:9]}\n{GOOD[9:]}"\n', [grey_png()]),
        (f"img\n{GOOD}\n", [None]),
        ("image", []),
    ],
    ids=str,
)
def test_csv(text: str, pictures: list) -> None:
    assert read(text, "text/csv").pictures == [picture or to_bytes(None) for picture in pictures]


@pytest.mark.parametrize(("body", "kind", "status"), MALFORMED, ids=lambda value: str(value)[:24])
def test_malformed_requests_are_told_in_a_short_message(body: bytes, kind: str, status: int) -> None:
    taken = check_kind(kind)
    assert (taken is None) == (status == 415)
    if taken:
        with pytest.raises(Malformed) as caught:
            parse(taken, [bytearray(body)])
        assert 0 < len(str(caught.value)) < 300
