"""Data sets as an attacker would write them: nothing outside of the folder is read, and a failure is one line."""

import io
import json
import struct
import tarfile
import warnings
import zlib

import datasets
import numpy as np
import PIL.Image
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from c_diffset.data.images import MAX_BYTES, read_image
from c_diffset.data.pairs import list_splits, load_pairs, read_pair
from c_diffset.data.prepare import prepare
from tests.hostile import outcome

CANARY = 77  # the value of every pixel of the file that must not be read
QUICK = (Phase.explicit, Phase.generate)  # a failure is reported as it is found
pytestmark = pytest.mark.filterwarnings("ignore")


def png(image, **options) -> bytes:
    buffer = io.BytesIO()
    PIL.Image.fromarray(image).save(buffer, options.pop("format", "PNG"), **options)
    return buffer.getvalue()


def tiff(image, **profile) -> bytes:
    shape = {"count": 1, "height": image.shape[0], "width": image.shape[1], "dtype": image.dtype}
    with warnings.catch_warnings(), rasterio.MemoryFile() as memory:
        warnings.simplefilter("ignore")
        with memory.open(driver="GTiff", **shape | profile) as raster:
            raster.write(image, 1)
        return memory.read()


GREY, COLOUR = np.arange(1, 257, dtype=np.uint16).reshape(16, 16), np.full((16, 16, 3), 9, np.uint8)
SECRET = png(np.full((16, 16, 3), CANARY, np.uint8))
IMAGES = [
    png(COLOUR),
    png(GREY),
    png(COLOUR, format="JPEG"),
    tiff(GREY),
    tiff(GREY.astype(np.float32), tiled=True, blockxsize=16, blockysize=16, compress="deflate", nodata=3),
    tiff(GREY.astype(np.complex64)),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A data folder with one good pair, a link out of it, and the canary outside."""
    place = tmp_path_factory.mktemp("hostile")
    (place / "secret.png").write_bytes(SECRET)
    for name, content in (("sar/a.png", png(GREY)), ("eo/a.png", png(COLOUR))):
        (place / "data" / name).parent.mkdir(parents=True)
        (place / "data" / name).write_bytes(content)
    (place / "data" / "link.png").symlink_to(place / "secret.png")
    (place / "data" / "up").symlink_to("..")
    return place


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory):
    """`datasets` keeps what it has read in a folder of this module, and says nothing."""
    patch = pytest.MonkeyPatch()
    patch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()
    patch.undo()


def paths(place) -> st.SearchStrategy:
    """Names of files: honest ones, and every way to the canary."""
    secret = str(place / "secret.png")
    hostile = [secret, "../secret.png", "link.png", "up/secret.png", "sar/../../secret.png", f"file://{secret}"]
    hostile += [
        f"file://{secret}::hf://a/b",
        f"simplecache::file://{secret}",
        "/dev/zero",
        ".",
        "",
        "\0",
        "a\nb",
        "x" * 5000,
    ]
    return st.sampled_from(["sar/a.png", "eo/a.png", *hostile])


def values(place) -> st.SearchStrategy:
    path = paths(place)
    image = st.fixed_dictionaries({}, optional={"path": path, "bytes": st.one_of(st.none(), path)})
    plain = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5))
    return st.one_of(path, image, plain, st.lists(plain, max_size=3), st.just(10**30), st.just("\ud800"))


def read_all(source, streaming=False):
    """All that comes out of a data set."""
    seen = []
    for split in list_splits(source):
        for row in load_pairs(source, split, streaming=streaming):
            seen.append(repr(row))
            try:
                pair = read_pair(row)
            except (ValueError, OSError) as error:
                seen.append(str(error))
                assert "\n" not in str(error)
            else:
                assert all(not (image == CANARY).all() for image in (pair.sar, pair.eo))
                assert pair.discrepancy is None or pair.discrepancy.shape == pair.sar.shape[:2]
    return "".join(seen)


def read_joined(source, streaming):
    """`read_all`; errors of a stream, which a library reads as it goes, have several lines, which the console joins."""
    try:
        return read_all(source, streaming)
    except (pa.ArrowException, OSError) as error:  # "deserializing page header failed" is an OSError
        if not streaming:
            raise
        raise ValueError(" ".join(str(error).split())) from error


def assert_harmless(place, source, streaming=False):
    text = outcome(read_joined, source, streaming)
    assert repr(SECRET)[2:-1] not in text


KEYS = ["sar_file_name", "eo_file_name", "mask_file_name", "discrepancy_file_name", "thumb_file_name", "_file_name"]
KEYS += [
    "../../x_file_name",
    "id_file_name",
    "sar",
    "eo",
    "mask",
    "discrepancy",
    "thumb",
    "id",
    "split",
    "note",
    "\ud800",
]


@settings(max_examples=200, derandomize=True, phases=QUICK)
@given(data=st.data())
def test_tables(place, data):
    keys = st.dictionaries(st.sampled_from(KEYS), values(place), max_size=4)
    rows = [
        {"sar_file_name": "sar/a.png", "eo_file_name": "eo/a.png", "id": str(i)} | row
        for i, row in enumerate(data.draw(st.lists(keys, min_size=1, max_size=3)))
    ]
    lines = [json.dumps(row) for row in rows]
    odd = ["[]", "3", "null", "{", "[" * 100_000, '{"a": NaN}', '{"id": "1", "id": "2"}', "\ufeff", '"' * 9, "\0"]
    lines += data.draw(st.lists(st.sampled_from(odd), max_size=1))
    table = place / "data" / "metadata.jsonl"
    table.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        assert_harmless(place, place / "data")
        outcome(
            prepare, "folders", place / "data", place / "out" / str(abs(hash(tuple(lines)))), (1, 0, 0), progress=False
        )
    finally:
        table.unlink()
    assert SECRET not in [file.read_bytes() for file in (place / "out").rglob("*.png")]


@settings(max_examples=100, derandomize=True, phases=QUICK)
@given(data=st.data())
def test_csv_tables(place, data):
    header = data.draw(
        st.lists(st.sampled_from(["sar", "eo", "mask", "discrepancy", "id", "split", *KEYS[:3], ""]), max_size=6)
    )
    cells = st.one_of(paths(place), st.text(max_size=4))
    rows = data.draw(st.lists(st.lists(cells, min_size=2, max_size=7), min_size=1, max_size=2))
    text = "\n".join(
        ",".join(row) for row in [["sar", "eo", *header], *([["sar/a.png", "eo/a.png", *row] for row in rows])]
    )
    (place / "data" / "pairs.csv").write_text(text, encoding="utf-8", errors="surrogatepass")
    assert_harmless(place, place / "data" / "pairs.csv")


@settings(max_examples=40, derandomize=True, phases=QUICK)
@given(data=st.data())
def test_parquet(place, data):
    kind = pa.struct({"bytes": pa.binary(), "path": pa.string()})
    image = st.fixed_dictionaries({"bytes": st.sampled_from([None, b"", *IMAGES]), "path": paths(place)})
    columns = {key: pa.array([data.draw(image)], kind) for key in ("sar", "eo")}
    for key in data.draw(
        st.sets(st.sampled_from(["mask", "discrepancy", "thumb", "mask.json", "id", "json"]), max_size=2)
    ):
        columns[key] = pa.array([data.draw(st.one_of(image, paths(place)))])
    content = io.BytesIO()
    pq.write_table(pa.table(columns), content)
    content = bytearray(content.getvalue())
    for position in data.draw(st.lists(st.integers(0, len(content) - 1), max_size=2)):
        content[position] ^= data.draw(st.integers(1, 255))
    path = place / f"{zlib.crc32(content)}.parquet"
    path.write_bytes(content)
    assert_harmless(place, path, data.draw(st.booleans()))


@settings(max_examples=60, derandomize=True, phases=QUICK)
@given(data=st.data())
def test_archives(place, data):
    names = st.sampled_from(["0", "../0", "/etc/0", str(place / "secret"), "a\nb", "x" * 300])
    extra = st.sampled_from(["json", "mask.json", "discrepancy.txt", "png", "sar", "npy", "mp3", ""])
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as shard:
        for _ in range(data.draw(st.integers(1, 2))):
            name = data.draw(names)
            inside = json.dumps(
                data.draw(st.dictionaries(st.sampled_from(KEYS[:-1]), values(place), max_size=2))
            ).encode()
            members = [("sar.png", data.draw(st.sampled_from(IMAGES))), ("eo.png", png(COLOUR))]
            for suffix, payload in [
                *members,
                (data.draw(extra), data.draw(st.sampled_from([inside, b"", SECRET[:50]]))),
            ]:
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(payload)
                if data.draw(st.integers(0, 9)) == 0:
                    member.type, member.linkname, member.size = tarfile.SYMTYPE, str(place / "secret.png"), 0
                shard.addfile(member, io.BytesIO(payload))
    content = content.getvalue()[: data.draw(st.sampled_from([None, 100, 700, 2000]))]
    path = place / f"{zlib.crc32(content)}.tar"
    path.write_bytes(content)
    assert_harmless(place, path)


@settings(max_examples=340, derandomize=True, phases=QUICK)
@given(data=st.data())
def test_images(data):
    content = bytearray(data.draw(st.sampled_from(IMAGES)))
    for _ in range(data.draw(st.integers(0, 4))):
        position = data.draw(st.one_of(st.integers(0, min(200, len(content) - 1)), st.integers(0, len(content) - 1)))
        word = data.draw(
            st.one_of(st.binary(min_size=1, max_size=1), st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\x7f\0\0\0"]))
        )
        content[position : position + len(word)] = word
    found = outcome(read_image, bytes(content[: data.draw(st.one_of(st.none(), st.integers(0, len(content))))]))
    assert isinstance(found, str) or found.dtype in (np.uint8, np.uint16, np.float32)


def huge_png(depth: int, colour: int, interlaced: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, depth, colour, 0, 0, interlaced)
    chunks = [header, b"IDAT" + zlib.compress(b"\0" * 1000), b"IEND"]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize("colour", [0, 2, 6])
@pytest.mark.parametrize("interlaced", [0, 1])
def test_a_png_of_absurd_size(depth, colour, interlaced):
    found = outcome(read_image, huge_png(depth, colour, interlaced))
    assert "100000 x 100000" in found or "decompression bomb" in found


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 256, "blockysize": 256}])
def test_a_sparse_tiff_of_absurd_size(options, tmp_path):
    path = tmp_path / "sparse.tif"
    shape = {"count": 1, "height": 100_000, "width": 100_000, "dtype": "uint8"}
    with rasterio.open(path, "w", driver="GTiff", SPARSE_OK=True, **shape, **options):
        pass
    assert "sparse.tif: 100000 x 100000 pixels in 1 bands are more" in outcome(read_image, path)


def test_what_is_no_file_of_reasonable_size(tmp_path):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    with open(tmp_path / "large.png", "wb") as file:
        file.truncate(MAX_BYTES + 1)
    (tmp_path / "loop.png").symlink_to("loop.png")
    names = {"folder": "no such file", "empty": "not a readable", "large": "bytes; expected", "loop": "no such file"}
    for name, message in names.items():
        assert message in outcome(read_image, tmp_path / f"{name}.png") and name in outcome(
            read_image, tmp_path / f"{name}.png"
        )
    assert "no such file" in outcome(read_image, "/dev/zero")


@pytest.mark.parametrize("dtype", ["complex_int16", "complex64"])
def test_single_look_complex_images(dtype, tmp_path):
    with rasterio.open(tmp_path / "slc.tif", "w", driver="GTiff", count=1, height=4, width=4, dtype=dtype) as raster:
        raster.write(np.ones((1, 4, 4), np.complex64))
    found = outcome(read_image, tmp_path / "slc.tif")
    assert f"slc.tif: complex pixels ({dtype}); expected detected ones" in found


@pytest.mark.parametrize("suffix", [".parquet", ".tar", "/metadata.jsonl", "/metadata.csv", ".csv"])
@pytest.mark.parametrize("content", [b"", b"\0" * 600, b"PAR1" * 9, png(COLOUR), b"sar,eo\n\0,\xff", b'{"a": 1}'])
@pytest.mark.parametrize("streaming", [False, True])
def test_files_that_are_not_what_their_names_say(suffix, content, streaming, tmp_path):
    path = tmp_path / f"x{suffix}"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    assert isinstance(outcome(read_all, path if path.parent == tmp_path else path.parent, streaming), str)


def test_columns_of_several_types_are_text(place):
    table = place / "data" / "metadata.jsonl"
    pair = {"sar_file_name": "sar/a.png", "eo_file_name": "eo/a.png"}
    extra = [{"n": 1, "deep": {"a": [1]}, "big": 10**30}, {"n": "a", "deep": None, "big": None}]
    table.write_text("".join(json.dumps(pair | {"id": str(i)} | row) + "\n" for i, row in enumerate(extra)))
    rows = list(load_pairs(place / "data"))
    table.unlink()
    assert [(row["n"], row["deep"]) for row in rows] == [("1", '{"a": [1]}'), ("a", None)]
    assert rows[0]["big"] == str(10**30)
