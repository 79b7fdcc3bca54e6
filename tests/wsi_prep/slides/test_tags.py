import numpy as np
import pytest
import tifffile
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.slides.readers.select import open_slide
from wsi_prep.slides.readers.tags import parse_objective, vendor_and_scanner

MAKER, MODEL = "dicom.Manufacturer", "dicom.ManufacturerModelName"


@pytest.mark.parametrize(
    ("file_format", "tags", "facts"),
    [
        ("aperio", {"aperio.ScannerType": "GT450", "aperio.ScanScope ID": "SS7712"}, ("aperio", "GT450")),
        ("aperio", {"aperio.ScanScope ID": "SS7712", "aperio.User": "adams"}, ("aperio", "")),
        (
            "dicom",
            {MAKER: "Leica Biosystems", MODEL: "Aperio GT450"},
            ("aperio", "GT450"),
        ),
        ("leica", {"leica.device-model": "Leica SCN400", "leica.device-version": "1.5.1.10864"}, ("leica", "SCN400")),
        ("dicom", {MAKER: "3DHISTECH", MODEL: "P1000"}, ("mirax", "P1000")),
        ("hamamatsu", {"hamamatsu.Product": "C13220-01", "hamamatsu.NDP.S/N": "950291"}, ("hamamatsu", "C13220-01")),
        ("philips", {"philips.DICOM_MANUFACTURERS_MODEL_NAME": '"UFS Scanner"'}, ("philips", "UFS Scanner")),
        ("ventana", {"ventana.ScannerModel": "VENTANA DP 200"}, ("ventana", "DP 200")),
        ("generic-tiff", {"tiff.Make": "Hamamatsu", "tiff.Model": "C9600-12"}, ("hamamatsu", "C9600-12")),
        ("generic-tiff", {"tiff.Make": "Dr Adams, 555-0188"}, ("generic-tiff", "")),
        (
            "ome",
            {"ome.Microscope.Manufacturer": "ZEISS", "ome.Microscope.Model": "Axio 7"},
            ("zeiss", "Axio 7"),
        ),
        ("dicom", {}, ("dicom", "")),
        ("mirax", {"mirax.GENERAL.SLIDE_NAME": "DOE"}, ("mirax", "")),
    ],
)
def test_one_scanner_has_one_name_in_every_format(file_format, tags, facts):
    assert vendor_and_scanner(file_format, tags) == facts


@pytest.mark.parametrize(
    "model",
    [
        *(
            "GT450",
            "GT 450 DX",
            "AT2",
            "CS2",
            "ScanScope XT",
            "ScanScope AT Turbo",
            "LV1",
            "SCN400",
            "SCN400F",
            "VERSA 8",
        ),
        *("C9600-12", "C10730-13", "C13220-01", "C13140-21", "NanoZoomer S360", "NanoZoomer 2.0-HT", "NanoZoomer"),
        *("Pannoramic MIDI", "PANNORAMIC 250 Flash III", "Pannoramic SCAN II", "Pannoramic DESK II DX", "P1000"),
        *("UFS Scanner", "SG300", "IntelliSite Ultra Fast Scanner", "iScan Coreo", "iScan HT", "DP 200", "DP 600"),
        *("Axio Scan.Z1", "Axioscan 7", "VS120", "SLIDEVIEW VS200", "TissueScope LE", "EasyScan Pro 6", "KF-PRO-005"),
        *("Ocus 40", "Vectra Polaris"),
    ],
)
def test_a_known_model_is_kept_as_it_is_written(model):
    assert vendor_and_scanner("dicom", {MODEL: model})[1] == model


MACHINE = st.sampled_from(("GT450", "AT2", "C9600-12", "Pannoramic 250", "UFS Scanner", "VS200"))
MORE = st.one_of(
    st.from_regex(r"(SN|S/N |SS|#| )?[0-9]{4,9}", fullmatch=True),
    st.dates().map(str),
    st.sampled_from(("Dr Adams", "DOE JANE", "lab-pc-3", "HOSTNAME", "St Elsewhere", "room 7")),
)


@given(model=MACHINE, more=MORE, joint=st.sampled_from((" ", "-", "_", " (", "/", "")), first=st.booleans())
def test_a_model_with_anything_beside_it_is_left_out(model, more, joint, first):
    text = f"{more}{joint}{model}" if first else f"{model}{joint}{more}"
    vendor, scanner = vendor_and_scanner("dicom", {MAKER: f"Hamamatsu {more}", MODEL: text})
    assert scanner == ""
    assert vendor in ("hamamatsu", "aperio", "mirax")


@pytest.mark.parametrize(
    "model",
    [
        *("C19-12345", "C12345-19", "C2019-12", "S19-0044721", "S360-1961", "SS7712", "Adams", "AT-PC 3", "scanner 7"),
        "SN 660177",
        "on 2019-08-23",
        "08/23/19 GT450",
        "DOE^JANE",
        "GT450; Dr Adams",
        "x" * 41,
        "12:30:15 A",
        "4711",
        "",
    ],
)
def test_a_model_that_could_be_a_number_a_day_or_a_person_is_left_out(model):
    assert vendor_and_scanner("dicom", {MODEL: model})[1] == ""


@pytest.mark.parametrize(("text", "power"), [("40", 40.0), ("19610317", None), ("0", None), ("nan", None), ("x", None)])
def test_an_objective_is_a_power_or_nothing(text, power):
    assert parse_objective(text) == power


def test_both_readers_say_the_same(tmp_path):
    pixels = np.full((512, 512, 3), 200, np.uint8)
    common = {"tile": (256, 256), "photometric": "rgb", "metadata": None}
    about = "Aperio Image Library v11.2.1 \n512x512 (256x256)|AppMag = 20|MPP = 0.5|ScannerType = GT450|User = adams"
    tifffile.imwrite(tmp_path / "a.svs", pixels, description=about, **common)
    maker = [(271, 2, 0, "Hamamatsu", True), (272, 2, 0, "C9600-12", True)]
    tifffile.imwrite(tmp_path / "b.tiff", pixels, extratags=maker, **common)
    for name, facts in (("a.svs", ("aperio", "GT450", 20.0)), ("b.tiff", ("hamamatsu", "C9600-12", None))):
        for reader in ("tiff", "openslide"):
            info = open_slide(str(tmp_path / name), reader).info
            assert (info.vendor, info.scanner, info.objective) == facts
