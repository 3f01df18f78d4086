"""What ``/metrics`` tells Prometheus, and the log of answers; neither holds a picture."""

import json
import os
import resource
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from pipeline.core.errors import UserError
from pipeline.inference.descriptors import DESCRIPTORS
from pipeline.serve.answers import Row

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics(Collector):  # type: ignore[misc]
    """Counts of a server; ``describe`` gives the present version and the processes of models, when somebody looks."""

    def __init__(self, describe: Callable[[], tuple[dict[str, str], Sequence[int]]]) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]  # when each count began
        self._describe, self._registry = describe, CollectorRegistry()
        self._registry.register(self)

        def count(name: str, about: str, *labels: str) -> Counter:
            return Counter(f"hyojo_{name}", about, labels, registry=self._registry)

        def spread(name: str, about: str, buckets: Sequence[float], *labels: str) -> Histogram:
            return Histogram(f"hyojo_{name}", about, labels, buckets=buckets, registry=self._registry)

        self._requests = count("requests", "Requests; status 499: the client left", "path", "status")
        self._seconds = spread("request_seconds", "From a request's head to its answer", _SECONDS, "path")
        self.batches = spread("batch_pictures", "Pictures that were computed together", (1, 2, 4, 8, 16, 32, 64))
        self._rows = count("rows", "Pictures that were asked about")
        self._errors = count("row_errors", "Pictures without an answer")
        self._answers = count("answers", "Pictures, or faces in them, by answer", "label")
        self._sure = spread("confidence", "Probability of the answer", [i / 20 for i in range(1, 21)])
        self._abstentions = count("abstentions", "Answers that the model was too unsure of to be relied on")
        self.reloads = count("reloads", "Versions that were to take over", "result")
        self.store_failures = count("store_failures", "Looks for a new version that the store did not answer")
        for result in ("done", "failed"):
            self.reloads.labels(result)

    def render(self) -> bytes:
        """What Prometheus reads."""
        text: bytes = generate_latest(self._registry)
        return text

    def add_request(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        self._requests.labels(path, status).inc()
        self._seconds.labels(path).observe(seconds)

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Count the rows of an answer."""
        self._rows.inc(len(rows))
        for row in rows:
            if row["error"] is not None:
                self._errors.inc()
                continue
            for answer in row.get("faces") or [row]:
                self._answers.labels(answer["label"]).inc()
                self._sure.observe(answer["probabilities"][answer["label"]])
                self._abstentions.inc(bool(answer["abstain"]))

    def collect(self) -> Iterator[Metric]:
        """What is looked up when somebody asks."""
        labels, processes = self._describe()
        yield InfoMetricFamily("hyojo_version", "What answers", value=labels)
        memory = GaugeMetricFamily("hyojo_memory_bytes", "Resident memory", labels=["process"])
        memory.add_metric(["server"], _memory([os.getpid()]))
        memory.add_metric(["models"], _memory(processes))
        yield memory


class RequestLog:
    """A line of JSON for each picture or face that was asked about, with the names that ``hyojo batch`` has.

    Args:
        path: Of the file, which is added to; ``-``: stdout.

    Raises:
        UserError: The file can't be written.
    """

    def __init__(self, path: str) -> None:
        try:
            self._file = sys.stdout if path == "-" else Path(path).open("a", encoding="utf-8")  # noqa: SIM115
        except OSError as error:
            raise UserError(f"--log-requests {path} can't be written: {error.strerror}.") from None

    def add(self, rows: Sequence[Row], request_id: str, version: str, ms: float) -> None:
        """Note the rows of an answer, which took so long."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        lines = []
        for number, row in enumerate(rows):
            about = {"time": now, "request": request_id, "version": version, "row": number}
            for answer in row.get("faces") or [row]:
                probability = answer["probabilities"][answer["label"]] if answer["label"] is not None else None
                seen = {"label": answer["label"], "probability": probability, "abstain": answer["abstain"]}
                seen |= {name: answer.get(name) for name in DESCRIPTORS}
                lines.append(json.dumps(about | seen | {"error": row["error"], "ms": round(ms, 1)}) + "\n")
        with suppress(OSError):  # a full disk is no reason not to answer
            self._file.write("".join(lines))
            self._file.flush()


def _memory(processes: Sequence[int]) -> float:
    """Resident bytes of processes; 0 where the system does not say."""
    pages = 0
    for process in processes:
        with suppress(OSError):
            pages += int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
