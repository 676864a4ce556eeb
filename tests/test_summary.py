"""What many maps have in common, against loops that follow the definitions; its page; explanations as one, loaded."""

import html
import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.testing import assert_allclose, assert_array_equal
from PIL import Image

from guided_backprop import Coverage, Explanations, ImageError, Job, OptionError, OutputExistsError, read, summary
from guided_backprop.commands.main import command
from guided_backprop.report import write_summary
from test_jobs import network, photo

SHAPE = (12, 10)


def explanations(maps, labels, **others):
    """Return explanations of maps, with nothing but what is needed."""
    maps = np.asarray(maps, np.float32)
    given = {"reducer": None, "channel_axis": 1} | others
    nothing = np.zeros((len(maps), 3), np.float32)
    scores = np.arange(len(maps), dtype=float)
    return Explanations(maps, maps, np.asarray(labels), scores, nothing, Coverage(), "M", "net", **given)


@pytest.fixture(scope="module")
def many():
    """Return 24 random maps of three classes, the last of which lie in one corner, and one that is all 0."""
    rng = np.random.default_rng(0)
    maps = rng.standard_cauchy((24, 3, *SHAPE))
    labels = np.arange(24) % 3
    maps[labels == 2, :, :, 5:] = 0
    maps[6] = 0
    return explanations(maps, labels)


def cosine(one, other):
    return (one * other).sum() / np.sqrt((one**2).sum() * (other**2).sum())


def test_the_numbers_of_each_class(many):
    box = (2, 3, 7, 9.5)
    found = summary(many, inside=box, class_names={2: "corner"}, most=2)
    assert [(one.label, one.name, one.count) for one in found.classes] == [
        (0, "class 0", 8),
        (1, "class 1", 8),
        (2, "2 corner", 8),
    ]
    assert (found.overall.count, found.empty) == (24, 1)
    magnitudes = np.abs(many.attribution.astype(float)).sum(axis=1)
    for one in [*found.classes, found.overall]:
        rows = [row for row in range(24) if one.label in (None, many.labels[row])]
        assert_allclose(one.magnitude, np.mean([magnitudes[row].sum() / 120 for row in rows]), rtol=1e-9)
        # Where nothing is, nothing has a place.
        shares = {row: magnitudes[row] / magnitudes[row].sum() for row in rows if row != 6}
        down, across, inside = [], [], []
        for share in shares.values():
            down.append(sum(share[y, x] * (y + 0.5) / 12 for y in range(12) for x in range(10)))
            across.append(sum(share[y, x] * (x + 0.5) / 10 for y in range(12) for x in range(10)))
            inside.append(share[3:9, 2:7].sum() + share[9, 2:7].sum() / 2)
        assert_allclose([one.down, one.across, one.inside], np.mean([down, across, inside], axis=1), rtol=1e-9)
        assert_allclose(one.area, 6.5 * 5 / 120)
        assert_allclose(one.mean, np.mean(list(shares.values()), axis=0), rtol=1e-9)
        pairs = [cosine(shares[one], shares[other]) for one, other in combinations(shares, 2)]
        assert_allclose(one.likeness, np.mean(pairs), rtol=1e-9)
        mean = sum(share / np.sqrt((share**2).sum()) for share in shares.values())
        ranked = sorted(shares, key=lambda row: -cosine(shares[row], mean))
        assert [example.row for example in one.typical] == ranked[:2]
        assert [example.row for example in one.untypical] == ranked[:-3:-1]
        assert_allclose(one.typical[0].likeness, cosine(shares[ranked[0]], mean), rtol=1e-9)
    # The comparisons can fail: the corner is elsewhere.
    assert found.classes[2].across < 0.3 < found.classes[0].across
    table = found.to_pandas()
    assert table["class"].tolist() == ["class 0", "class 1", "2 corner", "all"]
    assert table["most typical"][3] == f"image-{found.overall.typical[0].row:05d}"
    assert "24" in str(found).splitlines()[5]
    assert str(found).endswith("1 maps are all 0")


def test_what_is_marked(many):
    mask = np.zeros(SHAPE, bool)
    mask[3:9, 2:7] = True
    by_mask, by_box = (summary(many, inside=marked).overall for marked in (mask, (2, 3, 7, 9)))
    assert_allclose([by_mask.inside, by_mask.area], [by_box.inside, by_box.area], rtol=1e-12)
    some = summary(many, inside=lambda name: mask if name == "image-00001" else None)
    magnitude = np.abs(many.attribution[1].astype(float)).sum(axis=0)
    assert_allclose(some.overall.inside, magnitude[mask].sum() / magnitude.sum(), rtol=1e-9)
    assert [one.inside is None for one in some.classes] == [True, False, True]
    for wrong in (mask[1:], mask.astype(int), (5, 0, 5, 9), "mask"):
        with pytest.raises(OptionError, match="inside must be a mask of booleans of the maps' shape"):
            summary(many, inside=wrong)


def test_maps_that_are_the_same(many):
    maps = many.attribution.copy()
    rng = np.random.default_rng(1)
    maps[[20, 23]] = maps[2] * (1 + 1e-6 * rng.normal(size=(2, *maps.shape[1:])))
    maps[9] = maps[2]  # of another class
    maps[5] = maps[2] + 0.05 * np.abs(maps[2]).mean()  # and what is another map
    assert summary(explanations(maps, many.labels)).duplicates == [["image-00002", "image-00020", "image-00023"]]
    assert summary(many).duplicates == []


def test_maps_of_other_forms(many):
    reduced = explanations(np.abs(many.attribution).sum(axis=1), many.labels, reducer="sum")
    last = explanations(np.moveaxis(many.attribution, 1, -1), many.labels, channel_axis=3)
    whole = summary(many)
    for other in (reduced, last, [many[:7], many[7:]]):
        assert_allclose(summary(other).overall.mean, whole.overall.mean, rtol=1e-6)
        assert_allclose(summary(other).overall.likeness, whole.overall.likeness, rtol=1e-6)
    assert [one.part for one in summary([many[:7], many[7:]], most=9).overall.typical].count(0) < 9
    large = summary(explanations(np.ones((2, 3, 65, 100)), [0, 0])).overall
    assert large.mean.shape == (32, 32)
    assert_allclose(large.mean.sum(), 1)
    with pytest.raises(OptionError, match="maps of pictures"):
        summary(explanations(np.ones((2, 3)), [0, 0], channel_axis=None))
    with pytest.raises(OptionError, match="maps of class ids"):
        summary(explanations(np.ones((2, 3, 4, 4)), np.ones((2, 3))))
    with pytest.raises(OptionError, match=r"one method, model and shape; received .*\(12, 10\)\) and .*\(12, 9\)\)"):
        summary([many, explanations(many.attribution[..., 1:], many.labels)])
    with pytest.raises(OptionError, match="needs maps; received none"):
        summary([])
    with pytest.raises(OptionError, match="most must be"):
        summary(many, most=-1)


@pytest.fixture(scope="module")
def job(tmp_path_factory):
    folder = tmp_path_factory.mktemp("job")
    for number in range(10):
        photo(folder / "photos" / f"{number}<b>.png", number % 9)
    (folder / "photos" / "damaged.png").write_bytes(b"no picture")
    Job(folder / "maps", folder / "photos", model=network(folder), shard_size=4, batch_size=3).run()
    return folder / "maps"


def test_a_job_is_summed_up_shard_by_shard(job):
    maps = read(job)
    streamed, whole = summary(maps), summary(Explanations.concatenate(list(maps)))
    names = [name for names in maps.paths() for name in names]
    for one, other in zip([*streamed.classes, streamed.overall], [*whole.classes, whole.overall], strict=True):
        assert (one.label, one.count) == (other.label, other.count)
        assert_allclose(one.mean, other.mean, rtol=1e-9)
        assert [example.name for example in one.typical] == [names[example.row] for example in other.typical]
    assert streamed.duplicates == [["0<b>.png", "9<b>.png"]]
    few = summary(maps.filter(path="[0-4]*"))
    assert few.overall.count == 5
    with pytest.raises(OptionError, match="received none"):
        summary(maps.filter(path="x*"))
    for whole_only in ("to_xarray", "dataset"):
        with pytest.raises(OptionError, match="needs a shard; received none"):
            getattr(maps[:0], whole_only)()
    assert maps[:0].to_pandas().columns.tolist() == maps.to_pandas().columns.tolist()


def run(*arguments):
    return CliRunner().invoke(command(), ["report", *map(str, arguments)])


def test_the_page_of_a_job(job, tmp_path):
    page = tmp_path / "maps.html"
    ran = run(job, "--output", page)
    assert ran.exit_code == 0, ran.output
    assert "the same map: 0<b>.png, 9<b>.png" in ran.output
    text = page.read_text()
    assert "<b>.png" not in text
    assert "0&lt;b&gt;.png, 9&lt;b&gt;.png" in text
    found = summary(read(job))
    for one in found.classes:
        assert f">{html.escape(one.name)}</a>" in text
    assert len(re.findall(r'<img class="map"', text)) == sum(
        len(one.typical) + len(one.untypical) for one in [*found.classes, found.overall]
    )
    again = run(job, "--output", page)
    assert (again.exit_code, "must not exist yet" in again.output) == (1, True)
    for option in (["--check"], ["--method", "saliency"], ["--labels", "1"]):
        refused = run(job, "--output", tmp_path / "other.html", *option)
        assert (refused.exit_code, f"{option[0]} goes with photos" in refused.output) == (2, True)


def test_the_pages_of_many_classes(tmp_path):
    maps = np.random.default_rng(0).random((201, 1, 4, 4))
    one = explanations(maps, np.arange(201))
    files = write_summary(tmp_path / "all.html", one, summary(one))
    assert [file.name for file in files] == ["all-1.html", "all-2.html", "all.html"]
    index, last = files[2].read_text(), files[1].read_text()
    assert 'href="all-2.html#class-201"' in index
    assert 'id="class-201"' in last
    assert 'href="all.html"' in last
    with pytest.raises(OutputExistsError):
        write_summary(tmp_path / "all.html", one, summary(one))


def test_explanations_as_one(many):
    whole = Explanations.concatenate([many[:5], many[5:]])
    for name in ("attribution", "images", "labels", "scores", "outputs"):
        assert_array_equal(getattr(whole, name), getattr(many, name))
    for parts, named in [
        ([], "needs a list of explanations"),
        (many, "needs a list of explanations"),
        ([many, explanations(many.attribution, many.labels, reducer="sum")], "reducer=None and 'sum'"),
        ([many, explanations(many.attribution[..., 1:], many.labels)], r"of one shape; received \(24, 3, 12, 10\) and"),
    ]:
        with pytest.raises(OptionError, match=named):
            Explanations.concatenate(parts)


def test_explanations_of_several_inputs_as_one():
    import torch

    from guided_backprop import GuidedBackprop

    class Two(torch.nn.Module):
        def forward(self, first, second):
            return torch.relu(first).sum(1, keepdim=True) + second

    method = GuidedBackprop(Two().eval())
    both = torch.rand(4, 3), torch.rand(4, 1)
    parts = [method.explain(tuple(one[rows] for one in both), 0) for rows in (slice(3), slice(3, 4))]
    whole = Explanations.concatenate(parts)
    assert [one.shape for one in whole.attribution] == [(4, 3), (4, 1)]
    assert_array_equal(whole.images[0], both[0].numpy())
    assert isinstance(whole.attribution[0], np.ndarray)
    with pytest.raises(OptionError, match=r"received channel_axis=\(None, None\) and None"):
        Explanations.concatenate([whole, whole.of_input(0)])


def test_explanations_are_loaded(many, tmp_path):
    many.save(tmp_path / "whole", images=True)
    many.save(tmp_path / "maps")
    whole, maps = Explanations.load(tmp_path / "whole"), Explanations.load(tmp_path / "maps")
    for name in ("attribution", "images", "labels", "scores", "outputs"):
        assert_array_equal(getattr(whole, name), getattr(many, name))
    for name in ("method", "model", "head", "reducer", "channel_axis", "coverage"):
        assert getattr(whole, name) == getattr(maps, name) == getattr(many, name)
    assert_array_equal(maps.attribution, many.attribution)
    assert (maps.images.shape, maps.outputs.shape) == ((24, 0), (24, 0))
    assert summary(maps).overall.likeness == summary(many).overall.likeness
    # What it was made of it can make again.
    whole[:2].save(tmp_path / "again", images=True)
    picture = "image-00001_colour.png"
    assert_array_equal(*(np.asarray(Image.open(tmp_path / name / picture)) for name in ("whole", "again")))


def test_what_was_not_saved_is_not_loaded(many, tmp_path):
    folder = many[:3].save(tmp_path / "maps")
    with pytest.raises(OptionError, match="save"):
        Explanations.load(tmp_path / "other")
    arrays, manifest = folder / "attribution.safetensors", folder / "manifest.json"
    said, held = manifest.read_text(), arrays.read_bytes()
    manifest.write_text(said.replace('"name": "image-00002"', '"name": "image-00002"}, {"name": "more"'))
    with pytest.raises(OptionError, match="its labels and scores are not 4, as its images"):
        Explanations.load(folder)
    manifest.write_text(said)
    arrays.write_bytes(held[:-1])
    with pytest.raises(ImageError, match="must be as it was saved"):
        Explanations.load(folder)
    arrays.write_bytes(held)
    assert len(Explanations.load(Path(folder))) == 3
