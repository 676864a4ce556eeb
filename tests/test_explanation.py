"""The result of explaining: a sequence and an array, written by save().

The folders that save() writes are read back with other programs' eyes: Pillow, safetensors, json.
"""

import json
import os
import re
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from PIL import Image
from safetensors.numpy import load_file

import guided_backprop
from guided_backprop import (
    Coverage,
    Explanations,
    GuidedBackprop,
    ImageError,
    Nonlinearity,
    OptionError,
    OutputError,
    OutputExistsError,
)
from guided_backprop.render import colour_picture, magnitude, overlay
from guided_backprop.show.folder import ExplanationFolder

KINDS = ("colour", "magnitude", "overlay")


def explain(count: int = 2, *, shape: tuple[int, ...] = (3, 8, 6), reducer: str | None = None) -> Explanations:
    """Explain a small random convolutional network with real code."""
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(1)
    network = torch.nn.Sequential(
        torch.nn.LazyConv2d(4, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
    )
    images = torch.rand((count, *shape), generator=generator)
    network(images[:1])
    return GuidedBackprop(network.eval(), reducer=reducer).explain(images, [row % 4 for row in range(count)])


def by_hand(attribution: np.ndarray, channel_axis: int | None = None, reducer: str | None = None) -> Explanations:
    """Build explanations of a given attribution."""
    count = len(attribution)
    coverage = Coverage([Nonlinearity("relu", 2, "guided")])
    return Explanations(
        attribution=attribution,
        images=attribution,
        labels=np.arange(count),
        scores=np.ones(count),
        outputs=np.ones((count, 2)),
        coverage=coverage,
        method="GuidedBackprop",
        model="Net",
        channel_axis=channel_axis,
        reducer=reducer,
    )


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def pixels_of(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    source = str(Path(guided_backprop.__file__).parents[1])
    command = [sys.executable, "-W", "error", "-c", code]
    environment = {**os.environ, "PYTHONPATH": source}
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


# The sequence


def test_explanations_are_a_sequence_over_images_and_an_array_of_the_attribution():
    explanations = explain(3)
    assert len(explanations) == 3
    assert_array_equal(np.asarray(explanations), explanations.attribution.numpy())
    assert np.asarray(explanations, dtype=np.float16).dtype == np.float16
    one = explanations[1]
    assert_array_equal(np.asarray(one), explanations.attribution[1].numpy())
    assert (int(one.label), one.score) == (1, explanations.scores[1])
    assert isinstance(one.score, float)
    assert [int(each.label) for each in explanations] == [0, 1, 2]
    part = explanations[1:]
    assert isinstance(part, Explanations)
    assert len(part) == 2
    assert (part.coverage, part.model, part.channel_axis) == (explanations.coverage, "Sequential", 1)
    assert "relu x1 guided" in repr(explanations)


def test_coverage_of_batches_is_per_forward_pass():
    first = Coverage([Nonlinearity("relu", 3, "guided"), Nonlinearity("gelu", 1, "plain")])
    second = Coverage([Nonlinearity("relu", 4, "guided")])
    assert str(Coverage.merge([first, second])) == "relu x4 guided, gelu x1 plain"
    assert str(Coverage.merge([])) == "none"


# save()


def test_a_saved_folder_holds_pictures_arrays_and_a_manifest(tmp_path):
    explanations = explain()
    folder = explanations.save(tmp_path / "new" / "maps", names=["photos/cat.jpg", "dog"])
    assert folder == tmp_path / "new" / "maps"
    pictures = {f"{stem}_{kind}.png" for stem in ("cat", "dog") for kind in KINDS}
    assert names_in(folder) == pictures | {"attribution.safetensors", "manifest.json"}
    assert names_in(folder.parent) == {"maps"}

    arrays = load_file(folder / "attribution.safetensors")
    assert set(arrays) == {"attribution", "scores", "labels"}
    assert_array_equal(arrays["attribution"], explanations.attribution.numpy())
    assert_array_equal(arrays["scores"], explanations.scores)
    assert_array_equal(arrays["labels"], [0, 1])

    signed = explanations.attribution[1].numpy().transpose(1, 2, 0)
    image = explanations.images[1].numpy().transpose(1, 2, 0)
    assert_array_equal(pixels_of(folder / "dog_colour.png"), colour_picture(signed))
    assert_array_equal(pixels_of(folder / "dog_overlay.png"), overlay(image, signed))
    assert_array_equal(pixels_of(folder / "dog_magnitude.png"), magnitude(signed))


def test_the_manifest_says_what_the_files_are(tmp_path):
    explanations = explain()
    folder = explanations.save(tmp_path / "maps", names=["a/cat.jpg", "b/cat.jpg"])
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    versions = manifest.pop("versions")
    assert versions["numpy"] == np.__version__
    assert versions["torch"] == torch.__version__
    assert versions["python"].startswith("3.")
    assert manifest == {
        "schema_version": 1,
        "guided_backprop": guided_backprop.__version__,
        "method": "GuidedBackprop",
        "model": "Sequential",
        "labels": [0, 1],
        "scores": explanations.scores.tolist(),
        "coverage": [{"name": "relu", "count": 1, "treatment": "guided"}],
        "head": None,
        "reducer": None,
        "channel_axis": 1,
        "percentile": 99.0,
        "arrays": "attribution.safetensors",
        "images": [
            {"name": "a/cat.jpg", "files": {kind: f"cat_{kind}.png" for kind in KINDS}},
            {"name": "b/cat.jpg", "files": {kind: f"cat-2_{kind}.png" for kind in KINDS}},
        ],
    }


def test_files_are_as_readable_as_any_other_new_file(tmp_path):
    (tmp_path / "plain").write_text("")
    folder = explain(1).save(tmp_path / "maps")
    permissions = {path.stat().st_mode & 0o777 for path in folder.iterdir()}
    assert permissions == {(tmp_path / "plain").stat().st_mode & 0o777}


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["cat.jpg", "cat.png", "CAT.jpg", "cat-2.jpg"], ["cat", "cat-2", "CAT-3", "cat-2-2"]),
        (["../../etc/passwd", "..", "/", "C:\\photos\\x.png"], ["passwd", "_", "image", "x"]),
        (["a.b/v1.2", "con.txt", ".hidden", "-rf"], ["v1_2", "con_txt", "_hidden", "rf"]),
        (["Müll", "Mu\u0308ll", "bad\udcff", "a\0b\n\x1b[31m"], ["Müll", "Müll-2", "bad_", "a_b_31m"]),
        (["", "x" * 400, "y" * 400 + ".png", "é" * 400], ["image", "x" * 150, "y" * 150, "é" * 75]),
    ],
)
def test_names_become_safe_and_unique_file_names(tmp_path, names, stems):
    folder = explain(4).save(tmp_path / "maps", names=names)
    files = {f"{stem}_{kind}.png" for stem in stems for kind in KINDS}
    assert names_in(folder) == files | {"attribution.safetensors", "manifest.json"}
    assert names_in(tmp_path) == {"maps"}
    images = json.loads((folder / "manifest.json").read_text("utf-8"))["images"]
    assert [image["name"] for image in images] == names
    assert [image["files"]["colour"] for image in images] == [f"{stem}_colour.png" for stem in stems]


@pytest.mark.parametrize("names", [["one"], "ab", [1, 2], ["a", "b", "c"]])
def test_names_are_one_string_per_image_and_nothing_is_left_behind(tmp_path, names):
    with pytest.raises(OptionError, match="names must be one string per image; received names="):
        explain(2).save(tmp_path / "maps", names=names)
    assert names_in(tmp_path) == set()


def test_an_existing_folder_is_refused_and_left_as_it_is(tmp_path):
    folder = explain(1).save(tmp_path / "maps")
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OutputExistsError, match="overwrite=True"):
        explain(2).save(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    file = tmp_path / "file"
    file.write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match="which is a file"):
            explain(1).save(file, overwrite=overwrite)
    assert file.read_text() == "mine"


def test_overwriting_replaces_removes_what_is_stale_and_touches_nothing_else(tmp_path):
    folder = explain(2).save(tmp_path / "maps", names=["cat", "dog"])
    (folder / "notes.txt").write_text("mine")
    (folder / "other_colour.png").write_text("mine too")
    explain(1).save(folder, names=["cat"], overwrite=True)
    pictures = {f"cat_{kind}.png" for kind in KINDS}
    kept = {"notes.txt", "other_colour.png"}
    assert names_in(folder) == pictures | kept | {"attribution.safetensors", "manifest.json"}
    assert len(load_file(folder / "attribution.safetensors")["scores"]) == 1


@pytest.mark.parametrize(
    "manifest",
    [
        b"{",
        b"\xff",
        b"[]",
        b'{"images": [{"files": {"a": "../victim_colour.png", "b": "victim.txt", "c": 3}}]}',
        b'{"images": [{"files": {"a": "/etc/x_colour.png", "b": "folder/victim_colour.png"}}]}',
    ],
)
def test_a_foreign_manifest_deletes_nothing(tmp_path, manifest):
    folder = tmp_path / "maps"
    (folder / "folder").mkdir(parents=True)
    victims = [tmp_path / "victim_colour.png", folder / "victim.txt", folder / "folder" / "victim_colour.png"]
    for victim in victims:
        victim.write_text("mine")
    (folder / "manifest.json").write_bytes(manifest)
    explain(1).save(folder, overwrite=True)
    assert all(victim.read_text() == "mine" for victim in victims)
    assert json.loads((folder / "manifest.json").read_text())["schema_version"] == 1


def test_a_run_that_fails_half_way_leaves_no_folder(tmp_path):
    def write_and_fail() -> None:
        with ExplanationFolder(tmp_path / "maps") as folder:
            folder.add(explain(2))
            assert not (tmp_path / "maps").exists()
            assert len(names_in(tmp_path)) == 1  # the pictures so far, under a hidden name
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_fail()
    assert names_in(tmp_path) == set()


def bytes_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_an_overwrite_that_fails_leaves_the_old_and_keeps_the_new(tmp_path, monkeypatch):
    folder = explain(1).save(tmp_path / "maps", names=["cat"])
    whole = explain(1).save(tmp_path / "whole", names=["dog"])
    before = bytes_in(folder)
    (folder / "dog_magnitude.png").mkdir()
    with pytest.raises(OutputExistsError, match=r"dog_magnitude.*What was finished is in '.*maps-2'"):
        explain(1).save(folder, names=["dog"], overwrite=True)
    assert bytes_in(folder) == before
    assert bytes_in(tmp_path / "maps-2") == bytes_in(whole)
    (folder / "dog_magnitude.png").rmdir()
    # The disk fails when some of the new files are in place.
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if path.name == "manifest.json" and target.parent == folder and "partial" in path.parent.name:
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OutputError, match=r"Input/output error.*What was finished is in '.*maps-3'"):
        explain(1).save(folder, names=["dog"], overwrite=True)
    monkeypatch.undo()
    assert bytes_in(folder) == before
    assert names_in(folder) == set(before)
    assert bytes_in(tmp_path / "maps-3") == bytes_in(whole)
    assert bytes_in(explain(1).save(folder, names=["dog"], overwrite=True)) == bytes_in(whole) != before


def test_what_is_finished_is_kept_where_a_folder_was_made_in_the_meantime(tmp_path):
    with ExplanationFolder(tmp_path / "maps") as folder:
        folder.add(explain(1))
        (tmp_path / "maps").mkdir()
        with pytest.raises(OutputExistsError, match=r"it appeared meanwhile.*finished is in '.*maps-2'"):
            folder.finish()
    assert names_in(tmp_path / "maps") == set()
    assert bytes_in(tmp_path / "maps-2") == bytes_in(explain(1).save(tmp_path / "whole"))


def test_what_dead_processes_had_begun_is_swept_and_what_living_ones_do_is_not(tmp_path):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    host = re.sub(r"[^\w.-]+", "_", socket.gethostname())[:60]
    left = [f".maps.partial-{host}-{process}-0123abcd" for process in (dead.pid, os.getpid())]
    left += [f".maps.partial-elsewhere-{dead.pid}-0123abcd", f".other.partial-{host}-{dead.pid}-0123abcd"]
    for name in left:
        (tmp_path / name).mkdir()
    explain(1).save(tmp_path / "maps")
    assert names_in(tmp_path) == {"maps", *left[1:]}


@pytest.mark.parametrize(
    "folder",
    ["a" * 300, "a\0b", "file/maps", "/proc/maps"],
    ids=["too long", "NUL", "below a file", "not to be written"],
)
def test_a_folder_that_the_system_refuses_is_named(tmp_path, folder):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputError, match=r"folder must be one that can be written to; received folder="):
        explain(1).save(tmp_path / folder)
    assert names_in(tmp_path) == {"file"}


def test_batches_are_joined_in_one_folder(tmp_path):
    explanations = explain(5)
    whole = explanations.save(tmp_path / "whole")
    with ExplanationFolder(tmp_path / "parts") as output:
        files = [kinds for start in (0, 2, 4) for kinds in output.add(explanations[start : start + 2])]
        parts = output.finish()
    assert files[4]["magnitude"] == "image-00004_magnitude.png"
    assert names_in(parts) == names_in(whole)
    assert all((parts / name).read_bytes() == (whole / name).read_bytes() for name in names_in(whole))


def test_batches_of_another_shape_and_no_batches_are_refused(tmp_path):
    with ExplanationFolder(tmp_path / "maps") as output:
        with pytest.raises(OptionError, match="at least one batch"):
            output.finish()
        output.add(explain(1))
        with pytest.raises(ImageError, match=r"received attribution of shape \(3, 9, 9\) after \(3, 8, 6\)"):
            output.add(explain(1, shape=(3, 9, 9)))
    assert names_in(tmp_path) == set()


def test_pictures_of_any_number_of_channels_are_saved(tmp_path):
    folder = explain(1, shape=(5, 8, 6)).save(tmp_path / "maps")
    assert pixels_of(folder / "image-00000_colour.png").shape == (8, 6, 3)


@pytest.mark.parametrize("reducer", ["mean", "absmax"])
def test_a_reduced_attribution_is_drawn(tmp_path, reducer):
    folder = explain(1, shape=(5, 8, 6), reducer=reducer).save(tmp_path / "maps")
    assert len(names_in(folder)) == 5
    assert load_file(folder / "attribution.safetensors")["attribution"].shape == (1, 8, 6)
    assert pixels_of(folder / "image-00000_colour.png").shape == (8, 6, 3)


@pytest.mark.parametrize(
    "explanations",
    [
        by_hand(np.ones((2, 3, 9)), channel_axis=1),
        by_hand(np.ones((2, 9)), channel_axis=1, reducer="mean"),
        by_hand(np.ones((2, 9))),
        by_hand(np.ones((2, 3, 4, 4))),
    ],
    ids=["series", "reduced series", "table", "no channel axis"],
)
def test_what_is_not_picture_like_is_saved_as_arrays_only(tmp_path, explanations):
    folder = explanations.save(tmp_path / "maps")
    assert names_in(folder) == {"attribution.safetensors", "manifest.json"}
    images = json.loads((folder / "manifest.json").read_text())["images"]
    assert images[0] == {"name": "image-00000", "files": {}}


def test_channels_last_images_are_drawn_the_same(tmp_path):
    values = np.random.default_rng(0).normal(size=(1, 3, 8, 6))
    first = by_hand(values, channel_axis=1).save(tmp_path / "first")
    for axis in (3, -1):
        last = by_hand(np.moveaxis(values, 1, -1), channel_axis=axis).save(tmp_path / f"last{axis}")
        for kind in KINDS:
            name = f"image-00000_{kind}.png"
            assert (first / name).read_bytes() == (last / name).read_bytes()


def test_constant_attributions_empty_batches_weights_and_bfloat16_are_saved(tmp_path):
    constant = by_hand(np.full((1, 1, 4, 4), 0.0), channel_axis=1).save(tmp_path / "constant")
    assert_array_equal(pixels_of(constant / "image-00000_colour.png"), 128)
    assert_array_equal(pixels_of(constant / "image-00000_magnitude.png"), 255)
    empty = explain(2)[:0].save(tmp_path / "empty")
    assert load_file(empty / "attribution.safetensors")["attribution"].shape == (0, 3, 8, 6)
    explanations = explain(2)
    half = replace(explanations, attribution=explanations.attribution.bfloat16(), labels=np.eye(2, 4))
    folder = half.save(tmp_path / "half")
    arrays = load_file(folder / "attribution.safetensors")
    assert arrays["attribution"].dtype == np.float32
    assert_array_equal(arrays["labels"], np.eye(2, 4))
    assert json.loads((folder / "manifest.json").read_text())["labels"] is None


# Optional packages


@pytest.mark.parametrize(
    ("package", "call", "extra"), [("matplotlib", "plot()", "plot"), ("safetensors", "save('/nowhere/x')", "save")]
)
def test_a_missing_optional_package_is_named_with_its_install_line(package, call, extra):
    code = (
        f"import sys; sys.modules[{package!r}] = None\n"
        "import numpy as np; from guided_backprop import Coverage, Explanations, MissingExtraError\n"
        "one = np.ones((1, 1, 2, 2)); e = Explanations(one, one, np.zeros(1), np.ones(1), one, Coverage(),"
        " 'Saliency', 'Net', channel_axis=1)\n"
        f"try: e.{call}\n"
        "except MissingExtraError as error: print(error)\n"
    )
    method = call.partition("(")[0]
    assert run_python(code).stdout == (
        f"{method}() needs {package}; received an environment without it. "
        f"Run: pip install 'guided-backprop[{extra}]'.\n"
    )
