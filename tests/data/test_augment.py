import torch
from torch.nn.functional import pad

from bhfl.data.augment import crop_flip


def windows(image):
    """All crops of one padded picture, and their mirror images."""
    padded, (_, height, width) = pad(image, (4,) * 4), image.shape
    crops = [padded[:, y : y + height, x : x + width] for y in range(9) for x in range(9)]
    return crops + [crop.flip(-1) for crop in crops]


def test_each_picture_becomes_one_of_its_crops_and_all_occur():
    image = torch.randint(256, (3, 6, 8), dtype=torch.uint8)
    batch = image.expand(3000, -1, -1, -1)
    out = crop_flip(batch, torch.Generator().manual_seed(0))
    assert out.dtype == torch.uint8
    assert out.shape == batch.shape
    matches = torch.stack([(out == crop).flatten(1).all(1) for crop in windows(image)])
    assert matches.any(0).all()
    assert matches.any(1).all()


def test_the_generator_decides_and_the_input_stays():
    batch = torch.rand(20, 1, 8, 8)
    before = batch.clone()
    first, second, other = (
        crop_flip(batch, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(batch, before)
