import csv
import io
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from wsi_prep.errors import BadManifest
from wsi_prep.slides.find.found import SlideSource
from wsi_prep.slides.find.manifest import ManifestRow, read_manifest
from wsi_prep.slides.find.sources import find_slides


@pytest.fixture
def slides(tmp_path):
    for name in ("x/1.svs", "y/1.svs", "y/2.svs", "Größe 3 µm.svs"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return {s.path.removeprefix(f"{tmp_path}/"): s for s in find_slides(str(tmp_path))}


@pytest.fixture
def manifest(tmp_path):
    def read(text):
        (tmp_path / "manifest.csv").write_text(text, encoding="utf-8")
        return read_manifest(str(tmp_path / "manifest.csv"))

    return read


def test_rows_reach_their_slides(slides, manifest):
    matched = manifest(
        "slide,mpp,stain,institution,tissue,patient\n"
        "2.svs,0.25,h&e,MSK,lung,p-1\n"
        "x/1.svs,,IHC,,,\n"
        "Größe 3 µm.svs,0.5,,,,\n"
        "gone.svs,1,,,,\n"
    ).match(list(slides.values()))
    assert matched.rows == {
        slides["y/2.svs"].slide_id: ManifestRow(0.25, "HE", "MSK", "lung", "p-1"),
        slides["x/1.svs"].slide_id: ManifestRow(stain="IHC"),
        slides["Größe 3 µm.svs"].slide_id: ManifestRow(mpp=0.5),
    }
    assert matched.unknown == ("gone.svs",)


@pytest.mark.parametrize(
    "text", ["\ufeffSlide;MPP\n2.svs;0.25\n", "slide\tmpp\n2.svs\t0.25\n", ' slide , mpp \n"2.svs", 0.25\n']
)
def test_spreadsheets_own_habits_are_understood(slides, manifest, text):
    assert manifest(text).match(list(slides.values())).rows == {slides["y/2.svs"].slide_id: ManifestRow(mpp=0.25)}


@given(
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"]),
    separator=st.sampled_from(",;\t|"),
    named=st.booleans(),
    ends=st.sampled_from(["\n", "\r\n"]),
    mpp=st.integers(5, 4000).map(lambda thousandths: thousandths / 1000),
    comma=st.booleans(),
    blank=st.tuples(st.integers(0, 3), st.integers(0, 3)),
)
def test_what_excel_writes_is_understood(tmp_path_factory, encoding, separator, named, ends, mpp, comma, blank):
    """Byte order mark, UTF-16, separator, a line that names it, line ends, a decimal comma, and empty columns."""
    path = tmp_path_factory.getbasetemp() / "excel.csv"
    number = str(mpp).replace(".", ",") if comma and separator in ";\t" else str(mpp)
    head, row = f"slide{separator}mpp{separator * blank[0]}", f"Größe 3 µm.svs{separator}{number}{separator * blank[1]}"
    lines = [f"sep={separator}"] * named + [head, row, separator * blank[0], ""]
    mark = {"utf-16-le": "\ufeff", "utf-16-be": "\ufeff"}.get(encoding, "")
    path.write_bytes((mark + ends.join(lines)).encode(encoding))
    (entry,) = read_manifest(str(path)).entries
    assert (entry.cell, entry.row.mpp, entry.line) == ("Größe 3 µm.svs", mpp, 2 + named)


@pytest.mark.parametrize("data", ["slide;mpp\nGröße.svs;0,25\n".encode("cp1252"), "slide,mpp\n".encode("utf-16-le")])
def test_other_text_is_to_be_saved_as_utf_8(tmp_path, data):
    (tmp_path / "m.csv").write_bytes(data)
    with pytest.raises(BadManifest, match=r"m\.csv is not UTF-8 text.*; in Excel, save it as 'CSV UTF-8'$"):
        read_manifest(str(tmp_path / "m.csv"))


def test_a_decimal_comma_between_commas_is_none(manifest):
    with pytest.raises(BadManifest, match="line 2: mpp '0,25' is not a number"):
        manifest('slide,mpp\n2.svs,"0,25"\n')


def test_all_faults_are_told_at_once(slides, manifest):
    text = "slide,mpp,stian,patient_id\n2.svs,abc,PHE,\nx/1.svs,0.5,,\n2.svs,0.5,,\n3.svs\n,0.5,,\n"
    with pytest.raises(BadManifest) as error:
        manifest(text)
    said = str(error.value)
    assert "manifest.csv has 6 faults: (1) column 'stian' is not known, did you mean 'stain'?" in said
    for part in (
        "(2) column 'patient_id' would be",
        "(3) line 2: mpp 'abc' is not a number",
        "(4) names 2.svs twice, in lines 2 and 4",
        "(5) line 5 has 1 cells where the header has 4",
        "(6) line 6 names no slide",
    ):
        assert part in said
    with pytest.raises(BadManifest, match=r"has 2 faults: \(1\) line 2: mpp 'x' .*; \(2\) line 2: stain 'PHE' is"):
        manifest("slide,mpp,stain\n2.svs,x,PHE\n")
    with pytest.raises(BadManifest, match=r"has 12 faults: \(1\) .*\(10\) line 11: [^(]*; and 2 more$"):
        manifest("slide,mpp\n" + "".join(f"{n}.svs,x\n" for n in range(12)))
    with pytest.raises(BadManifest, match=r"has 2 faults: \(1\) line 2: 1.svs fits .*\(2\) names y/2.svs twice"):
        manifest("slide\n1.svs\n2.svs\ny/2.svs\n").match(list(slides.values()))


def test_a_line_break_in_words_becomes_a_blank_and_no_row_is_lost(slides, manifest):
    text = (
        'slide,tissue,block\r\nx/1.svs,"colon \r\nascendens","A\n\n1"\r\n\r\n2.svs,liver,"B"\r\ny/1.svs,"\nskin\n",\r\n'
    )
    read = manifest(text)
    rows = read.match(list(slides.values())).rows
    assert {path: rows[s.slide_id].tissue for path, s in slides.items() if s.slide_id in rows} == {
        "x/1.svs": "colon ascendens",
        "y/2.svs": "liver",
        "y/1.svs": "skin",
    }
    assert json.loads(rows[slides["x/1.svs"].slide_id].more) == {"block": "A 1"}
    assert [entry.line for entry in read.entries] == [2, 7, 8]
    for private in (False, True):
        said = read.notes(private=private)
        assert said[-1] == "line breaks in cells of 1 row of the manifest became blanks, first in line 2"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('slide,mpp,tissue\na.svs,.5,"colon\nb.svs,.5,liver\n', "line 2: a quotation mark is never closed"),
        ('slide,tissue\na.svs,colon\n"b.svs,liver', "line 3: a quotation mark is never closed"),
        ('slide,tissue\na.svs,colon\nb.svs,"', "line 3: a quotation mark is never closed"),
        ('slide,tissue,block\na.svs,"colon\n2","1\n\n', "line 3: a quotation mark is never closed"),
        ('slide,"tissue\na.svs,colon\n', "line 1: a quotation mark is never closed"),
        ('slide,tissue\na.svs,"colon\nb.svs,"liver"\n', "line 2: a cell takes in .* quotation mark inside, so it may"),
        ('slide;tissue\na.svs;"colon\nb.svs;liver"\n', "line 2: a cell takes in .* semicolon inside, so it may have"),
        ('slide,tissue\n"b\n.svs",liver\n', "line 2: the cell of column slide has a line break"),
        ('slide,mpp\nb.svs,"0.\n25"\n', "line 2: the cell of column mpp has a line break"),
        ('slide,patient\nb.svs,"1\n2"\n', "line 2: the cell of column patient has a line break"),
        ("slide,tissue\nb.svs,co\u2028lon\n", "line 2: the cell of column tissue .* do not print"),
    ],
)
@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_no_row_vanishes_into_a_cell(tmp_path, text, message, ends):
    (tmp_path / "m.csv").write_bytes(text.replace("\n", ends).encode())
    with pytest.raises(BadManifest, match=message) as error:
        read_manifest(str(tmp_path / "m.csv"))
    assert "\n" not in str(error.value)


@given(
    words=st.lists(st.text('ab ,;"\n', max_size=6), min_size=1, max_size=4),
    missing=st.integers(0, 40),
)
def test_a_quotation_mark_that_gets_lost_loses_no_row_in_silence(tmp_path_factory, words, missing):
    """All slides come back, each once and in order, or the manifest is refused."""
    written = io.StringIO()
    csv.writer(written).writerows([["slide", "tissue"], *([f"{n}.svs", word] for n, word in enumerate(words))])
    quotes = [at for at, letter in enumerate(written.getvalue()) if letter == '"']
    text = written.getvalue()
    if quotes:
        cut = quotes[missing % len(quotes)]
        text = text[:cut] + text[cut + 1 :]
    path = tmp_path_factory.getbasetemp() / "lost.csv"
    path.write_bytes(text.encode())
    try:
        read = read_manifest(str(path))
    except BadManifest:
        return
    cells = [entry.cell for entry in read.entries]
    assert [cell for cell in cells if ".svs" in cell] == [f"{n}.svs" for n in range(len(words))]


@pytest.mark.parametrize(
    ("columns", "meant"),
    [
        ("mpp_x,site", "mpp_x"),
        ("mpp (um/px),microns_per_pixel", "mpp (um/px), microns_per_pixel"),
        ("Pixel Size,µm/px", "pixel size, µm/px"),
    ],
)
def test_columns_that_seem_to_give_the_scale_are_said_not_to(manifest, columns, meant):
    read = manifest(f"slide,{columns}\n2.svs,0.25,0.25\n")
    assert all(entry.row.mpp is None for entry in read.entries)
    assert read.notes(private=False)[0].endswith(
        f"; {meant} is not taken for the scale: a column that gives it, in um/px, is called mpp"
    )
    assert "not taken for the scale" in read.notes(private=True)[0]
    assert meant not in read.notes(private=True)[0]


@pytest.mark.parametrize("columns", ["mpp,mpp_x", "site,block", "stamp_pxl,umpire"])
def test_other_columns_are_not(manifest, columns):
    assert not any("scale" in note for note in manifest(f"slide,{columns}\n2.svs,.25,.25\n").notes(private=False))


def test_implausible_numbers_are_kept_for_the_slides_own_error(slides, manifest):
    rows = manifest("slide,mpp\n2.svs,nan\nx/1.svs,0\n").match(list(slides.values())).rows
    assert math.isnan(rows[slides["y/2.svs"].slide_id].mpp)
    assert rows[slides["x/1.svs"].slide_id].mpp == 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,instituton\n", "column 'instituton' is not known, did you mean 'institution'.*slide, mpp, stain"),
        ("mpp\n0.25\n", "no column 'slide'"),
        ("slide,mpp,mpp\n", "a column twice"),
        ("slide,mpp\n2.svs,abc\n", "line 2: mpp 'abc' is not a number"),
        ("slide,mpp\n2.svs,0_25\n", "line 2: mpp '0_25' is not a number; write um/px, as in 0.25"),
        ("slide,stain\n2.svs,PHE\n", "line 2: stain 'PHE' is not known, did you mean HE"),
        ("slide,mpp\n2.svs\n", "line 2 has 1 cells where the header has 2"),
        ("slide,mpp\n,0.25\n", "line 2 names no slide"),
        ("slide,mpp\n2.svs,0.25\n2.svs,0.5\n", "names 2.svs twice, in lines 2 and 3"),
        ("slide,tissue\n2.svs,lu\x1b[31mng\n", "column tissue .* do not print"),
        ("slide,tissue\n2.svs," + "x" * 2000 + "\n", "column tissue is too long"),
        ("", "no column 'slide'"),
    ],
)
def test_what_is_not_understood_is_refused_with_its_line(manifest, text, message):
    with pytest.raises(BadManifest, match=message) as error:
        manifest(text)
    assert "\n" not in str(error.value)


def test_a_name_that_fits_two_slides_is_refused(slides, manifest):
    with pytest.raises(BadManifest, match=r"line 2: 1.svs fits 2 slides .* write part of the folder too"):
        manifest("slide\n1.svs\n").match(list(slides.values()))


def test_one_slide_named_in_two_ways_is_refused(slides, manifest):
    with pytest.raises(BadManifest, match=r"twice, in lines 2 and 3"):
        manifest("slide\n2.svs\ny/2.svs\n").match(list(slides.values()))


def test_a_missing_or_binary_file_is_one_line(tmp_path):
    with pytest.raises(BadManifest, match="cannot be read"):
        read_manifest(str(tmp_path / "none.csv"))
    (tmp_path / "bin.csv").write_bytes(b"slide\xff\xfe\n")
    with pytest.raises(BadManifest, match="not UTF-8"):
        read_manifest(str(tmp_path / "bin.csv"))


def test_columns_of_ones_own_are_kept_as_they_are(slides, manifest):
    read = manifest('Slide,Site,STAIN,stain_word,block\n2.svs,B,IHC,Ki-67 "x",\nx/1.svs,Größe,,,3\ny/1.svs,,,,\n')
    assert read.more == ("site", "stain_word", "block")
    rows = read.match(list(slides.values())).rows
    kept = {
        path: row.more and json.loads(row.more)
        for path, row in ((p, rows.get(s.slide_id)) for p, s in slides.items())
        if row
    }
    assert kept == {
        "y/2.svs": {"site": "B", "stain_word": 'Ki-67 "x"'},
        "x/1.svs": {"site": "Größe", "block": "3"},
        "y/1.svs": None,
    }
    assert rows[slides["y/2.svs"].slide_id].stain == "IHC"
    assert "site, stain_word, block" in read.notes(private=False)[0]
    assert "site" not in read.notes(private=True)[0]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,patient_id\n", "column 'patient_id' would be written as it is; name it 'patient'"),
        ("slide,patient,patient name\n", "column 'patient name' would be written as it is"),
        ("slide,stian\n", "'stian' is not known, did you mean 'stain'"),
        ("slide,,mpp\n", "a column has no name"),
        ("slide,mpp,\n2.svs,.25,what\n", "line 2 has 3 cells where the header has 2"),
        ("slide," + ",".join(f"c{n}" for n in range(33)) + "\n", "has 33 columns of your own; 32 are kept"),
        ("slide,site\n2.svs," + "x" * 201 + "\n", "line 2: the cell of column site has more than 200 characters"),
    ],
)
def test_columns_that_cannot_be_kept_are_refused_in_one_line(manifest, text, message):
    with pytest.raises(BadManifest, match=message) as error:
        manifest(text)
    assert "\n" not in str(error.value)


def test_as_much_as_is_allowed_is_kept(slides, manifest):
    names = [f"c{n}" for n in range(32)]
    read = manifest(f"slide,{','.join(names)}\n2.svs,{','.join(['x' * 200] * 32)}\n")
    (row,) = read.match(list(slides.values())).rows.values()
    assert json.loads(row.more) == dict.fromkeys(names, "x" * 200)


@given(st.sets(st.integers(0, 12)), st.sets(st.integers(0, 12)))
def test_slides_without_a_row_are_counted_and_some_are_named(tmp_path_factory, there, named):
    folder = tmp_path_factory.mktemp("m")
    (folder / "m.csv").write_text("".join(f"{line}\n" for line in ["slide", *(f"{n}.svs" for n in sorted(named))]))
    sources = [SlideSource(f"{n}-id", f"/s/{n}.svs", f"{n}.svs", (f"/s/{n}.svs",), "") for n in sorted(there)]
    matched, bare = read_manifest(str(folder / "m.csv")).match(sources), sorted(there - named)
    for private, ending in ((False, "{}.svs"), (True, "{}-id")):
        said = [note for note in matched.notes(private=private) if "no row in the manifest" in note]
        names = [ending.format(n) for n in bare]
        shown = ", ".join((sorted(names) if private else names)[:5]) + (f" and {len(bare) - 5} more" * (len(bare) > 5))
        have = "1 slide has" if len(bare) == 1 else f"{len(bare)} slides have"
        assert said == ([f"{have} no row in the manifest: {shown}"] if bare else [])
