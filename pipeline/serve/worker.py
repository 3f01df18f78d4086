"""A process that holds the model: it answers one batch of pictures after the other."""

import base64
import gc
import os
import pickle
import signal
import struct
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from pipeline.core.errors import UserError, telling
from pipeline.core.signals import die_with_parent
from pipeline.inference.bundle import BundleError
from pipeline.inference.predictor import Predictor, build_failure
from pipeline.serve.answers import Row
from pipeline.serve.locate import Located, open_pyfunc

BUDGET_S = 60  # pictures that a request can't be answered for in this time get an error
HEAD = struct.Struct("<Q")  # bytes of the answer behind it

Answer = Callable[[Sequence[bytes], bool | None, bool], list[Row]]


def main() -> None:
    """Load the model that the first message on stdin names, say there why not or nothing, and answer the others."""
    die_with_parent()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.dup2(2, 1)  # on the server's stdout is nothing but what the server says
    source, sink = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(0), "wb")

    def send(message: object) -> None:
        content = pickle.dumps(message, 5)
        sink.write(HEAD.pack(len(content)) + content)
        sink.flush()

    found, runtime, threads = pickle.load(source)
    try:
        with telling(BundleError):
            answer = _load(found, {"runtime": runtime, "threads": threads, "seconds": BUDGET_S})
    except UserError as error:
        return send(str(error))
    except BaseException:
        traceback.print_exc()
        return send(f"{found.title} can't be loaded; its process said why")
    # To look for garbage among all that was loaded would hold up requests for a tenth of a second.
    gc.collect()
    gc.freeze()
    send("")
    while True:
        try:
            pictures, faces, describe = pickle.load(source)
        except EOFError:
            os._exit(0)  # whatever a version's own code has begun beside this
        try:
            rows = answer(pictures, faces, describe)
        except Exception:  # of a version's own code
            traceback.print_exc()
            rows = []
        if len(rows) != len(pictures):
            rows = [build_failure("the model could not be run on this picture", bool(faces)) for _ in pictures]
        del pictures
        send(rows)


def _load(found: Located, config: dict[str, Any]) -> Answer:
    """What answers, warm."""
    if found.path == found.bundle:
        answer: Answer = Predictor(found.opened, **config, trust=found.trust).predict_bytes
    else:
        # The model behind MLflow's look at the types of tables, which takes as long as the answer.
        model = open_pyfunc(found, **config).unwrap_python_model()  # type: ignore[no-untyped-call]

        def answer(pictures: Sequence[bytes], faces: bool | None, describe: bool) -> list[Row]:
            params = {"describe": describe} | ({} if faces is None else {"faces": faces})
            rows: list[Row] = model.predict(None, list(pictures), params)
            return rows

    from pipeline.tracking.pyfunc import example_picture

    picture = base64.b64decode(example_picture(found.record.preprocessing))
    for faces in (False, True):  # the nets that find faces are loaded too
        answer([picture], faces, True)
    return answer


if __name__ == "__main__":
    main()
