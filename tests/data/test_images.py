import gc
import shutil
from collections import Counter

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_vit

from qpeft.errors import ConfigError, DataError, DataWarning
from qpeft_lab import RunSettings
from qpeft_lab.data.images import load_images, open_image, write_images
from qpeft_lab.data.sources import has_validation_split
from qpeft_lab.training.tasks import ImageClassification


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def read(tiny_vit, tmp_path):
    """Read images with their classes as a run does."""

    def make(data, **settings) -> ImageClassification:
        chosen = {
            "task": "image-classification",
            "model": str(tiny_vit),
            "out": str(tmp_path / "run"),
            **settings,
        }
        return ImageClassification(RunSettings(data=str(data), **chosen))

    return make


def picture(path, value, mode="RGB", size=(10, 6)):
    """A file of one colour, `size` as (width, height)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, value).save(path)
    return path


def folder_of(path, names=("cat", "dog"), each=3):
    for place, name in enumerate(names):
        for number in range(each):
            picture(path / name / f"{number}.png", (60 * place, 10 * number, 0))
    return path


def test_folder_with_one_sub_folder_per_class_is_read(read, tmp_path):
    folder = folder_of(tmp_path / "animals", each=20)
    (folder / "dog" / "notes.txt").write_text("not an image")
    picture(folder / "stray.png", (0, 0, 0))
    with pytest.warns(DataWarning, match=r"2 names .* not read as images: notes.txt, stray.png"):
        images = load_images(str(folder), "train", "label")
    assert [name for _, name in images] == ["cat"] * 20 + ["dog"] * 20
    assert not has_validation_split(str(folder), has_images=True)
    (folder / "dog" / "notes.txt").unlink()
    (folder / "stray.png").unlink()
    assert len(read(folder).evaluation) == 2  # held out


def test_images_of_unusual_folders_are_named(tmp_path):
    folder = tmp_path / "animals"
    folder_of(folder / "train")
    folder_of(folder / "train_extra")
    folder_of(folder / "test")
    with pytest.warns(DataWarning, match="images in train_extra of .* are not read") as warned:
        assert len(load_images(str(folder), "train", "label")) == 6
    assert len(warned) == 1


@pytest.mark.parametrize("name", ["animals", "./more/../animals", "linked"])
def test_folder_is_read_by_any_path_without_a_note(tmp_path, monkeypatch, name):
    folder_of(tmp_path / "animals")
    (tmp_path / "more").mkdir()
    (tmp_path / "linked").symlink_to("animals")
    monkeypatch.chdir(tmp_path)
    assert len(load_images(name, "train", "label")) == 6
    assert len(load_images(str(tmp_path / name), "train", "label")) == 6


@pytest.mark.parametrize("part", ["validation", "val"])
def test_folder_with_train_and_validation_is_read(read, tmp_path, part):
    folder = tmp_path / "animals"
    folder_of(folder / "train", each=4)
    folder_of(folder / part, each=2)
    folder_of(folder / "test", each=1)
    task = read(folder)

    assert len(task.train) == 8
    assert len(task.evaluation) == 4
    assert task.labels == ("cat", "dog")
    assert len(load_images(f"{folder}::test", "train", "label")) == 2
    assert not has_validation_split(f"{folder}::train", has_images=True)
    with pytest.raises(DataError, match="'cow'"):
        read(folder, eval_data=str(folder_of(tmp_path / "evaluated", ("cow", "dog"))))


@pytest.mark.parametrize("names", [("bus", "train", "dev board"), ("bus", "steam train", "test")])
@pytest.mark.parametrize("is_split", [False, True])
def test_names_of_classes_and_files_are_no_splits(tmp_path, names, is_split):
    """`datasets` alone would read the classes of such a name, and no others."""
    folder = tmp_path / "animals"
    for part, each in (("train", 4), ("val", 2)) if is_split else (("", 4),):
        folder_of(folder / part, names, each)
        for name in names:
            (folder / part / name / "0.png").rename(folder / part / name / "train 1.png")
    for split, each in (("train", 4), ("validation", 2 if is_split else 4)):
        read = load_images(str(folder), split, "label")
        assert Counter(name for _, name in read) == dict.fromkeys(names, each)
        if is_split:
            part = {"validation": "val"}.get(split, split)
            assert {content.parent.parent.name for content, _ in read} == {part}


def test_splits_without_classes_are_not_taken_for_classes(tmp_path):
    folder_of(tmp_path, ("train", "test"))
    with pytest.raises(DataError, match="label"):
        load_images(str(tmp_path), "train", "label")


def test_folders_that_are_no_splits_are_not_read_next_to_splits(tmp_path):
    for part in ("train", "eval", "other"):
        folder_of(tmp_path / part, ("cat", "train"))
    for split in ("train", "validation"):
        with pytest.warns(DataWarning, match="images in other of .* are not read"):
            assert len(load_images(str(tmp_path), split, "label")) == 6


@pytest.mark.parametrize("name", ["cow", "train", "train/cow"])
def test_links_are_refused(tmp_path, name):
    """The hash of the data would not change with what is behind them."""
    made = folder_of(tmp_path / "made", ("cat", "dog"))
    animals = folder_of(tmp_path / "animals", ("train/cat",) if "/" in name else ("cat",))
    if name == "train":
        shutil.rmtree(animals / "cat")
    (animals / name).symlink_to(made if name == "train" else made / "cat")
    with pytest.raises(DataError, match=rf"{name} is a link, .* move the images there"):
        load_images(str(animals), "train", "label")
    (tmp_path / "link").symlink_to(made)
    assert len(load_images(str(tmp_path / "link"), "train", "label")) == 6


def test_classes_without_images_of_their_own_are_refused(tmp_path):
    folder_of(tmp_path, ("cat", "dog", "cow/brown"))
    with pytest.raises(DataError, match=r"cow has no image, .* move the images there"):
        load_images(str(tmp_path), "train", "label")


@pytest.mark.filterwarnings("ignore")  # `datasets` leaves the files open
@pytest.mark.parametrize("is_deep", [False, True])
def test_labels_in_a_file_of_metadata_are_read(tmp_path, is_deep):
    """As `datasets` does; also where the images are in folders."""
    for part in ("train", "test"):
        lines = ["file_name,label"]
        for number, name in enumerate(("cat", "dog")):
            place = f"x{number}/{name}.png" if is_deep else f"{name}.png"
            picture(tmp_path / part / place, (number, 0, 0))
            lines.append(f"{place},{'ab'[number]}")
        (tmp_path / part / "metadata.csv").write_text("\n".join(lines))
    assert [name for _, name in load_images(str(tmp_path), "train", "label")] == ["a", "b"]
    gc.collect()  # the files, before another test


@pytest.mark.filterwarnings("ignore")  # `datasets` leaves the files open
def test_configuration_of_a_folder_is_read_alone(tmp_path):
    """As the card of the folder names them."""
    for name, classes in {"pets": ("cat", "dog"), "farm": ("cow", "pig")}.items():
        folder_of(tmp_path / name, classes)
    configs = [f"- config_name: {name}\n  data_files: {name}/**\n" for name in ("pets", "farm")]
    (tmp_path / "README.md").write_text("---\nconfigs:\n" + "".join(configs) + "---\n")
    images = load_images(f"{tmp_path}:farm", "train", "label")
    assert [name for _, name in images] == ["cow"] * 3 + ["pig"] * 3
    gc.collect()  # the files, before another test


def test_slice_of_a_folder_has_no_note_on_the_others(tmp_path):
    folder_of(tmp_path, ("cat", "dog", "__MACOSX/x"))
    assert len(load_images(f"{tmp_path}::train[:4]", "train", "label")) == 4


@pytest.mark.parametrize(
    "shape",
    [
        (8, 8),
        (8, 8, 3),
        (8, 8, 4),
        (5, 12),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_converted_to_the_models_size_and_channels(read, tmp_path, shape, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    vit = make_vit(tmp_path / "vit", num_channels=channels)
    write_images(tmp_path / "x.parquet", list(zip(images, "abab", strict=True)))
    task = read(tmp_path / "x.parquet", model=str(vit))
    batch = task.collate(task.train)

    assert batch["pixel_values"].shape == (2, channels, 8, 8)
    assert batch["labels"].dtype == torch.int64

    if shape == ((8, 8) if channels == 1 else (8, 8, 3)):
        expected = (
            torch.tensor(images[:2]).reshape(2, 8, 8, channels).permute(0, 3, 1, 2).float() / 127.5
            - 1
        )
        assert torch.allclose(batch["pixel_values"], expected, atol=1e-6)


def test_folder_and_parquet_file_give_the_same_examples_and_their_hash_depends_on_each(
    read, tmp_path
):
    folder = folder_of(tmp_path / "files")
    write_images(tmp_path / "x.parquet", load_images(str(folder), "train", "label"))
    from_files = read(folder)
    from_table = read(tmp_path / "x.parquet")

    assert from_files.labels == from_table.labels == ("cat", "dog")
    assert from_files.sha256() == from_table.sha256() == read(folder).sha256()

    picture(folder / "cat" / "0.png", (1, 2, 3))
    assert read(folder).sha256() != from_table.sha256()


def damaged(path, content):
    """A picture with other content, or cut off."""
    file = picture(path, (1, 2, 3), size=(64, 64))
    file.write_bytes(file.read_bytes()[:60] if content is None else content)


def table_cut_off(file):
    write_images(file, [(picture(file.parent / "x.png", 0).read_bytes(), "a")])
    file.write_bytes(file.read_bytes()[:-40])


@pytest.mark.parametrize(
    "made, named",
    [
        (lambda folder: folder.mkdir(), "data"),
        (lambda folder: picture(folder / "a.png", (0, 0, 0)), "data"),
        (lambda folder: folder_of(folder, ("cat",)), "data"),
        (lambda folder: folder.write_text("x"), "data"),
        (table_cut_off, "data.parquet"),
        *[
            (
                lambda folder, content=content: damaged(
                    folder_of(folder) / "dog" / "broken.png", content
                ),
                "broken.png",
            )
            for content in (b"", b"not an image", None)
        ],
    ],
)
def test_unusable_images_are_refused(read, tmp_path, made, named):
    place = tmp_path / ("data.parquet" if named == "data.parquet" else "data")
    made(place)
    with pytest.raises(DataError, match=named):
        read(place)


def test_transformers_without_its_package_for_images_is_a_clear_error(read, tmp_path, monkeypatch):
    class NeedsTorchvision(type):
        @property
        def from_pretrained(cls):
            raise ImportError("of transformers 5.5")

    monkeypatch.setattr(
        "qpeft_lab.training.tasks.AutoImageProcessor", NeedsTorchvision("Auto", (), {})
    )
    with pytest.raises(ConfigError, match="only with torchvision"):
        read(tmp_path)


def test_images_of_a_hub_data_set_are_read(monkeypatch, tmp_path):
    encoded = picture(tmp_path / "x.png", (1, 2, 3)).read_bytes()
    kinds = {"kind": datasets.ClassLabel(names=["cat", "dog"]), "number": datasets.Value("int64")}

    def hub(column, content, kind=1):
        features = datasets.Features({column: datasets.Image(), **kinds})
        image = content and {"bytes": content, "path": None}
        rows = [{column: image, "kind": kind, "number": 7}]
        made = datasets.Dataset.from_list(rows, features=features)
        monkeypatch.setattr(
            datasets,
            "get_dataset_split_names",
            lambda *_: ["train", "validation"],
        )
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: made)

    hub("img", encoded)

    assert load_images("someone/animals", "train", "kind") == [(encoded, "dog")]
    assert load_images("someone/animals", "train", "number") == [(encoded, "7")]
    assert has_validation_split("someone/animals", has_images=True)

    for column, content, label, *kind in (
        ("img", encoded, "label"),
        ("picture", encoded, "kind"),
        ("image", b"?", "kind"),
        ("image", None, "kind"),
        ("image", encoded, "kind", -1),  # without a label
    ):
        hub(column, content, *kind)
        with pytest.raises(DataError):
            load_images("someone/animals", "train", label)


def test_images_are_converted_or_turned_upright_and_those_of_more_than_8_bits_refused(tmp_path):
    for name, kind in (("a.png", np.uint16), ("a.tiff", np.float32)):
        Image.fromarray(np.zeros((4, 4), dtype=kind)).save(tmp_path / name)
        with pytest.raises(DataError, match=name):
            open_image(tmp_path / name, "L")
    for mode, value in (
        ("RGBA", (10, 20, 30, 255)),
        ("P", 1),
        ("CMYK", (0, 0, 0, 0)),
    ):
        path = picture(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}", value, mode)
        assert open_image(path.read_bytes(), "RGB").mode == "RGB"
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)

    assert open_image(tmp_path / "a.jpg", "RGB").size == (20, 40)
