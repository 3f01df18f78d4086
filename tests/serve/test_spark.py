"""The logged model on Spark, past one machine: the same answers as ``hyojo batch``; needs pyspark and Java."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from builders import grey_png

from pipeline.serve.batch import Settings, score_pictures

THERE = {"pyspark": importlib.util.find_spec("pyspark"), "java": shutil.which("java")}
MISSING = [name for name, there in THERE.items() if not there]
SCHEMA = (
    "label string, probabilities map<string, double>, abstain boolean, error string, "
    "faces array<struct<box: array<int>, score: double, label: string, abstain: boolean>>"
)


@pytest.mark.slow
@pytest.mark.skipif(
    bool(MISSING), reason=f"Spark needs {' and '.join(MISSING)}: pip install 'hyojo[spark]', and Java 17"
)
@pytest.mark.filterwarnings("ignore")
def test_spark_answers_as_batch_does(
    bright_bundle: Path, pyfunc_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow.pyfunc
    from pyspark.sql import SparkSession
    from pyspark.sql.functions import from_json

    monkeypatch.setenv("PYSPARK_PYTHON", sys.executable)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(300):
        data = grey_png(i % 256, (9 + i % 5, 12)) if i % 50 != 7 else b"no picture"
        (folder / f"{i:03d}.png").write_bytes(data)
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
        .getOrCreate()
    )
    try:
        classify = mlflow.pyfunc.spark_udf(spark, str(pyfunc_dir), "string", params={"json": True})
        pictures = spark.read.format("binaryFile").load(str(folder)).repartition(4)
        answered = pictures.select("path", from_json(classify("content"), SCHEMA).alias("answer"))
        answered.select("path", "answer.*").write.parquet(str(tmp_path / "spark"))
    finally:
        spark.stop()
    found = {Path(row["path"]).name: row for row in pq.read_table(tmp_path / "spark").to_pylist()}
    score_pictures(folder, tmp_path / "batch.parquet", bright_bundle, Settings())
    rows = pq.read_table(tmp_path / "batch.parquet").to_pylist()
    assert set(found) == {row["file"] for row in rows}
    assert sum(row["error"] is not None for row in rows) == 6
    for row in rows:
        answer = found[row["file"]]
        for name in ("label", "abstain", "error"):
            assert answer[name] == row[name]
        probabilities = dict(answer["probabilities"] or {})
        for name in ("bright", "dark"):
            assert probabilities.get(name) == pytest.approx(row[f"prob_{name}"], abs=1e-6)
