"""Signatures of bundles and registered versions, by an elliptic-curve key of the team's; no network is asked.

The package ``model-signing`` makes and checks them (the extra ``sign``): a signature lists the SHA-256 of every file of
a folder. It lies beside the folder, with ``.sig`` added to the name.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.core.errors import UserError
from pipeline.core.files import replacing
from pipeline.tracking.bundles import name_model, read_bundle
from pipeline.tracking.runs import fetch, read_artifact
from pipeline.tracking.store import find_run

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

PASSWORD = "HYOJO_KEY_PASSWORD"
# What Python and MLflow leave in a folder from which a model was loaded.
_TRACES = shutil.ignore_patterns("__pycache__", "registered_model_meta")


def sign_folder(folder: Path, signature: Path, private_key: Path) -> None:
    """Sign all files of a folder; the key's password, if it has one, is in ``HYOJO_KEY_PASSWORD``.

    Raises:
        UserError: The extra is not installed, or the key is none.
    """
    package, password = _open_package(), os.environ.get(PASSWORD)
    try:
        config = package.signing.Config().set_hashing_config(_hashing(package))
        config.use_elliptic_key_signer(private_key=private_key, password=password and password.encode())
        with replacing(signature) as scratch:
            config.sign(folder, scratch)
    except (OSError, ValueError, TypeError) as error:  # TypeError: cryptography's, for a missing password
        raise UserError(
            f"{folder} cannot be signed with {private_key}: {error}. It has to be a PEM file with a private key of the "
            f"curve P-256, P-384 or P-521; its password, if it has one, is taken from {PASSWORD}."
        ) from None


def copy_signed(folder: Path, signature: Path, public_key: Path) -> Path:
    """Copy a folder as ``copy_folder`` does, and check the copy, which is to be used in place of the folder.

    Raises:
        UserError: The extra is not installed, there is no such key or signature, or the folder is not what was signed.
    """
    package = _open_package()
    if not public_key.is_file():
        raise UserError(f"{public_key} not found: --require-signature takes the file with the public key.")
    if not signature.is_file():
        raise UserError(f"{folder} is not signed: {signature} not found. `hyojo sign` makes it.")
    copy = copy_folder(folder)
    try:
        config = package.verifying.Config().set_hashing_config(_hashing(package))
        config.use_elliptic_key_verifier(public_key=public_key).verify(copy, signature)
    except Exception as error:  # what parsers and cryptography raise for hostile bytes: whatever it is, it says no
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{folder} is not what the owner of {public_key} signed: {reason} Take it from its source again, or look "
            "who changed it; `hyojo sign` signs what is there now."
        ) from None
    return copy


def check_version(client: "MlflowClient", version: "ModelVersion", public_key: str | None = None) -> None:
    """Look whether a registered version is what was exported and, where a public key is given, signed by it.

    Raises:
        UserError: It is not, or its files are gone.
        TrackingError: The store of the artifacts does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="hyojo-check-") as scratch:
        run, folder = find_run(client, str(version.run_id)), fetch(str(version.source), Path(scratch) / "model")
        if run is None or folder is None:
            raise UserError(
                f"version {version.version} cannot be checked: its files, or its run {version.run_id}, are gone."
            )
        if public_key is not None:
            signature = Path(scratch) / name_signature(version)
            content = read_artifact(client, run.info.run_id, signature.name)
            if content is None:
                raise UserError(f"version {version.version} is not signed. `hyojo sign {version.version}` does it.")
            signature.write_bytes(content)
            folder = copy_signed(folder, signature, Path(public_key))
        read_bundle(folder / "artifacts" / "bundle")


def name_signature(version: "ModelVersion") -> str:
    """The file on a version's run that is its signature."""
    return f"{name_model(str(version.tags['hyojo.digest']))}.sig"


def copy_folder(folder: Path) -> Path:
    """Copy a folder without traces of its use to where only this process writes; it is gone when that ends."""
    scratch = Path(tempfile.mkdtemp(prefix="hyojo-signed-"))
    atexit.register(shutil.rmtree, scratch, ignore_errors=True)
    return Path(shutil.copytree(folder, scratch / folder.resolve().name, ignore=_TRACES))


def _hashing(package: Any) -> Any:
    """How files are summed: every one counts, hidden ones too."""
    return package.hashing.Config().set_ignored_paths(paths=[], ignore_git_paths=False)


def _open_package() -> Any:
    """The package that signs."""
    try:
        import model_signing
    except ModuleNotFoundError as error:
        raise UserError(f"signatures need the package {error.name}: pip install 'hyojo[sign]'.") from None
    return model_signing
