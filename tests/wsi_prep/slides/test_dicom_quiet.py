"""What pydicom warns of stays inside: its warnings quote what a file says of the patient."""

import re
import subprocess
import sys
import warnings

import numpy as np
import pydicom
import pytest

from tests.support.dicom_wsi import write_dicom_slide
from tests.support.paths import ROOT
from wsi_prep.slides.dicom import dicom_header

NAME = "DOE JANE"


def write_odd_series(folder):
    """A DICOM slide whose UIDs are none, too long, and whose texts are in a character set that nobody knows."""
    paths = write_dicom_slide(folder, [np.full((512, 512, 3), 230, np.uint8)], 0.25)
    for path in paths:
        data = pydicom.dcmread(path)
        data.SpecificCharacterSet = "ISO_IR 192"
        data.ImageType = [*data.ImageType[:3], f"{NAME} OF WARD 7, WHO IS LONGER"]
        uid = str(data.SeriesInstanceUID).encode()
        data.save_as(path)
        raw = path.read_bytes().replace(uid, NAME.encode().ljust(len(uid), b"x"))
        path.write_bytes(raw.replace(b"ISO_IR 192", b"ISO_IR DOE"))
    return paths


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return write_odd_series(tmp_path_factory.mktemp("odd") / "case")


def test_pydicom_warns_of_this_series(odd):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _ = pydicom.dcmread(odd[0]).SeriesInstanceUID
    assert any(NAME in str(warning.message) for warning in caught)


def test_reading_a_header_warns_of_nothing_even_where_others_restore_the_filters(odd, caplog):
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            assert dicom_header(str(odd[0])).series.startswith(NAME)
        assert caught == []
    assert caplog.records == []


@pytest.mark.cluster
def test_a_run_prints_no_warning(odd, tmp_path):
    call = ["--slides", str(odd[0].parent), "--out", str(tmp_path / "out"), "--workers", "1", "--mags", "5x"]
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.shards", *call], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    assert not re.search("pydicom|Warning|DOE|JANE", done.stdout)
    assert done.stdout.startswith("1 slide: 1 ")
