import os

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import make_vit

from qpeft.errors import ConfigError, DataError
from qpeft.training import TrainSettings
from qpeft.training.tasks.image_classification import ImageClassification, load_image_processor
from qpeft.training.tasks.images import has_validation_images, load_images, open_image


def reads_image_processors() -> bool:
    from transformers import AutoImageProcessor

    try:
        return callable(AutoImageProcessor.from_pretrained)
    except ImportError:
        return False


pytestmark = [
    pytest.mark.skipif(
        not reads_image_processors(), reason="this version of transformers needs torchvision for image processors"
    ),
    pytest.mark.filterwarnings("ignore:.* are also training data"),
]


@pytest.fixture
def read(tiny_vit, tmp_path):
    """Read images with their classes as a run does."""

    def make(data, **settings) -> ImageClassification:
        chosen = {"task": "image-classification", "model": str(tiny_vit), "out": str(tmp_path / "run"), **settings}
        return ImageClassification(TrainSettings(data=str(data), **chosen))

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


def arrays(path, **content):
    np.savez(path, **content)
    return path


def test_folder_with_one_sub_folder_per_class_is_read(tmp_path):
    folder = folder_of(tmp_path / "animals")
    picture(folder / "dog" / "more" / "b.jpg", (0, 0, 0))
    (folder / "dog" / "notes.txt").write_text("not an image")
    picture(folder / ".cache" / "c.png", (0, 0, 0))
    rows = load_images(str(folder), "train", "label")
    assert [name for _, name in rows] == ["cat"] * 3 + ["dog"] * 4
    assert not has_validation_images(str(folder))


@pytest.mark.parametrize("part", ["validation", "val", "test"])
def test_folder_with_train_and_validation_is_read(read, tmp_path, part):
    folder = tmp_path / "animals"
    folder_of(folder / "train", each=4)
    folder_of(folder / part, each=2)
    task = read(folder)
    assert (len(task.train), len(task.evaluation)) == (8, 4)
    assert task.labels == ("cat", "dog")
    with pytest.raises(DataError, match=r"evaluated.*has the label 'cow'"):
        read(folder, eval_data=str(folder_of(tmp_path / "evaluated", ("cow", "dog"))))


def test_missing_validation_folder_is_refused_when_needed(read, tmp_path):
    folder = tmp_path / "animals"
    folder_of(folder / "train", each=4)
    assert len(read(folder).evaluation) == 2  # held out
    with pytest.raises(DataError, match="has train/ but none of validation, valid, val, test, testing"):
        load_images(str(folder), "validation", "label")


def test_arrays_are_read_with_and_without_class_names(read, tmp_path):
    images = np.arange(4 * 8 * 8, dtype=np.uint8).reshape(4, 8, 8)
    bare = arrays(tmp_path / "bare.npz", images=images, labels=np.array([9, 10, 9, 10], dtype=np.uint8))
    assert read(bare).labels == ("9", "10")
    named = arrays(
        tmp_path / "named.npz", images=images, labels=np.array([1, 0, 1, 0]), names=np.array(["z", "a", "never"])
    )
    task = read(named, eval_data=str(named))
    assert task.labels == ("a", "z")
    assert [index for _, index in task.train] == [0, 1, 0, 1]
    names = np.array([b"cat", b"dog"])  # as in the files of CIFAR
    encoded = arrays(tmp_path / "bytes.npz", images=images, labels=LABELS, names=names)
    assert [name for _, name in load_images(str(encoded), "train", "label")] == ["cat", "dog", "cat", "dog"]


@pytest.mark.parametrize("shape", [(8, 8), (8, 8, 1), (8, 8, 3), (8, 8, 4), (5, 12), (16, 16, 3)])
@pytest.mark.parametrize("channels", [1, 3])
def test_images_are_converted_to_the_models_size_and_channels(tmp_path, shape, channels):
    images = np.random.default_rng(0).integers(0, 256, (4, *shape), dtype=np.uint8)
    file = arrays(tmp_path / "x.npz", images=images, labels=np.array([0, 1, 0, 1]))
    with pytest.warns(UserWarning, match=f"converted to 8 x 8 and {channels} channel"):
        task = ImageClassification(
            TrainSettings(
                task="image-classification",
                model=str(make_vit(tmp_path / "vit", num_channels=channels)),
                data=str(file),
                out=str(tmp_path / "run"),
            )
        )
    batch = task.collate(task.train)
    assert batch["pixel_values"].shape == (2, channels, 8, 8)
    assert batch["labels"].dtype == torch.int64
    if shape == (8, 8) and channels == 1:
        expected = torch.tensor(images[:2]).float() / 127.5 - 1
        assert torch.allclose(batch["pixel_values"][:, 0], expected, atol=1e-6)
    if shape == (8, 8, 3) and channels == 3:
        expected = torch.tensor(images[:2]).permute(0, 3, 1, 2).float() / 127.5 - 1
        assert torch.allclose(batch["pixel_values"], expected, atol=1e-6)


def test_processor_of_the_base_is_used(read, tiny_vit, tmp_path, recwarn):
    task = read(folder_of(tmp_path / "animals"))
    assert type(task.processor).__name__ == "ViTImageProcessorPil"
    assert task.collate(task.train)["pixel_values"].shape == (4, 3, 8, 8)
    assert not recwarn.list
    assert load_image_processor(str(tiny_vit), task.config).image_mean == (0.4, 0.5, 0.6)


def test_files_and_arrays_give_the_same_pixels(read, tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), dtype=np.uint8)
    for number, image in enumerate(pixels):
        path = tmp_path / "files" / "ab"[number % 2] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    array = arrays(tmp_path / "x.npz", images=pixels, labels=np.arange(4) % 2, names=np.array(["a", "b"]))
    from_files, from_array = read(tmp_path / "files"), read(array)
    ours, theirs = (task.collate([*task.train, *task.evaluation])["pixel_values"] for task in (from_files, from_array))
    assert torch.equal(ours, theirs)
    assert from_files.sha256() != from_array.sha256()  # the bytes that were read


def test_hash_depends_on_every_pixel(read, tmp_path):
    folder = folder_of(tmp_path / "animals")
    before = read(folder).sha256()
    assert read(folder).sha256() == before
    picture(folder / "cat" / "1.png", (1, 2, 3))
    assert read(folder).sha256() != before


IMAGES = np.zeros((4, 8, 8), dtype=np.uint8)
LABELS = np.array([0, 1, 0, 1])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": IMAGES}, "has no array 'labels'; its arrays: images"),
        ({"labels": LABELS}, "has no array 'images'; its arrays: labels"),
        ({}, "has no array 'images'; its arrays: none"),
        ({"images": IMAGES / 255, "labels": LABELS}, r"images are float64 of shape \(4, 8, 8\); they must be uint8"),
        ({"images": IMAGES[0], "labels": LABELS}, r"images are uint8 of shape \(8, 8\)"),
        ({"images": np.zeros((4, 3, 8, 8), np.uint8), "labels": LABELS}, "with 1, 3 or 4 channels"),
        ({"images": IMAGES, "labels": LABELS / 2}, "labels are float64 .* they must be integers"),
        ({"images": IMAGES, "labels": LABELS[:3]}, r"labels are int64 of shape \(3,\).* each of the 4 images"),
        ({"images": IMAGES[:0], "labels": LABELS[:0]}, "has no images"),
        ({"images": IMAGES, "labels": LABELS, "names": np.array(["a"])}, "labels run from 0 to 1, and names has shape"),
        ({"images": IMAGES, "labels": LABELS - 1, "names": np.array(["a", "b"])}, "labels run from -1 to 0"),
        ({"images": IMAGES, "labels": LABELS, "names": np.array(["a", ""])}, "label 1: the label is nothing"),
        ({"images": IMAGES, "labels": LABELS * 0}, "has only the class '0'"),
    ],
)
def test_arrays_in_another_format_are_refused(read, tmp_path, content, message):
    with pytest.raises(DataError, match=message):
        read(arrays(tmp_path / "x.npz", **content))


def test_pickled_arrays_and_a_single_array_are_refused(tmp_path):
    file = arrays(tmp_path / "x.npz", images=np.array([{"a": 1}] * 4, dtype=object), labels=LABELS)
    with pytest.raises(DataError, match="as arrays: Object arrays cannot be loaded when allow_pickle=False"):
        load_images(str(file), "train", "label")
    np.save(tmp_path / "x.npy", IMAGES)
    (tmp_path / "x.npy").rename(file)
    with pytest.raises(DataError, match="has no array 'images'; its arrays: no name"):
        load_images(str(file), "train", "label")


def other_compression(content):
    for header, place in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):  # the position of the compression method
        at = content.index(header) + place
        content[at : at + 2] = (99).to_bytes(2, "little")
    return content


def other_checksum(content):
    content[content.index(b"images.npy") + 170] ^= 1
    return content


@pytest.mark.parametrize(
    "damage",
    [lambda _: b"", lambda content: content[:30], lambda content: content[:200], other_compression, other_checksum],
    ids=["empty", "30 bytes", "200 bytes", "compression", "checksum"],
)
def test_damaged_arrays_are_refused(tmp_path, damage):
    file = arrays(tmp_path / "x.npz", images=IMAGES, labels=LABELS)
    file.write_bytes(damage(bytearray(file.read_bytes())))
    with pytest.raises(DataError, match="as arrays"):
        load_images(str(file), "train", "label")


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda folder: folder.mkdir(), "no images in sub-folders of .*, which contains nothing"),
        (lambda folder: picture(folder / "a.png", (0, 0, 0)), "which contains a.png; give each class a sub-folder"),
        (lambda folder: (folder / "cat").mkdir(parents=True), "which contains cat"),
        (lambda folder: folder_of(folder, ("cat",)), "has only the class 'cat'"),
        (lambda folder: folder.write_text("x"), "cannot read images from"),
    ],
)
def test_folders_in_another_format_are_refused(read, tmp_path, made, message):
    made(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        read(tmp_path / "data")


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_image_is_named(read, tmp_path, content):
    folder = folder_of(tmp_path / "animals")
    broken = picture(folder / "dog" / "broken.png", (1, 2, 3), size=(64, 64))
    broken.write_bytes(broken.read_bytes()[:60] if content is None else content)
    with pytest.raises(DataError, match=r"cannot read .*broken\.png: .*; repair or remove it"):
        read(folder)


def test_transparent_and_indexed_images_are_converted(tmp_path):
    for mode, value in (("RGBA", (10, 20, 30, 255)), ("L", 40), ("P", 1), ("1", 1), ("CMYK", (0, 0, 0, 0))):
        path = picture(tmp_path / f"{mode}.{'tif' if mode == 'CMYK' else 'png'}", value, mode)
        assert open_image(path, "RGB").mode == "RGB"
        assert open_image(path.read_bytes(), "L").size == (10, 6)


class HubSet(list):
    """The used part of a `datasets.Dataset`, with encoded images."""

    def __init__(self, rows, features):
        super().__init__(rows)
        self.features = features

    def cast_column(self, column, feature):
        assert not feature.decode
        return self


class ClassLabel:
    names = ("cat", "dog")


def hub(monkeypatch, rows, features, splits=("train", "validation")):
    import datasets

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_: list(splits))
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: HubSet(rows, features))


def test_images_of_a_hub_data_set_are_read(monkeypatch, tmp_path):
    encoded = picture(tmp_path / "x.png", (1, 2, 3)).read_bytes()
    rows = [{"img": {"bytes": encoded, "path": None}, "label": 1}]
    hub(monkeypatch, rows, {"img": object(), "label": ClassLabel()})
    assert load_images("someone/animals", "train", "label") == [(encoded, "dog")]
    assert has_validation_images("someone/animals")
    with pytest.raises(DataError, match="has the columns img, label; required: 'kind'"):
        load_images("someone/animals", "train", "kind")
    hub(monkeypatch, rows, {"picture": object(), "label": ClassLabel()})
    with pytest.raises(DataError, match="required: one of image, img"):
        load_images("someone/animals", "train", "label")


def test_undecodable_image_of_a_hub_data_set_is_refused(monkeypatch):
    rows = [{"image": {"bytes": b"?", "path": None}, "label": 1}]
    hub(monkeypatch, rows, {"image": object(), "label": object()})
    with pytest.raises(DataError, match="cannot read an image"):
        load_images("someone/animals", "train", "label")


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_virtual_tokens_are_refused_for_images(method):
    settings = TrainSettings(task="image-classification", model="m", data="d", out="o", method=method)
    with pytest.raises(ConfigError, match="images do not have"):
        settings.check()


def test_sixteen_bit_images_are_scaled_to_eight(tmp_path):
    ramp = np.linspace(0, 65535, 256).astype(np.uint16).reshape(16, 16)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    shown = np.asarray(open_image(tmp_path / "ramp.png", "L"))
    assert np.array_equal(shown, (ramp // 257).astype(np.uint8))
    assert len(np.unique(shown)) == 256


def test_images_of_floats_are_refused(tmp_path):
    Image.fromarray(np.full((4, 4), 0.5, dtype=np.float32)).save(tmp_path / "a.tiff")
    with pytest.raises(DataError, match=r"a\.tiff.*float32 from 0\.5 to 0\.5, not 8 or 16 bits"):
        open_image(tmp_path / "a.tiff", "L")


def test_photograph_is_rotated_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (40, 20)).save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg", "RGB").size == (20, 40)


def test_named_split_of_a_folder_is_its_sub_folder(tmp_path):
    for number, part in enumerate(("train", "validation", "test"), start=1):
        folder_of(tmp_path / "data" / part, each=number)
    assert len(load_images(f"{tmp_path}/data::test", "train", "label")) == 6
    assert not has_validation_images(f"{tmp_path}/data::train")
    with pytest.raises(DataError, match="has no sub-folder 'dev' for this split; its sub-folders: test, train, valid"):
        load_images(f"{tmp_path}/data::dev", "train", "label")


@pytest.mark.parametrize(("train", "evaluation"), [("Training", "Testing"), ("TRAIN", "Valid")])
def test_other_names_of_split_folders_are_accepted(tmp_path, train, evaluation):
    folder_of(tmp_path / "data" / train)
    folder_of(tmp_path / "data" / evaluation, each=1)
    assert has_validation_images(str(tmp_path / "data"))
    assert [name for _, name in load_images(str(tmp_path / "data"), "validation", "label")] == ["cat", "dog"]


def test_folder_of_data_sets_is_refused(tmp_path):
    folder_of(tmp_path / "birds")
    folder_of(tmp_path / "fish")
    with pytest.raises(DataError, match=r"birds has images only in its sub-folders \(cat, dog\), so it is not a class"):
        load_images(str(tmp_path), "train", "label")


def test_reading_an_image_from_a_pipe_does_not_block(tmp_path):
    (tmp_path / "cat").mkdir()
    os.mkfifo(tmp_path / "cat" / "1.png")
    with pytest.raises(DataError, match="it is not a file"):
        load_images(str(tmp_path), "train", "label")
