"""Slides by URL with a signature: no part of it is written anywhere, and two signatures of one object are one slide."""

import importlib.util
import re
import string
from urllib.parse import quote

import fsspec
import numpy as np
import pytest
import tifffile
from fsspec import AbstractFileSystem
from hypothesis import given
from hypothesis import strategies as st

from pipelines.shards import main
from tests.support.prepared import prepare
from wsi_prep.errors import BadManifest, NoSlides
from wsi_prep.slides.find.found import fingerprint
from wsi_prep.slides.find.sources import find_slides
from wsi_prep.slides.private import bare_text
from wsi_prep.slides.urls import bare_url, name_of, without_secrets

SECRET = st.text(string.ascii_letters + string.digits + "+/=-_.~", min_size=8, max_size=40).map(lambda s: f"s3Cr3T{s}")
PARAMETERS = (
    "X-Amz-Signature",
    "X-Amz-Credential",
    "X-Goog-Signature",
    "sig",
    "Expires",
    "token",
    "sv",
    "AWSAccessKeyId",
)
SCHEMES = ("https", "http", "HTTPS", "ftp", "sftp", "presigned")


STORED: dict[str, bytes] = {}


class Presigned(AbstractFileSystem):
    """Files that are opened only by a URL with a signature, whatever it is."""

    protocol = "presigned"

    def info(self, path, **kwargs):
        match = re.fullmatch(r"(?:presigned://)?(?:[^/@]*@)?([^?]*)[?].+", path)
        if match is None:
            raise PermissionError(13, "Forbidden", path)
        if match[1] not in STORED:
            raise FileNotFoundError(path)
        return {"name": match[1], "size": len(STORED[match[1]]), "type": "file", "ETag": "1"}

    def ls(self, path, detail=True, **kwargs):
        raise NotImplementedError

    def cat_file(self, path, start=None, end=None, **kwargs):
        return STORED[self.info(path)["name"]][start:end]


@pytest.fixture
def stored(tmp_path):
    """A slide behind signatures, as host/site/S19-1.tiff."""
    fsspec.register_implementation("presigned", Presigned, clobber=True)
    pixels = np.full((420, 800, 3), 244, np.uint8)
    pixels[10:400, 10:390] = np.random.default_rng(0).integers((150, 60, 110), (220, 130, 180), (390, 380, 3))
    scale = {"resolution": (5_000, 5_000), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(tmp_path / "a.tiff", pixels, tile=(256, 256), photometric="rgb", metadata=None, **scale)
    STORED.update({"host/site/S19-1.tiff": (tmp_path / "a.tiff").read_bytes(), "host/site/bad.svs": b"no slide"})
    return "presigned://user:pa55word@host/site/{}?X-Amz-Credential=AKIA/2026/eu&X-Amz-Signature={}#frag"


@given(
    scheme=st.sampled_from(SCHEMES),
    user=st.none() | st.tuples(SECRET, SECRET),
    query=st.lists(st.tuples(st.sampled_from(PARAMETERS), SECRET), min_size=1, max_size=4),
    fragment=st.none() | SECRET,
    encoded=st.booleans(),
)
def test_nothing_of_a_signature_stays(scheme, user, query, fragment, encoded):
    form = (lambda text: quote(text, safe="")) if encoded else str
    who = f"{quote(user[0], safe='')}:{quote(user[1], safe='')}@" if user else ""
    url = f"{scheme}://{who}host:8080/site a/S19-1.svs?" + "&".join(f"{name}={form(value)}" for name, value in query)
    url += f"#token={fragment}" if fragment else ""
    bare = f"{scheme}://host:8080/site a/S19-1.svs"
    assert bare_url(url) == bare
    assert name_of(url) == "S19-1.svs"
    quoted = url.replace(" ", "%20")
    said = [
        bare_text(OSError(text), url) for text in (f"403 for {url}", f"no {query[0][1]} here", url.partition("?")[2])
    ]
    said += [without_secrets(f"SLIDES {url} does not exist; name another", url)]
    said += [without_secrets(f"SLIDES {quoted} (and {quoted}), does not exist.")]
    assert "s3Cr3T" not in " ".join(said)
    assert said[-1].endswith("does not exist.")


@pytest.mark.parametrize(
    "path",
    [
        *("/data/a?b=c.svs", "/data/a#1.svs", "s3://bucket/a?b.svs", "s3://bucket/a#1.svs", "memory://a/b#1.svs"),
        *("abfs://container@account.dfs.core.windows.net/a.svs", "file:///data/a?b=c.svs", "gs://b/what?.svs"),
    ],
)
def test_what_only_looks_like_a_signature_is_part_of_the_name(path):
    assert bare_url(path) == path
    assert without_secrets(f"at {path}") == f"at {path}"


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://[::1]:8080/a.svs?sig=s3Cr3T", "https://[::1]:8080/a.svs"),
        ("https://me:p@ss?w#rd@host/a.svs", "https://host/a.svs"),
        ("simplecache::https://me:pw@host/a.svs?sig=s3Cr3T#x", "simplecache::https://host/a.svs"),
        ("zip://a.svs::https://host/b.zip?sig=s3Cr3T", "zip://a.svs::https://host/b.zip"),
    ],
)
def test_odd_urls_are_cut_too(url, bare):
    assert bare_url(url) == bare


def test_sas_in_an_object_stores_url_is_cut():
    assert bare_url("az://slides/a.svs?sv=2022&sig=abc%3D") == "az://slides/a.svs"


def test_two_signatures_of_an_object_are_one_slide(stored):
    one, two = (find_slides(stored.format("S19-1.tiff", sign))[0] for sign in ("aaaa1111", "bbbb2222"))
    assert (one.slide_id, one.name, fingerprint(one)) == (two.slide_id, two.name, fingerprint(two))
    assert one.name == "S19-1.tiff"
    assert one.path != two.path
    assert "aaaa1111" not in one.slide_id + one.name + one.former_id


def test_a_slide_is_made_by_its_whole_url_and_no_file_holds_what_it_was_signed_with(stored, tmp_path):
    for name, status in (("S19-1.tiff", "ok"), ("bad.svs", "failed")):
        made = prepare(stored.format(name, "s3Cr3Ts3Cr3T"), tmp_path / name, mags="5x")
        assert (made.row["status"], made.row["file"]) == (status, name)
        paths = [*(tmp_path / name).rglob("*")]
        everything = b"\n".join(path.read_bytes() for path in paths if path.is_file())
        everything += " ".join([*map(str, paths), str(made.row), str(made.tiles)]).encode()
        for secret in (b"s3Cr3T", b"pa55word", b"AKIA", b"X-Amz", b"frag"):
            assert secret not in everything


def test_a_list_that_names_an_object_by_two_signatures_names_it_twice(stored, tmp_path):
    lines = [stored.format("S19-1.tiff", sign) for sign in ("s3Cr3T1", "s3Cr3T2")]
    (tmp_path / "list.csv").write_text("slide\n" + "\n".join(lines) + "\n")
    with pytest.raises(BadManifest, match=r"names presigned://host/site/S19-1.tiff twice, in lines 2 and 3") as refusal:
        find_slides(str(tmp_path / "list.csv"))
    assert "s3Cr3T" not in str(refusal.value)


def test_slides_by_https_are_refused_in_a_line_where_packages_are_missing(tmp_path, capsys):
    if importlib.util.find_spec("aiohttp") is not None:
        pytest.skip("they are there")
    url = "https://me:pa55word@example.org/a.svs?X-Amz-Signature=s3Cr3T"
    assert main(["--slides", url, "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "SLIDES https://example.org/a.svs cannot be reached: https:// needs packages that are not installed" in said
    assert not re.search("s3Cr3T|pa55word", said)
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()
    with pytest.raises(NoSlides):
        find_slides(url)
