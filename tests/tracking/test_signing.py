"""Signatures: who has the key can sign, and whatever is changed after that is refused where a signature is required."""

import json
import sys
from pathlib import Path

import pytest
from builders import add_answering_version, grey_png, run_hyojo, seal_bundle, write_bundle
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from pipeline.core.errors import UserError
from pipeline.experiments import promotion
from pipeline.serve import locate, signatures
from pipeline.tracking import signing
from pipeline.tracking.store import connect

Capture = pytest.CaptureFixture[str]


def make_keys(folder: Path, password: bytes | None = None) -> tuple[str, str]:
    """Write a private and a public key; returns their paths."""
    folder.mkdir()
    key = ec.generate_private_key(ec.SECP256R1())
    lock = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    form = serialization.PrivateFormat.PKCS8
    (folder / "team.pem").write_bytes(key.private_bytes(serialization.Encoding.PEM, form, lock))
    form = serialization.PublicFormat.SubjectPublicKeyInfo
    (folder / "team.pub").write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, form))
    return str(folder / "team.pem"), str(folder / "team.pub")


@pytest.fixture
def keys(tmp_path: Path) -> tuple[str, str]:
    return make_keys(tmp_path / "keys")


@pytest.fixture
def signed(tmp_path: Path, keys: tuple[str, str]) -> Path:
    folder = write_bundle(tmp_path / "bundle")
    assert run_hyojo("sign", str(folder), "--key", keys[0]) == 0
    return folder


def test_a_signed_bundle_answers(signed: Path, keys: tuple[str, str], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "face.png").write_bytes(grey_png(250))
    (signed / "__pycache__").mkdir()
    words = [str(tmp_path / "face.png"), "--model", str(signed), "--require-signature", keys[1]]
    assert run_hyojo("predict", *words) == 0
    assert "bright" in capsys.readouterr().out
    assert run_hyojo("verify", str(signed), "--key", keys[1]) == 0
    assert f"bundle: 3 files are as they were exported, and signed by the owner of {keys[1]}" in capsys.readouterr().out


def test_new_sums_do_not_make_a_signature(signed: Path, keys: tuple[str, str]) -> None:
    """Who changes a bundle can make its sums anew: those are right again, and the signature is not."""
    seal_bundle(signed, class_names=["dark", "bright"])
    assert run_hyojo("verify", str(signed)) == 0
    with pytest.raises(UserError, match=r"is not what the owner of .*team\.pub signed: .*bundle\.json"):
        locate.locate(str(signed), public_key=keys[1])


@pytest.mark.parametrize("name", ["more.txt", ".hidden", ".gitignore", "sub/more.py"])
def test_a_file_that_was_not_signed_is_refused(signed: Path, keys: tuple[str, str], name: str) -> None:
    (signed / name).parent.mkdir(exist_ok=True)
    (signed / name).touch()
    with pytest.raises(UserError, match=f"Extra files.*{name}"):
        locate.locate(str(signed), public_key=keys[1])


def test_other_keys_and_signatures_are_refused(
    signed: Path, keys: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refusal(model: Path, public_key: str) -> str:
        with pytest.raises(UserError) as caught:
            locate.locate(str(model), public_key=public_key)
        return str(caught.value)

    private, public = make_keys(tmp_path / "others", b"secret")
    assert "Key mismatch" in refusal(signed, public)
    assert "not found: --require-signature" in refusal(signed, str(tmp_path / "no.pub"))
    signature = tmp_path / "bundle.sig"
    for content in (signature.read_bytes()[:-20], b"", b"{}", b"\xff"):
        signature.write_bytes(content)
        assert "is not what the owner" in refusal(signed, keys[1])
    signature.unlink()
    assert "`hyojo sign` makes it" in refusal(signed, keys[1])
    with pytest.raises(UserError, match=r"cannot be signed with.*HYOJO_KEY_PASSWORD"):
        signatures.sign(str(signed), private)
    assert not signature.exists()
    monkeypatch.setenv(signing.PASSWORD, "secret")
    signatures.sign(str(signed), private)
    assert locate.locate(str(signed), public_key=public).trust
    monkeypatch.setitem(sys.modules, "model_signing", None)
    assert "pip install 'hyojo[sign]'" in refusal(signed, public)


def test_what_is_used_is_what_was_verified(signed: Path, keys: tuple[str, str]) -> None:
    """The folder is changed after the look at it: what was found is a copy that stays as it was signed."""
    found = locate.locate(str(signed), public_key=keys[1])
    seal_bundle(signed, class_names=["dark", "bright"])
    (row,) = locate.open_predictor(found)([grey_png(250)])
    assert row["label"] == "bright"


@pytest.mark.usefixtures("project")
def test_registered_versions(keys: tuple[str, str], capsys: Capture) -> None:
    for number, digest in enumerate(("first", "second"), 1):
        assert add_answering_version(digest) == number
    with pytest.raises(UserError, match=r"version 2 is not signed\. `hyojo sign 2`"):
        promotion.promote(2, public_key=keys[1])
    assert run_hyojo("sign", "2", "--key", keys[0]) == 0
    assert "Signed hyojo version 2 (model-second.sig on its run)." in capsys.readouterr().out
    found = locate.locate("models:/hyojo/2", public_key=keys[1])
    assert locate.open_predictor(found)([grey_png(250)])[0]["label"] == "bright"
    signing.check_version(connect(), connect().get_model_version("hyojo", "2"), keys[1])
    assert run_hyojo("verify", "models:/hyojo/2", "--key", keys[1]) == 0
    with pytest.raises(UserError, match=r"can't be fetched|not signed"):
        locate.locate("1", public_key=keys[1])

    stored = Path(connect().get_model_version("hyojo", "2").source.removeprefix("file://"))
    script = stored / "code" / "hyojo_inference" / "images.py"
    script.write_text(script.read_text() + "# other code\n")
    with pytest.raises(UserError, match=r"signed: .*images\.py"):
        promotion.promote(2, public_key=keys[1])
    record = stored / "artifacts" / "bundle" / "bundle.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"class_names": ["dark", "bright"]}))
    with pytest.raises(UserError, match=r"bundle\.json was changed"):
        promotion.promote(2, force=True, reason="in a hurry")
