"""What a run leaves: `result.json`, models that load, and the run in MLflow."""

from __future__ import annotations

import json
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import semisup
from semisup.cli.app import track
from semisup.data import load_data
from semisup.errors import SemisupError
from semisup.pipeline import RunResult
from semisup.stages import load_predictor
from semisup.tracking.wheel import WHEEL
from tests.pipeline.pipeline_small import SMALL, run_small, small


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs") / "out"


@pytest.fixture(scope="module")
def result(out: Path) -> RunResult:
    return run_small(out)


def read(path: Path) -> Any:
    def refuse(word: str) -> None:
        raise AssertionError(f"not strict JSON: {word}")

    return json.loads(path.read_text(), parse_constant=refuse)


def test_result_json_has_the_promised_keys_and_no_others(out: Path, result: RunResult) -> None:
    content = read(out / "result.json")
    assert list(content) == ["recipe", "seed", "version", "device", "data", "stages", "final"]
    keys = ["source", "hash", "n_train", "n_labeled", "n_validation", "n_test", "split_hash", "class_ratio", "notes"]
    assert list(content["data"]) == keys
    for stage in content["stages"]:
        assert list(stage) == [
            "name",
            "method",
            "fingerprint",
            "status",
            "steps",
            "seconds",
            "images_per_second",
            "parameters",
            "metrics",
            "chosen",
        ]
    assert list(content["final"]) == ["stage", "path", "test/accuracy", "headline"]
    assert content == json.loads(json.dumps(result.to_json()))


def test_result_json_says_what_was_done(out: Path, result: RunResult) -> None:
    content = read(out / "result.json")
    data = load_data(small().data)
    assert (content["recipe"], content["seed"], content["version"]) == ("small", 0, semisup.__version__)
    assert content["device"] == "cpu"
    facts = content["data"]
    assert (facts["source"], facts["hash"], facts["n_labeled"]) == ("digits", data.hash, 40)
    assert (facts["n_train"], facts["n_test"]) == (len(data.x_train), len(data.x_test))
    stages = {stage["name"]: stage for stage in content["stages"]}
    assert {name: (s["method"], s["steps"], s["status"]) for name, s in stages.items()} == {
        "pretrain": ("simclr_v2", 4, "trained"),
        "finetune": ("supervised", 4, "trained"),
        "labels": ("relabel", 0, "trained"),
        "student": ("distill", 3, "trained"),
    }
    assert {"test/accuracy", "test/nll", "test/ece", "test_raw/accuracy"} <= set(stages["finetune"]["metrics"])
    assert {"knn/accuracy", "probe/accuracy"} <= set(stages["pretrain"]["metrics"])
    assert not any(name.startswith("test") for name in stages["pretrain"]["metrics"])
    quality = {"pseudo_labels/coverage", "pseudo_labels/kept_accuracy", "pseudo_labels/accuracy"}
    assert quality <= set(stages["labels"]["metrics"])
    assert quality <= set(stages["student"]["metrics"])
    for stage in content["stages"]:
        assert stage["seconds"] > 0
        assert stage["images_per_second"] > 0
    assert content["final"] == {
        "stage": "student",
        "path": str(out / "student"),
        "headline": "test/accuracy",
        "test/accuracy": stages["student"]["metrics"]["test/accuracy"],
    }


def test_a_number_of_the_log_has_one_meaning(tmp_path: Path) -> None:
    train = {"method": {"name": "fixmatch"}, "batch": {"labeled": 8, "unlabeled": 8}, "steps": 3}
    semisup.run({**SMALL, "log_every": 1, "stages": {"train": train}}, out=tmp_path / "a", quiet=True)
    events = [json.loads(line) for line in (tmp_path / "a" / "events.jsonl").read_text().splitlines()]
    logged = [event for event in events if event["event"] == "metrics" and event["stage"] == "train"]
    steps = {name for event in logged for name in event["values"]}
    (end,) = (event["metrics"] for event in events if event["event"] == "stage_end")
    assert "pseudo_labels_of_batch/coverage" in steps
    assert "pseudo_labels/coverage" in end
    assert not steps & {name.removeprefix("train/") for name in end}


def test_what_could_not_be_measured_is_null(tmp_path: Path) -> None:
    run_small(tmp_path / "a", "stages.labels.per_class=1", "stages.finetune.steps=1")
    stages = {stage["name"]: stage for stage in read(tmp_path / "a" / "result.json")["stages"]}
    # No answer of an untrained student is confident: nothing was kept that could be right.
    assert stages["student"]["metrics"]["pseudo_labels/coverage"] == 0
    assert stages["student"]["metrics"]["pseudo_labels/kept_accuracy"] is None


def test_the_result_is_an_object_with_its_stages(out: Path, result: RunResult) -> None:
    assert result["finetune"].parameters > result["student"].parameters
    assert result.final is result["student"]
    with pytest.raises(KeyError, match="nosuch"):
        result["nosuch"]
    assert result.out == out


def test_every_classifier_loads_and_gives_its_recorded_accuracy(out: Path, result: RunResult) -> None:
    data = load_data(small().data)
    for name in ("finetune", "student"):
        for predictor in (semisup.load_predictor(out / name), result.predictor(name)):
            accuracy = (predictor.predict(data.x_test).argmax(1) == data.y_test).mean()
            assert accuracy == pytest.approx(result[name].metrics["test/accuracy"], abs=1e-12)
    with pytest.raises(SemisupError, match="an encoder without a classifier"):
        result.predictor("pretrain")
    with pytest.raises(SemisupError, match="has no stage 'studnet'; did you mean 'student'"):
        result.predictor("studnet")


def test_headline_and_table_show_how_good_the_kept_labels_were(result: RunResult) -> None:
    assert list(result["labels"].headline()) == ["pseudo_labels/coverage", "pseudo_labels/kept_accuracy"]


# MLflow


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was tracked in the default place, `mlflow.db` next to it."""
    folder = tmp_path_factory.mktemp("tracked")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        run_small(folder / "out", "tracking={mlflow: true, experiment: here}")
    return folder


def test_a_run_is_tracked_and_its_models_load_from_mlflow(tracked: Path) -> None:
    import mlflow

    assert (tracked / "mlflow.db").exists()
    uri = f"sqlite:///{tracked}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    experiment = client.get_experiment_by_name("here")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert set(children) == {"pretrain", "finetune", "labels", "student"}
    assert {run.data.tags["mlflow.parentRunId"] for run in children.values()} == {parent.info.run_id}
    assert {run.info.status for run in runs} == {"FINISHED"}

    content = read(tracked / "out" / "result.json")
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=False).stdout.strip()
    assert parent.data.tags.get("git_commit", "") == commit
    for run in runs:
        assert run.data.tags["data_hash"] == content["data"]["hash"]
        assert run.data.tags["split_hash"] == content["data"]["split_hash"]
    for stage in content["stages"]:
        child = children[stage["name"]]
        assert child.data.tags["fingerprint"] == stage["fingerprint"]
        assert child.data.tags["semisup.status"] == "trained"
        for name in ("test/accuracy", "pseudo_labels/coverage", "knn/accuracy"):
            if name in stage["metrics"]:
                assert child.data.metrics[name] == pytest.approx(stage["metrics"][name])
    assert parent.data.params["data.labels"] == "40"
    assert children["student"].data.params["method.name"] == "distill"
    assert [m.step for m in client.get_metric_history(children["finetune"].info.run_id, "loss/main")] == [2, 4]

    def artifacts(run: Any) -> set[str]:
        return {file.path for file in client.list_artifacts(run.info.run_id)}

    assert {"recipe.yaml", "result.json"} <= artifacts(parent)
    assert {"stage.json", "confusion.png"} <= artifacts(children["student"])
    assert artifacts(children["pretrain"]) == {"stage.json", "neighbors.png", "embedding.png"}


def test_the_model_of_mlflow_predicts_class_names(tracked: Path) -> None:
    import mlflow

    uri = f"sqlite:///{tracked}/mlflow.db"
    client = mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)
    (experiment,) = [found for found in client.search_experiments() if found.name == "here"]
    assert experiment.tags["mlflow.experimentKind"] == "custom_model_development"
    runs = {run.info.run_name: run for run in client.search_runs([experiment.experiment_id])}
    models = {model.name: model for model in client.search_logged_models([experiment.experiment_id])}
    assert set(models) == {"finetune", "student"} and {model.status for model in models.values()} == {"READY"}

    student, parent = models["student"], runs["small"]
    assert [output.model_id for output in parent.outputs.model_outputs] == [student.model_id]
    assert [output.model_id for output in runs["student"].outputs.model_outputs] == [student.model_id]
    content = read(tracked / "out" / "result.json")
    accuracy = content["final"]["test/accuracy"]
    assert parent.data.metrics["test/accuracy"] == pytest.approx(accuracy)
    (shown,) = [metric for metric in client.get_logged_model(student.model_id).metrics if metric.key == "test/accuracy"]
    assert shown.value == pytest.approx(accuracy)
    read_sets = {read.tags[0].value: read.dataset for read in parent.inputs.dataset_inputs}
    assert set(read_sets) == {"training", "test"}
    assert content["data"]["hash"].startswith(read_sets["training"].digest)
    assert content["data"]["split_hash"] in read_sets["training"].source and str(tracked) not in str(read_sets)

    local = mlflow.artifacts.download_artifacts(artifact_uri=student.artifact_location)
    model = mlflow.pyfunc.load_model(local)
    data = load_data(small().data)
    expected = load_predictor(tracked / "out" / "student").predict(data.x_test)
    found = model.predict(data.x_test)
    assert list(found.columns) == model.metadata.metadata["classes"] == data.classes
    np.testing.assert_allclose(found.to_numpy(), expected, rtol=1e-5)
    assert model.metadata.signature.inputs.inputs[0].type == np.dtype("uint8")
    assert model.metadata.signature.inputs.inputs[0].shape == (-1, -1, -1, 1)
    assert [one.name for one in model.metadata.signature.outputs] == data.classes
    example = np.asarray(model.input_example)
    assert example.shape == (2, 8, 8, 1)
    with pytest.raises(mlflow.exceptions.MlflowException):
        model.predict(data.x_test.astype(np.float64))
    wheel = Path(local) / "wheels" / WHEEL
    assert f"wheels/{WHEEL}" in (Path(local) / "requirements.txt").read_text()
    assert "semisup/py.typed" in zipfile.ZipFile(wheel).namelist()


def test_track_finds_nothing_left_to_send(tracked: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track(tracked / "out")
    sent = f"sent to sqlite:///{tracked}/mlflow.db: 0 runs, 0 stages, 0 metrics, 0 artifacts, 0 models\n"
    assert capsys.readouterr().out == sent
