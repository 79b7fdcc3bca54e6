import pytest

from wsi_prep.private import bare_text, key_check, keyed_patient, keyed_slide_id, reason
from wsi_prep.sources import find_slides

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
        ("two\nlines", "two lines"),
        ("a bell \x07 and half a letter \udcff", "a bell ? and half a letter ?"),
        ("", ""),
    ],
)
def test_what_a_library_quotes_or_names_is_left_out_of_its_error(text, left):
    assert bare_text(ValueError(text), PATH) == left
    assert bare_text(ValueError(text), f"memory://{PATH}") == left
    assert reason(ValueError(text), PATH) == (f"ValueError: {left}" if left else "ValueError")


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
