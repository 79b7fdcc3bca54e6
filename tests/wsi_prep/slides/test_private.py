import string

import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.dicom_wsi import write_dicom_slide
from tests.support.mrxs_wsi import write_mrxs
from wsi_prep.errors import UnreadableSlide
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.private import bare_text, key_check, keyed_patient, keyed_slide_id, reason
from wsi_prep.slides.readers.select import open_slide
from wsi_prep.tissue.masks import find_masks

KEY, OTHER = b"a secret that is long enough", b"another secret that is long enough"
PATH = "/data/DOE JANE/S19-0044721 left.svs"


@pytest.mark.parametrize(
    ("text", "left"),
    [
        (f"Can't open {PATH}: No such file", "Can't open ...: No such file"),
        (f"[Errno 13] Permission denied: '{PATH}'", "[Errno 13] Permission denied: ..."),
        ("no tile 3 in S19-0044721 LEFT.svs here", "no tile 3 in ... here"),
        ("no tile 3 in s19-0044721 left here", "no tile 3 in ... here"),
        ("cannot stat /data/DOE JANE/other 12.svs: gone", "cannot stat ..."),
        ("line “SLIDE_NAME DOE JANE” isn't a group", "line ... isn't a group"),
        ("could not convert string to float: 'DOE\\'s JANE'", "could not convert string to float: ..."),
        ("not a TIFF file: header=b'DOE '", "not a TIFF file: header=..."),
        ('a "DOE JANE" and a `DOE JANE\' and ‘DOE', "a ... and a ... and ..."),
        ("Can't load file: Invalid key name: [DOE JANE", "Can't load file: Invalid key name: ..."),
        ("Reading /data/DOE JANE/other 12.svs: Permission denied", "Reading ...: Permission denied"),
        (
            "Couldn't open /home/roe/x/y: z.dat: No such file or directory",
            "Couldn't open ...: No such file or directory",
        ),
        ("cannot get s3://bucket/ROE JOHN/x.svs now", "cannot get ..."),
        ("Unrecognized image format: DOE JANE", "Unrecognized image format: ..."),
        (
            "Unsupported photometric interpretation DOE for 1.2.840.10008.1",
            "Unsupported photometric interpretation ...",
        ),
        (
            "Unsupported photometric interpretation MONOCHROME2 for 1.2.840.10008.1",
            "Unsupported photometric interpretation MONOCHROME2 for ...",
        ),
        ("opening it: SOP instance UID 1.2.826.0.1 matches 1.2.3.", "opening it: SOP instance UID ... matches ...."),
        ("an offset of 0.25 at 1/2, JPEG/RGB", "an offset of 0.25 at 1/2, JPEG/RGB"),
        ("slides of DOE JANE, here", "slides of ..., here"),
        ("two\nlines", "two lines"),
        ("a bell \x07 and half a letter \udcff", "a bell ? and half a letter ?"),
        ("", ""),
    ],
)
def test_what_a_library_quotes_or_names_is_left_out_of_its_error(text, left):
    assert bare_text(ValueError(text), PATH) == left
    assert bare_text(ValueError(text), f"memory://{PATH}") == left
    assert reason(ValueError(text), PATH) == (f"ValueError: {left}" if left else "ValueError")


PIXELS = np.full((512, 512, 3), 200, np.uint8)


def refusal(path):
    with pytest.raises(UnreadableSlide) as raised:
        open_slide(str(path))
    return str(raised.value)


def change(path, **tags):
    data = pydicom.dcmread(path)
    for name, value in tags.items():
        setattr(data, name, value)
    data.save_as(path)


def test_the_reason_of_a_dicom_series_survives_the_name_of_its_file(tmp_path):
    first, second, _ = write_dicom_slide(tmp_path / "S19-004 DOE", [PIXELS, PIXELS], 0.25)
    second.rename(second.with_name("ROE: JOHN.dcm"))
    said = "Reading ...: Slide contains unexpected image (... vs. ...)"
    assert refusal(first) == f"OpenSlide cannot open it ({said})"
    second.with_name("ROE: JOHN.dcm").unlink()
    for tags, why in (
        ({"BitsAllocated": 16}, "Attribute BitsAllocated value 16 != 8"),
        (
            {"BitsAllocated": 8, "PhotometricInterpretation": "MONOCHROME2"},
            "Unsupported photometric interpretation MONOCHROME2 for ...",
        ),
    ):
        change(first, **tags)
        assert refusal(first) == f"OpenSlide cannot open it (Reading ...: {why})"


def test_the_reason_of_a_mirax_slide_survives_the_names_of_its_files(tmp_path):
    slide = write_mrxs(tmp_path / "S19 DOE.mrxs", PIXELS, 0.25, 0, 0, 2, 2)
    ini, data = slide.with_suffix("") / "Slidedat.ini", slide.with_suffix("") / "Data0000.dat"
    data.write_bytes(data.read_bytes()[:30])
    assert "Short read of file ...: " in refusal(slide)
    ini.write_text(ini.read_text().replace("FILE_0 = Data0000.dat", "FILE_0 = ROE: JOHN.dat"))
    assert refusal(slide).endswith("Couldn't open ...: No such file or directory)")


NAMES = st.text(string.ascii_letters + string.digits + " :.-_,()'éß", min_size=3, max_size=20).filter(
    lambda name: name == name.strip() and "  " not in name and not name.startswith(".") and not name.isalpha()
)


@given(folder=NAMES, own=NAMES, other=NAMES, there=st.booleans(), inside=st.booleans())
def test_no_name_survives_and_the_reason_does_where_the_name_is_known(
    tmp_path_factory, folder, own, other, there, inside
):
    base = tmp_path_factory.mktemp("p") / folder
    base.mkdir()
    path = base / own
    path.write_bytes(b"")
    named = (path.with_name(f"{own}x.d") if inside else base) / other
    if inside:
        named.parent.mkdir()
    if there and named != path:
        named.write_bytes(b"")
    if named.is_file():
        text = bare_text(OSError(f"Q {named}: %% && (1.2.840.1 vs. 'DOE')"), str(path))
        assert text == "Q ...: %% && (... vs. ...)"
    else:
        text = bare_text(OSError(f"Q {named}: No such file or directory"), str(path))
        assert text in ("Q ...: No such file or directory", *(["Q ..."] if "'" in str(named) else []))
    beside = "" if inside or not named.exists() else other
    text = bare_text(OSError(f"Q <{own}> <{beside}> <{folder}> %"), str(path))
    for name in filter(None, (own, beside, folder)):
        assert name not in text


def test_a_long_path_is_taken_out_before_the_text_is_cut():
    path = "/" + "folder/" * 30 + "DOE JANE.svs"
    assert bare_text(OSError(f"Can't open {path}"), path) == "Can't open ..."
    assert len(bare_text(OSError("x" * 1000), path)) == 160


def test_a_short_name_does_not_eat_the_text():
    assert bare_text(ValueError("a tile of 1 px at 1"), "/data/1.svs") == "a tile of 1 px at 1"


def test_one_key_gives_hashes_that_never_meet():
    hashes = [keyed_slide_id(KEY, "x"), keyed_patient(KEY, "x"), key_check(KEY), keyed_slide_id(OTHER, "x")]
    assert len({text[:16] for text in hashes}) == 4
    assert keyed_slide_id(KEY, "x") == keyed_slide_id(KEY, "x")


def test_keyed_ids_hold_nothing_of_the_name_and_can_outlive_a_move(tmp_path):
    for folder in ("here", "there"):
        (tmp_path / folder / "x").mkdir(parents=True)
        (tmp_path / folder / "x/DOE JANE.svs").write_bytes(b"")
    root = [str(tmp_path / folder) for folder in ("here", "there")]
    ids = [find_slides(r, id_root=r, id_key=KEY)[0].slide_id for r in root]
    assert ids[0] == ids[1]
    whole = [find_slides(r, id_key=KEY)[0].slide_id for r in root]
    assert len({*ids, *whole}) == 3
    assert all(len(slide_id) == 24 and int(slide_id, 16) for slide_id in ids + whole)


def test_a_slide_in_a_clusters_log_is_its_id_alone(tmp_path):
    (tmp_path / "DOE JANE.svs").write_bytes(b"")
    (source,) = find_slides(str(tmp_path), id_key=KEY)
    assert repr(source) == f"SlideSource(slide_id='{source.slide_id}')"


def test_a_mask_in_a_clusters_log_is_its_slides_id_alone(tmp_path):
    """A task is logged with all its parts where it fails."""
    for folder, name in (("in", "DOE JANE.svs"), ("masks of ward 7", "DOE JANE.geojson")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(b"")
    sources = find_slides(str(tmp_path / "in"), id_key=KEY)
    found, _ = find_masks(str(tmp_path / "masks of ward 7"), None, sources, private=True)
    (mask,) = found.values()
    assert repr(mask) == f"MaskFile(digest={mask.digest!r}, called={sources[0].slide_id!r})"
