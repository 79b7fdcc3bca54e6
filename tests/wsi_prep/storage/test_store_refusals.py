"""What a store of any kind refuses is one line with the true reason, and no line has a secret."""

import os
from unittest.mock import patch

import pyarrow.parquet as pq
import pytest
from obstore.exceptions import GenericError

from pipelines.audit import main as audit
from pipelines.forget import main as forget
from pipelines.interchange import main as interchange
from pipelines.query import main as query
from pipelines.shards import main as make_shards
from pipelines.verify import main as verify
from tests.support.shard_folders import add_slide
from tests.support.store_door import Door
from tests.support.training import run
from wsi_prep.errors import StoreFailed
from wsi_prep.storage.object_client import failed, reason_of
from wsi_prep.storage.select import open_storage

PREFIX = "study/out/"


@pytest.fixture
def shards(store, tmp_path):
    """The URL of two slides' shards."""
    for number in (1, 2):
        add_slide(tmp_path / "near", number, {"20x": 6, "10x": 3})
    store.upload(tmp_path / "near", PREFIX)
    return f"{store.url}/study/out"


COMMANDS = {
    "shards into": lambda where, to: make_shards(["--slides", to, "--out", where]),
    "shards from": lambda where, to: make_shards(["--slides", f"{where}/cohort", "--out", f"{to}/out"]),
    "verify": lambda where, to: verify(["--shards", where]),
    "forget": lambda where, to: forget(["--shards", where, "--slide", "x", "--yes"]),
    "query": lambda where, to: query(["--shards", where, "--sql", "SELECT 1"]),
    "audit": lambda where, to: audit(["--shards", where, "--to", f"{to}/page.html"]),
    "interchange": lambda where, to: interchange(["--shards", where, "--kind", "clam", "--to", f"{to}/clam"]),
    "pretrain": lambda where, to: run(where, to / "run"),
}


def refusal(command, where, tmp_path, capsys):
    """The one line with which it ends."""
    (tmp_path / "a.svs").touch()
    assert COMMANDS[command](where, tmp_path if command == "pretrain" else str(tmp_path)) == 2
    printed = capsys.readouterr()
    assert printed.err.count("\n") == 1, printed.err
    assert len(printed.err) < 500
    return printed.out + printed.err


@pytest.mark.parametrize("command", COMMANDS)
def test_wrong_credentials_are_one_line_that_says_so(store, shards, tmp_path, capsys, command):
    before = store.keys()
    if not store.wrong:  # moto takes any
        store.refuse("GET|HEAD|PUT|POST|DELETE", "")
    with patch.dict("os.environ", store.wrong):
        line = refusal(command, shards, tmp_path, capsys)
    assert shards in line
    assert "the store refuses this, 40" in line
    assert "the credentials in the environment are wrong, or do not allow it" in line
    assert not [secret for secret in (store.secret, *store.wrong.values()) if secret in line]
    store.server.faults.clear()
    assert store.keys() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_bucket_that_is_not_there_is_said(store, tmp_path, capsys, command):
    where = f"{store.kind}://no-such-bucket/out"
    line = refusal(command, where, tmp_path, capsys)
    assert where in line
    assert "there is no such bucket" in line


@pytest.mark.parametrize("name", [".lock", "run.json"])
def test_a_place_that_may_be_read_but_not_written_is_said(store, tmp_path, capsys, name):
    store.refuse("PUT", store.sent(name))
    line = refusal("shards into", f"{store.url}/study/out", tmp_path, capsys)
    assert "403 Forbidden: the credentials in the environment are wrong, or do not allow it" in line


def test_a_table_of_the_catalog_that_may_not_be_read_ends_training_in_one_line(store, shards, tmp_path, capsys):
    name, *_ = [key.rpartition("/")[2] for key in store.keys(f"{PREFIX}catalog/slides/")]
    store.refuse("GET", store.sent(name))
    assert "403 Forbidden" in refusal("pretrain", shards, tmp_path, capsys)


def test_a_private_run_names_no_slide_that_it_may_not_read(store, worker, tmp_path, capsys):
    for name in ("Doe Jane ü.tiff", "Doe Jane ü/S19-0044.mrxs"):
        store.put(name, b"a slide")
        store.refuse("GET", store.sent(name))
    (tmp_path / "key").write_text("a secret that is long enough")
    words = ["--slides", store.url, "--out", tmp_path / "out", "--private", "--id-key", tmp_path / "key"]
    assert make_shards([*map(str, words), "--scheduler", worker]) == 3
    rows = pq.read_table(tmp_path / "out/catalog/slides").to_pylist()
    assert [row["error_type"] for row in rows] == ["StoreFailed"] * 2
    assert all("403 Forbidden" in row["error"] for row in rows)
    everything = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert not [word for word in ("Doe", "Jane", "S19-0044", "%20", store.secret) if word.encode() in everything]


@pytest.mark.parametrize(
    ("kind", "service", "names"),
    [
        ("s3", "169.254.169.254/latest/api/token", "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ("az", "169.254.169.254/metadata/token", "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"),
        ("gs", "metadata.google.internal/computeMetadata/v1/token", "GOOGLE_APPLICATION_CREDENTIALS"),
    ],
)
def test_an_environment_without_credentials_is_told_from_wrong_ones(kind, service, names):
    answer = "Server returned non-2xx status code: 403 Forbidden: no role"  # as obstore 0.12 words it
    line = reason_of(f"{kind}://slides/out", GenericError(f"Error performing GET http://{service} in 2 ms - {answer}"))
    assert line == f"no credentials are in the environment, and this machine's own service gives none: set {names}"


def test_an_account_that_is_not_named_is_said(monkeypatch):
    for name in [name for name in os.environ if name.startswith("AZURE_")]:
        monkeypatch.delenv(name)
    with pytest.raises(StoreFailed, match=r"\(no account is named: set AZURE_STORAGE_ACCOUNT_NAME\)"):
        open_storage("az://slides/out")


def test_a_reason_names_the_server_and_no_object():
    error = GenericError("Error performing PUT https://host.org/slides/Doe%20Jane.svs?sig=abc in 2 ms - timed out")
    assert str(failed("s3://slides/out", error)) == (
        "s3://slides/out cannot be used (Error performing PUT https://host.org in 2 ms - timed out); "
        "finished slides are kept: fix this and repeat the command"
    )


class Heedless(Door):
    """A store that does not know one kind of condition, and writes whatever it says."""

    header = ""

    def answer(self, method, path, headers, body):
        kept = {name: value for name, value in headers.items() if name.lower() != self.header}
        return self.ask(method, path, kept, body)


@pytest.mark.parametrize("header", ["if-match", "if-none-match"])
def test_a_store_that_heeds_no_conditions_is_refused(object_server, monkeypatch, tmp_path, capsys, header):
    object_server.clear()
    door = Heedless(int(object_server.url.rpartition(":")[2]))
    door.header = header
    monkeypatch.setenv("AWS_ENDPOINT_URL", door.url)
    assert "does not heed conditions of writes" in refusal("shards into", "s3://slides/study/out", tmp_path, capsys)
    door.stop()


@pytest.mark.parametrize("how", ["501", "disabled"])
def test_a_store_that_takes_no_conditions_is_refused(object_server, monkeypatch, tmp_path, capsys, how):
    object_server.clear()
    monkeypatch.setattr("wsi_prep.storage.object_client._RETRIES", 0)
    if how == "disabled":
        monkeypatch.setenv("AWS_CONDITIONAL_PUT", "disabled")
    else:
        object_server.fail("PUT", "/.lock", 501)
    assert "does not heed conditions of writes" in refusal("shards into", "s3://slides/study/out", tmp_path, capsys)
