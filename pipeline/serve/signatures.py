"""Models that are signed, and signatures that are checked, wherever the models are."""

import tempfile
from pathlib import Path

from pipeline.core.errors import UserError
from pipeline.serve.places import Place, fetch_uri, find_model


def sign(model: str, private_key: str) -> str:
    """Sign a model; returns where its signature is.

    Args:
        model: As in ``locate``: a bundle in a folder, or a registered version.
        private_key: The file with the key.

    Raises:
        UserError: There is no such model, its bundle is not as it was exported, or the key is none.
    """
    from pipeline.tracking import signing, store
    from pipeline.tracking.bundles import read_bundle

    place, key = find_model(model), Path(private_key)
    if ":/" in place.signature and place.run_id is None:
        raise UserError(f"{model} cannot be signed where it is. Give a folder of this machine, or a version's number.")
    place = place._replace(path=signing.copy_folder(place.path))
    read_bundle(place.bundle)
    if place.run_id is None:
        signing.sign_folder(place.path, Path(place.signature), key)
        return place.signature
    with tempfile.TemporaryDirectory(prefix="hyojo-sign-") as scratch:
        signature = Path(scratch) / place.signature.rsplit("/", 1)[1]
        signing.sign_folder(place.path, signature, key)
        store.open_reader().log_artifact(place.run_id, str(signature))
    return f"{place.title} ({signature.name} on its run)"


def verify(model: str, public_key: str | None) -> tuple[str, int]:
    """Check all files of a model, given as in ``locate``; none of its code is run.

    Returns:
        What people call it, and how many files its bundle has.

    Raises:
        UserError: One of them is not as it was exported, or not as it was signed.
    """
    from pipeline.tracking.bundles import read_bundle

    place = find_model(model)
    if public_key is not None:
        place = copy_signed(place, Path(public_key))
    return place.title, 1 + len(read_bundle(place.bundle).files)


def copy_signed(place: Place, public_key: Path) -> Place:
    """A copy of a model of this process's own, which is as it was signed: nobody can change it after the look at it."""
    from pipeline.tracking import signing

    signature = Path(place.signature)
    if ":/" in place.signature or place.run_id:
        signature = fetch_uri(place.signature, file=True) or signature
    return place._replace(path=signing.copy_signed(place.path, signature, public_key))
