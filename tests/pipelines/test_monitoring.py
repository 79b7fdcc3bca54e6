"""The files of docs/monitoring as an operator uses them: a real Prometheus scrapes, and every panel has its numbers."""

import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.parse
import urllib.request

import pytest
import yaml
from distributed import Client

from pipelines.status import main as status
from tests.support.dask_processes import DaskProcesses, kill, wait_until
from tests.support.paths import ROOT
from tests.support.ports import free_ports
from tests.support.shard_folders import add_row, add_slide
from wsi_prep.compute.time_limit import HUNG, time_limit
from wsi_prep.output.catalog import Catalog
from wsi_prep.output.folder import say_working
from wsi_prep.storage.select import open_storage

BOARD = json.loads((ROOT / "docs/monitoring/board.json").read_text())
PROGRAMS = ("prometheus", "prometheus-node-exporter")


@contextlib.contextmanager
def running(*words):
    process = subprocess.Popen([*map(str, words)], stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


@pytest.fixture
def metrics(tmp_path):
    """A folder for node exporter, with what make status writes of an output that a run works on."""
    out, folder = tmp_path / "out", tmp_path / "metrics"
    folder.mkdir()
    add_slide(out, 1, {"20x": 3, "5x": 1}, bytes=1000, seconds_tissue=2.0, seconds_tiles=4.0)
    (out / ".lock").touch()
    (out / ".staging").mkdir()
    storage = open_storage(str(out))
    with storage.locked("token", take_over=False), time_limit(out / f".staging/slow-one-abcdef01{HUNG}", 1000):
        say_working(Catalog(storage), 10, times=True)
        add_slide(out, 2, {"20x": 4}, bytes=3000, seconds_tissue=1.0, seconds_tiles=1.0)
        add_row(out, "broken-1", status="failed", error_type="DamagedSlide", error="cut off")
        assert status(["--shards", str(out), "--metrics", str(folder / "mixmag.prom")]) == 0
    return folder


class Prometheus:
    """A Prometheus that serves on this port."""

    def __init__(self, port):
        self._at = f"http://127.0.0.1:{port}/api/v1/query?"

    def ask(self, expression):
        """The values by their labels, which are sorted."""
        with urllib.request.urlopen(self._at + urllib.parse.urlencode({"query": expression})) as answer:  # noqa: S310
            found = json.load(answer)
        assert found["status"] == "success"
        rows = found["data"]["result"]
        return {tuple(sorted(row["metric"].items())): float(row["value"][1]) for row in rows}

    def knows(self, expression):
        """Whether it has values for that by now."""
        try:
            return bool(self.ask(expression))
        except urllib.error.URLError:
            return False


def expressions(out=".*"):
    """Of all panels, by panel, with the variable that the board has."""
    return {
        (panel["title"], target["refId"]): target["expr"].replace("$out", out)
        for panel in BOARD["panels"]
        for target in panel["targets"]
    }


@pytest.mark.slow
def test_every_panel_of_the_board_has_numbers_in_a_real_prometheus(metrics, tmp_path):
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        pytest.skip(f"needs Prometheus: apt-get install {' '.join(PROGRAMS)} ({missing[0]} is not on the PATH)")
    of_prometheus, of_exporter = free_ports(2)
    config = yaml.safe_load((ROOT / "docs/monitoring/prometheus.yml").read_text())
    config["global"]["scrape_interval"] = "1s"
    jobs = {job["job_name"]: job["static_configs"][0] for job in config["scrape_configs"]}
    with DaskProcesses(tmp_path) as cluster:
        cluster.worker("--dashboard", "--dashboard-address", "127.0.0.1:0")
        with Client(cluster.address, set_as_default=False) as client:
            client.wait_for_workers(1, timeout=60)
            client.submit(abs, -1).result()
            (worker,) = client.scheduler_info()["workers"].values()
        jobs["mixmag"]["targets"] = [f"127.0.0.1:{of_exporter}"]
        jobs["dask"]["targets"] = [
            cluster.dashboard.removeprefix("http://"),
            f"127.0.0.1:{worker['services']['dashboard']}",
        ]
        (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config))
        exporter = [f"--web.listen-address=127.0.0.1:{of_exporter}", "--collector.disable-defaults"]
        exporter += ["--collector.textfile", f"--collector.textfile.directory={metrics}"]
        server = [f"--config.file={tmp_path / 'prometheus.yml'}", f"--storage.tsdb.path={tmp_path / 'tsdb'}"]
        server += [f"--web.listen-address=127.0.0.1:{of_prometheus}"]
        with running(PROGRAMS[1], *exporter) as one, running(PROGRAMS[0], *server) as other:
            prometheus = Prometheus(of_prometheus)
            wait_until(lambda: all(map(prometheus.knows, expressions().values())), one, other, seconds=60, every=0.2)
            found = {panel: prometheus.ask(expression) for panel, expression in expressions().items()}
    assert found["Slides done", "A"] == {(): 3}
    assert found["Failed", "A"] == {(): 1}
    assert found["Left in this call", "A"] == {(): 8}
    assert found["Slides by status", "A"] == {(("status", "ok"),): 2, (("status", "failed"),): 1}
    assert found["Failures by error", "A"] == {(("error_type", "DamagedSlide"),): 1}
    tiles = {name: value for ((_, name),), value in found["Tiles by magnification", "A"].items()}
    assert tiles == {"5x": 1, "10x": 0, "20x": 7, "40x": 0}
    stages = {name: value for ((_, name),), value in found["Seconds of a slide by stage", "A"].items()}
    assert stages == pytest.approx({"open": 0, "tissue": 1, "tiles": 5 / 3, "publish": 0})
    assert found["Disk", "C"] == {(("out", str(tmp_path / "out")),): 4000}
    assert sum(found["Workers by state", "A"].values()) == 1


def test_the_board_asks_for_what_its_variables_offer():
    names = {variable["name"] for variable in BOARD["templating"]["list"]}
    asked = {name for text in map(json.dumps, BOARD["panels"]) for name in re.findall(r"\$\{?(\w+)", text)}
    assert asked == names
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])
    places = [panel["gridPos"] for panel in BOARD["panels"]]
    for number, one in enumerate(places):
        for other in places[number + 1 :]:
            apart = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
            assert apart or one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
