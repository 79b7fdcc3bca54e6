"""The documents' examples of reading tiles run where nothing of ours is installed, and give the pixels."""

import io
import json
import re
import subprocess
import sys
import zlib

import numpy as np
import pyarrow.dataset as ds
import pytest
from PIL import Image

from tests.support.paths import ROOT
from tests.support.shard_folders import add_slide

FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)
README = FENCE.findall((ROOT / "README.md").read_text())
FORMAT = FENCE.findall((ROOT / "docs/format.md").read_text())
EXAMPLE = next(block for block in README if "zarr.open(" in block)
BY_BYTES = "import pyarrow.dataset as ds\n" + next(block for block in FORMAT if ".seek(" in block)
CODEC = next(block for block in FORMAT if "register_codec(" in block)

WITHOUT_US = """
import importlib.metadata, sys
sys.modules["wsi_prep"] = None
installed = importlib.metadata.distributions
importlib.metadata.distributions = lambda **of: (d for d in installed(**of) if d.name != "mixed-magnification")
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("reader")
    add_slide(folder / "shards", 3, {"40x": 2, "20x": 3})
    return folder


def run(folder, code):
    command = [sys.executable, "-c", WITHOUT_US + code]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def first(folder, magnification):
    """The first tile's row, its JPEG and its pixels as Pillow reads them."""
    rows = ds.dataset(folder / "shards/catalog/tiles").to_table(filter=ds.field("magnification") == magnification)
    row = rows.to_pylist()[0]
    jpeg = (folder / "shards" / row["shard"]).read_bytes()[row["offset"] :][: row["nbytes"]]
    return row, jpeg, np.asarray(Image.open(io.BytesIO(jpeg)))


def test_a_tile_is_read_by_its_place_in_a_file(folder):
    said = run(folder, BY_BYTES + "import json, zlib\nprint(json.dumps([tile['index'], zlib.crc32(jpeg), len(jpeg)]))")
    row, jpeg, _ = first(folder, "40x")
    assert said.stderr == ""
    assert json.loads(said.stdout) == [row["index"], row["crc32"], len(jpeg)]
    assert zlib.crc32(jpeg) == row["crc32"]


def test_zarr_reads_the_stores_by_the_codec_in_the_document(folder):
    *lines, last = EXAMPLE.strip().splitlines()
    said = run(folder, CODEC + "\n".join([*lines, "pixels = " + last, "import numpy", "numpy.save('pixels', pixels)"]))
    assert said.stderr == ""
    _, _, expected = first(folder, "20x")
    found = np.load(folder / "pixels.npy")
    assert (found.shape, found.dtype) == ((392, 392, 3), np.uint8)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(
    sys.version_info >= (3, 12), reason="imagecodecs-zarr is there, and says it otherwise where it is not"
)
def test_without_a_codec_zarr_says_what_the_document_says(folder):
    said = run(folder, EXAMPLE)
    [quoted] = re.findall(r"`(Unknown codec: [^`]+)`", (ROOT / "docs/format.md").read_text())
    assert said.returncode
    assert quoted in said.stderr.splitlines()[-1]
