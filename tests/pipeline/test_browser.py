"""examples/browser: a page classifies a dropped picture with the exported file, as Python does."""

from __future__ import annotations

import functools
import http.server
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from semisup.pipeline.export import export_model
from semisup.stages import load_predictor
from semisup.stages.programs import run_onnx
from tests.pipeline.pipeline_small import run_small

PAGE = Path(__file__).parents[2] / "examples" / "browser" / "index.html"
DROP = """
const done = arguments[arguments.length - 1];
fetch(arguments[0]).then((answer) => answer.blob()).then((blob) => {
  const carried = new DataTransfer();
  carried.items.add(new File([blob], "picture.png", {type: "image/png"}));
  document.querySelector("#drop").dispatchEvent(new DragEvent("drop", {dataTransfer: carried, bubbles: true}));
  window.answer.then(done, (error) => done(String(error)));
});
"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with the page, the model and npm's onnxruntime-web, and its address on loopback."""
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    folder = tmp_path_factory.mktemp("site")
    words = ["install", "--no-audit", "--no-fund", "--ignore-scripts", "onnxruntime-web@1"]
    subprocess.run([npm, *words], cwd=folder, check=True, capture_output=True, timeout=300)
    shutil.copy(PAGE, folder)
    run_small(folder / "run", "stages.finetune.steps=60", "stages.finetune.init=null", "data.validation=0.3")
    export_model(folder / "run" / "finetune", folder / "model.onnx")
    noise = np.random.default_rng(0).integers(0, 256, (40, 25, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "color.png")
    Image.fromarray(noise[:8, :8, 0]).save(folder / "gray.png")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield folder, f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.slow
def test_a_dropped_picture_gets_pythons_probabilities(site: tuple[Path, str], browser: Any) -> None:
    folder, url = site
    browser.get(f"{url}/index.html")
    browser.set_script_timeout(120)
    run = run_onnx(folder / "model.onnx")
    for name in ("color.png", "gray.png"):
        found = browser.execute_async_script(DROP, name)
        assert isinstance(found, list), found
        with Image.open(folder / name) as image:
            expected = run(np.asarray(image.convert("L"))[None, ..., None])[0][0]
        np.testing.assert_allclose(found, expected, atol=1e-3)
    predictor = load_predictor(folder / "run" / "finetune")
    np.testing.assert_allclose(found, predictor.predict_proba(folder / "gray.png")[0], atol=1e-3)
    rows = browser.execute_script("return [...document.querySelectorAll('td:first-child')].map((c) => c.textContent)")
    assert rows[0] == predictor.classes[int(np.argmax(found))]
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
