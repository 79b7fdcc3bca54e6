"""What a run asks of the place that it writes to, of a folder and of an object store alike."""

import contextlib

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.support.catalog_rows import slide, tiles
from tests.support.object_server import BUCKET
from wsi_prep.errors import BadOption, BadOutput, StoreFailed
from wsi_prep.output.catalog import Catalog
from wsi_prep.storage.select import open_storage

AT = f"s3://{BUCKET}/study/out"


@pytest.fixture
def server(object_server):
    object_server.clear()
    return object_server


class PlaceContract:
    def test_what_is_written_can_be_read_and_replaced(self, place):
        place.make_folders("a")
        for data in (b"one", b"", b"two" * 3_000_000):
            place.write("a/file", data)
            assert place.read("a/file") == data
        assert place.exists("a/file")
        assert not place.exists("a/none")
        with pytest.raises(FileNotFoundError):
            place.read("a/none")

    def test_spans_come_in_order_wherever_they_lie(self, place):
        data = np.random.default_rng(0).bytes(30_000_000)
        place.make_folders("a")
        place.write("a/file", data)
        spans = [(0, 9_000_000), (9_000_000, 1), *((9_000_001 + n * 70_000, 70_000) for n in range(250)), (7, 3)]
        spans += [(29_999_990, 10), (4, 4), (8, 4)]
        assert list(place.spans("a/file", spans)) == [data[at : at + count] for at, count in spans]
        assert list(place.spans("a/file", [])) == []
        beyond = [(29_999_998, 9), (30_000_007, 1), (30_000_000, 5), (0, 1)]
        assert list(place.spans("a/file", beyond)) == [data[-2:], b"", b"", data[:1]]
        with pytest.raises(FileNotFoundError):
            list(place.spans("a/none", [(0, 1)]))

    def test_names_may_hold_any_letter(self, place):
        names = ["b c.txt", "100%.txt", "p%20q", "Größe µ", "漢字", "+&?#=", "q'\"<>", ".hidden", "~a_-!$(),;@[]^`{|}"]
        place.make_folders("a")
        for name in names:
            place.write(f"a/{name}", name.encode())
        assert place.names("a") == sorted(names)
        assert place.sizes("a") == {f"a/{name}": len(name.encode()) for name in names}
        for name in names:
            assert place.read(f"a/{name}") == name.encode()
            place.rename(f"a/{name}", f"a/new {name}")
            assert place.read(f"a/new {name}") == name.encode()
        place.delete([f"a/new {name}" for name in names[:4]])
        assert place.names("a") == sorted(f"new {name}" for name in names[4:])

    @pytest.mark.long
    def test_a_large_file_goes_in_parts_and_comes_back_whole(self, place):
        data = np.random.default_rng(0).bytes(64 * 2**20 + 1)
        place.make_folders("a")
        with place.making("a/file") as file:
            file.write_bytes(data)
        assert place.sizes("a/file") == {"a/file": len(data)}
        spans = [(at, 4 * 2**20) for at in range(0, len(data), 4 * 2**20)]
        assert b"".join(place.spans("a/file", spans)) == data

    def test_a_version_changes_with_the_file(self, place):
        place.make_folders("a")
        place.write("a/file", b"one")
        before = place.version("a/file")
        assert place.version("a/file") == before
        place.write("a/file", b"two")
        assert place.version("a/file") != before
        with pytest.raises(FileNotFoundError):
            place.version("a/none")

    def test_sizes_are_of_a_file_or_of_all_below_a_folder(self, place):
        place.make_folders("a/b", "ab")
        for path in ("a/b/deep", "a/.hidden", "a/file", "ab/other"):
            place.write(path, path.encode())
        assert place.sizes("a") == {path: len(path) for path in ("a/b/deep", "a/.hidden", "a/file")}
        assert place.sizes("a/file") == {"a/file": 6}
        assert place.sizes("a/f") == place.sizes("none") == {}

    def test_who_only_looks_keeps_nobody_who_looks_away(self, place):
        with place.undisturbed(take_over=False):  # before the first run there is no lock
            pass
        with (
            place.locked("run", take_over=False),
            pytest.raises(BadOutput, match="a run"),
            open_storage(place.where).undisturbed(take_over=False),
        ):
            pass
        with place.undisturbed(take_over=False), open_storage(place.where).undisturbed(take_over=False):
            pass

    def test_names_are_of_one_folder_alone(self, place):
        place.make_folders("a/b", "ab")
        for path in ("a/b/deep", "a/.hidden", "a/file", "ab/other", "top"):
            place.write(path, b"x")
        assert place.names("a") == [".hidden", "b", "file"]
        assert place.names("") == ["a", "ab", "top"]
        assert place.names("none") == []

    def test_a_file_is_made_whole_or_not_at_all(self, place):
        place.make_folders("a")
        with place.making("a/file") as unfinished:
            unfinished.write_bytes(b"half")
            assert not place.exists("a/file")
            unfinished.write_bytes(b"whole")
        assert place.read("a/file") == b"whole"
        with contextlib.suppress(RuntimeError), place.making("a/file") as unfinished:
            unfinished.write_bytes(b"half")
            raise RuntimeError
        assert place.read("a/file") == b"whole"
        assert place.names("a") == ["file"]

    def test_renaming_replaces_and_may_be_done_again(self, place):
        place.make_folders("a")
        place.write("a/.new", b"new")
        place.write("a/old", b"old")
        for _ in range(2):
            place.rename("a/.new", "a/old")
            assert place.read("a/old") == b"new"
            assert place.names("a") == ["old"]

    def test_a_folder_is_published_in_place_of_the_one_there(self, place, tmp_path):
        for number, names in enumerate((("zarr.json", "5x/c.0", "5x/c.1", "10x/c.0"), ("zarr.json", "5x/c.0"))):
            staged = (place.staging or tmp_path) / f"staged{number}"
            for name in names:
                (staged / name).parent.mkdir(parents=True, exist_ok=True)
                (staged / name).write_text(f"{number} {name}")
            place.publish(staged, "stores/s.zarr")
            assert place.read("stores/s.zarr/5x/c.0") == f"{number} 5x/c.0".encode()
        assert place.names("stores/s.zarr/5x") == ["c.0"]
        assert place.names("stores/s.zarr") == ["5x", "zarr.json"]

    def test_a_file_is_published(self, place, tmp_path):
        staged = (place.staging or tmp_path) / "outline"
        staged.parent.mkdir(exist_ok=True)
        staged.write_text("{}")
        place.publish(staged, "tissue/s.geojson")
        assert place.read("tissue/s.geojson") == b"{}"

    def test_deleting_takes_files_and_removing_takes_folders(self, place):
        place.make_folders("a/b", "ab")
        for path in ("a/b/deep", "a/file", "ab/other"):
            place.write(path, b"x")
        place.delete(["a/file", "a/none"])
        assert place.names("a") == ["b"]
        place.remove("a")
        place.remove("none")
        assert [name for name in place.names("") if place.names(name)] == ["ab"]

    def test_rows_are_of_all_files_with_the_columns_asked_for(self, place):
        place.make_folders("t")
        schema = pa.schema([("id", pa.int64()), ("new", pa.string())])
        for number in range(40):
            with place.making(f"t/{number:02}.parquet") as file:
                pq.write_table(pa.table({"id": [number]}), file)
        place.write("t/.half.parquet", b"")
        assert sorted(place.rows("t", schema, ["id"])["id"].to_pylist()) == list(range(40))
        assert place.rows("t", schema)["new"].null_count == 40
        paths = [f"t/{number:02}.parquet" for number in (7, 3, 21)]
        assert [pq.read_table(source)["id"][0].as_py() for source in place.sources(paths)] == [7, 3, 21]

    def test_its_holder_is_known_afterwards(self, place):
        with place.locked("first", take_over=False):
            assert place.holder() == "first"
        assert place.holder() == "first"
        with place.locked("second", take_over=False):
            assert place.holder() == "second"


class TestFolder(PlaceContract):
    @pytest.fixture
    def place(self, tmp_path):
        storage = open_storage(tmp_path / "out")
        storage.create()
        return storage


class TestObjectStore(PlaceContract):
    @pytest.fixture
    def place(self, store):
        return open_storage(f"{store.url}/study/out")

    def test_the_marks_that_consoles_make_for_folders_are_nothing(self, store, place):
        for key in ("study/", "study/out/", "study/out/stores/"):
            store.put(key, b"")
        assert place.names("") == ["stores"]
        assert place.names("stores") == []
        assert place.sizes("stores") == {}
        store.put("study/out/stores/s/file", b"x")
        store.put("study/out/stores/s/", b"")
        assert place.sizes("stores") == {"stores/s/file": 1}


def test_a_url_that_is_no_object_store_is_refused(tmp_path):
    with pytest.raises(BadOption, match="of no object store that is known: s3://"):
        open_storage("https://host/out")
    assert open_storage(f"file://{tmp_path}").where == str(tmp_path)


WHOLE = (["s0", "s1", "s2"], [(f"s{number}", index) for number in range(3) for index in range(3)])
WITHOUT_2 = (["s0", "s1"], WHOLE[1][:6])


def content(place):
    """Both tables, in one order."""
    kinds = {"slides": ["slide_id"], "tiles": ["slide_id", "index"]}
    kept = {}
    for table, columns in kinds.items():
        paths = [f"catalog/{table}/{name}" for name in place.names(f"catalog/{table}") if not name.startswith(".")]
        found = [pq.read_table(source, columns=columns).to_pylist() for source in place.sources(paths)]
        kept[table] = sorted(tuple(row[c] for c in columns) for rows in found for row in rows)
    return [slide_id for (slide_id,) in kept["slides"]], kept["tiles"]


@pytest.mark.parametrize("change", ["merge", "drop"])
def test_cut_off_at_any_request_the_next_start_finds_the_catalog_before_or_after(server, change):
    for step in range(40):
        server.clear()
        catalog = Catalog(open_storage(AT))
        for number in range(3):
            catalog.commit(slide(number), tiles(number))
        if change == "drop":
            catalog.merge()
        server.fail("PUT|POST|DELETE", "", 403, after=step)
        try:
            catalog.merge() if change == "merge" else catalog.drop({"s2"})
            finished = True
        except StoreFailed:
            finished = False
        server.faults.clear()
        storage = open_storage(AT)
        Catalog(storage).recover()
        after = WHOLE if change == "merge" else WITHOUT_2
        assert content(storage) in (WHOLE, after)
        assert not [key for key in server.objects("study/out/") if "/." in key]
        if finished:
            assert content(storage) == after
            break
    assert finished
    assert step > 1
