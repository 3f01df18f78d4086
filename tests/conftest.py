"""Shared by the tests: an environment without DVC's and MLflow's variables, and fixtures over ``builders``."""

import contextlib
import os
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from builders import FOREIGN, TINY_PARAMS, Items, forget_store, make_project, write_bundle, write_prepared

from pipeline.prepare.catalogue import Listing
from pipeline.prepare.sources.source import Item

if TYPE_CHECKING:
    from running import Running
    from starlette.testclient import TestClient


# They start DVC, servers, other processes, trainings, MLflow or whole stages; `make test-fast` leaves them out.
HEAVY = re.compile(
    "test_(accelerator|batch|cache|cli|contenders|decisions|distributed|dvc_data|export|faces|formats|fuzz|how_to|int8|key|loop|model|modes|"
    "guard|open|page|plots|pool|predictor|privacy|promotion|registry|runs|sample|search|seeds|server|server_fuzz|signals|stage|stem|store|"
    "suspects|sync|trouble|tuning|versions|wheel)"
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HEAVY.fullmatch(item.path.stem):
            item.add_marker("heavy")
    # First, or the last of them would keep one core busy when the others have nothing left.
    items.sort(key=lambda item: "heavy" not in item.keywords)


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """No variable of a surrounding DVC or MLflow reaches a test, and no test's store reaches the next."""
    former = {name: os.environ.get(name) for name in FOREIGN}
    forget_store()
    yield
    forget_store()
    os.environ.update({name: value for name, value in former.items() if value is not None})


@pytest.fixture
def bf16_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """The processor has instructions for bf16, whatever this machine's has."""
    monkeypatch.setattr("torch.cpu.get_capabilities", lambda: {"avx512_bf16": True})


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, with an empty folder ``work`` beside it."""
    for folder in ("home", "work"):
        (tmp_path / folder).mkdir()
    monkeypatch.chdir(tmp_path / "home")
    return tmp_path / "home"


@pytest.fixture
def listing_of(tmp_path: Path) -> Iterator[Callable[..., Listing]]:
    """Makes a listing of given items; further arguments are ``class_map``, ``person`` and attributes of the source."""
    made: list[Listing] = []

    def make(
        items: Iterable[Item],
        class_map: dict[str, str | None] | None = None,
        person: str | None = "auto",
        **given: object,
    ) -> Listing:
        source = Items(items)
        for name, value in given.items():
            setattr(source, name, value)
        folder = tmp_path / f"listing {len(made)}"
        folder.mkdir()
        made.append(Listing(folder, source, class_map or {}, person))
        return made[-1]

    yield make
    for listing in made:
        listing.close()


@pytest.fixture
def tiny_params() -> str:
    """The text of a params.yaml that trains in a second."""
    return TINY_PARAMS


@pytest.fixture
def prepared_dir(tmp_path: Path) -> Path:
    """A tiny prepared data set: 3 classes, 72 train, 27 val and 27 test images of 16 px, grey."""
    return write_prepared(tmp_path / "prepared")


@pytest.fixture(scope="session")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables and nothing else: making one takes seconds, copying it none."""
    from pipeline.tracking import store

    store.configure_mlflow()
    folder = tmp_path_factory.mktemp("store")
    with contextlib.chdir(folder):
        from mlflow.store.db.utils import _initialize_tables
        from sqlalchemy import create_engine

        engine = create_engine(f"sqlite:///{folder / 'mlflow.db'}")
        _initialize_tables(engine)
        engine.dispose()
    return folder / "mlflow.db"


@pytest.fixture
def project(tmp_path: Path, empty_store: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The root of a tiny project, with data and an MLflow store, which is the working directory."""
    root = make_project(tmp_path / "project", empty_store)
    monkeypatch.chdir(root)
    return root


@pytest.fixture
def temporary_copy(project: Path) -> Path:
    """A temporary copy of the project, as ``dvc exp run --temp`` makes it, with a ``.dvc`` of its own."""
    folder = project / ".dvc" / "tmp" / "exps" / "x"
    (folder / ".dvc").mkdir(parents=True)
    return folder


@pytest.fixture(scope="session")
def bright_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose answer is known: the brighter a picture, the surer "bright"."""
    return write_bundle(tmp_path_factory.mktemp("bright") / "bundle")


@pytest.fixture(scope="session")
def pyfunc_dir(bright_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipeline.tracking.pyfunc import build_pyfunc

    dest = tmp_path_factory.mktemp("pyfunc") / "model"
    build_pyfunc(bright_bundle, dest)
    return dest


@pytest.fixture(scope="session")
def running(bright_bundle: Path) -> "Iterator[Running]":
    """The bundle, served without anything that only training and the registry need."""
    from running import ABSENT, Running, block

    one = Running("--model", str(bright_bundle), "--max-mb", "1", prelude=block(*ABSENT))
    yield one
    assert one.stop()[0] == 0


@pytest.fixture(scope="session")
def scoring_app(pyfunc_dir: Path) -> "TestClient":
    """A client of MLflow's own scoring application, as ``mlflow models serve`` runs it, in this process."""
    import mlflow.pyfunc
    from mlflow.pyfunc import scoring_server
    from starlette.testclient import TestClient

    return TestClient(scoring_server.init(mlflow.pyfunc.load_model(str(pyfunc_dir))), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def page() -> Iterator[Any]:
    """A page of Chromium, as wide as a phone."""
    browser = "/usr/bin/chromium"
    if not Path(browser).exists():
        pytest.skip(f"{browser} is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=browser, args=["--no-sandbox", "--disable-gpu"])
        yield opened.new_page(viewport={"width": 375, "height": 800})
        opened.close()
