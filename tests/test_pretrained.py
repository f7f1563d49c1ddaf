"""Networks from elsewhere: features are those of the published network, known by the hash of its weights, or a reason and nothing else."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from medsynth import pretrained
from medsynth.cohort import sha256_of
from medsynth.features import extract, identity
from medsynth.pretrained import ARCHITECTURES, Architecture, Input, Pretrained, Unusable, load, resized
from medsynth.rng import generator_for
from tests.make_cohort import make_cohort


def random_weights(network: nn.Module) -> dict[str, torch.Tensor]:
    """Of every tensor by its name alone, so that each has its own and features do not vanish."""
    found = {}
    for name, value in network.state_dict().items():
        draws = torch.from_numpy(generator_for(0, name).standard_normal(value.shape)).float()
        if value.ndim > 1:
            found[name] = draws * (2 / value[0].numel()) ** 0.5
        elif not name.endswith("num_batches_tracked"):
            found[name] = 1 + 0.2 * draws.abs() if name.endswith(("weight", "running_var", "gamma")) else 0.1 * draws
    return found


def folder_of(root: Path, weights: dict | bytes, name: str = "weights.safetensors", **described) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    if isinstance(weights, bytes):
        (root / name).write_bytes(weights)
    elif name.endswith(".safetensors"):
        save_file(weights, root / name)
    else:
        torch.save(weights, root / name)
    (root / "extractor.json").write_text(json.dumps(described))
    return root


def tiny() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())


TINY_NETWORK = Architecture(dims=2, width=4, input=Input(mean=(0.5,) * 3, std=(0.5,) * 3), build=tiny)


def networks(root: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """For ``evaluate.weights``: a folder with a network of one layer, and one that is not there."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY_NETWORK)
    return [str(folder_of(root / "net", random_weights(tiny()), architecture="tiny")), str(root / "gone")]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A network of one layer among the architectures, where the network itself does not matter."""
    monkeypatch.setitem(ARCHITECTURES, "tiny", TINY_NETWORK)


def image_of(*shape: int) -> np.ndarray:
    return generator_for(0, "image", *shape).uniform(-1, 1, (1, 1, *shape)).astype(np.float32)


def apart(found: np.ndarray, expected: torch.Tensor) -> float:
    """The largest difference, of how far the expected features differ from one another."""
    expected = expected.numpy()
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / expected.std())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_network_has_the_width_that_is_told_of_it(name):
    architecture = ARCHITECTURES[name]
    with torch.device("meta"):
        network = architecture.build().eval()
        features = network(torch.zeros(2, architecture.channels, *(architecture.input.size or (32, 24, 16))))
    assert features.shape == (2, architecture.width)


def test_radimagenet_is_monais_network_on_the_turned_image_under_the_names_of_its_file(tmp_path):
    network = pretrained.resnet50().eval()
    weights = random_weights(network)
    network.load_state_dict(weights, strict=False)
    parts = {"conv1": "0", "bn1": "1", **{f"layer{k}": str(3 + k) for k in (1, 2, 3, 4)}}
    named = {f"backbone.{parts[key.split('.')[0]]}.{key.split('.', 1)[1]}": value for key, value in weights.items()}
    folder = folder_of(tmp_path, named, "weights.pt", architecture="radimagenet_resnet50", input={"size": [80, 75]})
    image = image_of(75, 80)
    with torch.inference_mode():
        expected = network(torch.from_numpy(image[0, 0, ::-1, ::-1].T.copy()).expand(1, 3, 80, 75))  # -1..+1 is what it was trained on
    assert apart(load(folder, 2)(image), expected) < 1e-5


def slow_medicalnet(w: dict[str, torch.Tensor], x: torch.Tensor, blocks: tuple[int, ...]) -> torch.Tensor:
    """Chen et al.'s network of basic blocks, layer by layer: two stages halve, two look farther."""

    def normed(x: torch.Tensor, name: str) -> torch.Tensor:
        return functional.batch_norm(x, *(w[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias")))

    x = functional.relu(normed(functional.conv3d(x, w["conv1.weight"], stride=2, padding=3), "bn1"))
    x = functional.max_pool3d(x, 3, 2, 1)
    for stage, (count, step, far) in enumerate(zip(blocks, (1, 2, 1, 1), (1, 1, 2, 4), strict=True), 1):
        for k in range(count):
            name, stride = f"layer{stage}.{k}", step if k == 0 else 1
            y = functional.conv3d(x, w[f"{name}.conv1.weight"], stride=stride, padding=far, dilation=far)
            y = functional.relu(normed(y, f"{name}.bn1"))
            y = normed(functional.conv3d(y, w[f"{name}.conv2.weight"], padding=far, dilation=far), f"{name}.bn2")
            if f"{name}.downsample.0.weight" in w:
                x = normed(functional.conv3d(x, w[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            elif y.shape != x.shape:  # shortcut A
                x = x[..., ::stride, ::stride, ::stride]
                x = torch.cat([x, x.new_zeros(1, y.shape[1] - x.shape[1], *x.shape[2:])], 1)
            x = functional.relu(x + y)
    return x.mean((2, 3, 4))


@pytest.mark.parametrize(("depth", "blocks"), [(10, (1, 1, 1, 1)), (18, (2, 2, 2, 2))])
def test_medicalnet_is_the_network_that_was_trained_and_not_monais_with_other_steps(tmp_path, depth, blocks):
    weights = random_weights(pretrained.medicalnet(depth))
    saved = {"state_dict": {f"module.{key}": value for key, value in weights.items()} | {"module.conv_seg.0.weight": torch.zeros(1)}}
    folder = folder_of(tmp_path, saved, "weights.pth", architecture=f"medicalnet_resnet{depth}")
    image = image_of(24, 20, 32)
    volume = torch.from_numpy((image[0, 0] + 1) / 2)
    z_scored = ((volume - volume.mean()) / volume.std()).permute(2, 1, 0)[None, None]
    assert apart(load(folder, 3)(image), slow_medicalnet(weights, z_scored, blocks)) < 1e-5


def in_transformers_words(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    found = {}
    for key, value in weights.items():
        if ".qkv." in key:
            for part, third in zip(("query", "key", "value"), value.chunk(3), strict=True):
                found[key.replace("blocks", "encoder.layer").replace("attn.qkv", f"attention.attention.{part}")] = third.clone()
            continue
        for ours, theirs in (
            ("cls_token", "embeddings.cls_token"),
            ("pos_embed", "embeddings.position_embeddings"),
            ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
            ("attn.proj", "attention.output.dense"),
            ("ls1.gamma", "layer_scale1.lambda1"),
            ("ls2.gamma", "layer_scale2.lambda1"),
            ("blocks", "encoder.layer"),
        ):
            key = key.replace(ours, theirs)
        found[key.replace("norm.", "layernorm.") if key.startswith("norm.") else key] = value
    return found | {"embeddings.mask_token": torch.zeros(1, 384)}


@pytest.mark.parametrize("words", [dict, in_transformers_words], ids=["their own", "transformers"])
def test_dinov2_is_torchs_transformer_with_its_scales_multiplied_in(tmp_path, words):
    weights = random_weights(pretrained.DinoV2(384, 12))
    folder = folder_of(tmp_path, words(weights), architecture="dinov2_vits14", input={"size": [84, 98]})
    image = image_of(98, 84)
    scaled = (torch.from_numpy(image[0, 0, ::-1, ::-1].T.copy()) + 1) / 2
    mean, std = (torch.tensor(values)[:, None, None] for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    patches = functional.conv2d(((scaled - mean) / std)[None], weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], 14)
    places = weights["pos_embed"][:, 1:].reshape(1, 37, 37, 384).permute(0, 3, 1, 2)
    tokens = (patches + functional.interpolate(places, (6, 7), mode="bicubic")).flatten(2).transpose(1, 2)
    tokens = torch.cat([weights["cls_token"] + weights["pos_embed"][:, :1], tokens], 1)
    layer = nn.TransformerEncoderLayer(384, 6, 4 * 384, 0.0, "gelu", 1e-6, batch_first=True, norm_first=True).eval()
    with torch.inference_mode():
        for k in range(12):
            block = {key.removeprefix(f"blocks.{k}."): value for key, value in weights.items() if key.startswith(f"blocks.{k}.")}
            given = {"self_attn.in_proj_weight": block["attn.qkv.weight"], "self_attn.in_proj_bias": block["attn.qkv.bias"]}
            for ours, theirs, scale in (("attn.proj", "self_attn.out_proj", "ls1.gamma"), ("mlp.fc2", "linear2", "ls2.gamma")):
                given |= {f"{theirs}.weight": block[scale][:, None] * block[f"{ours}.weight"]}
                given |= {f"{theirs}.bias": block[scale] * block[f"{ours}.bias"]}
            for ours, theirs in (("mlp.fc1", "linear1"), ("norm1", "norm1"), ("norm2", "norm2")):
                given |= {f"{theirs}.{part}": block[f"{ours}.{part}"] for part in ("weight", "bias")}
            layer.load_state_dict(given)
            tokens = layer(tokens)
        expected = functional.layer_norm(tokens[:, 0], (384,), weights["norm.weight"], weights["norm.bias"], 1e-6)
    assert apart(load(folder, 2)(image), expected) < 1e-4


def test_inception_is_that_of_the_frechet_inception_distance(tmp_path):
    """Pinned: these numbers are of torchvision 0.28 with the five changes of pytorch-fid, which cannot be installed beside a CPU build of
    torch; the two agreed to the last bit."""
    weights = random_weights(pretrained.Inception()) | {"fc.weight": torch.zeros(1008, 2048)}
    folder = folder_of(tmp_path, weights, architecture="inception", input={"size": [99, 107]})
    features = load(folder, 2)(image_of(107, 99))[0]
    pinned = {0: 1.955421, 320: 0.2566045, 705: 3.059135, 1089: 0.8209073, 1473: 1.489698, 1856: 6.799815}  # one of each branch
    assert features[list(pinned)] == pytest.approx(list(pinned.values()), rel=1e-4)
    assert features.mean() == pytest.approx(1.049539, rel=1e-4)


def test_an_image_is_made_smaller_and_larger_as_pillow_does_it():
    image = image_of(40, 31)[0, 0]
    for size in ((13, 40), (80, 9)):
        expected = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        assert resized(torch.from_numpy(image), size).numpy() == pytest.approx(expected, abs=1e-5)
    ramp = torch.linspace(0, 1, 32)[:, None, None].expand(32, 3, 4)
    assert resized(ramp, (8, 3, 4))[:, 0, 0] == pytest.approx(ramp[:, 0, 0].reshape(8, 4).mean(1).numpy(), abs=0.02)


def test_a_plane_network_sees_slices_of_three_planes_of_a_volume():
    """Each plane's mean is that of its slices as images of their own."""
    network = nn.Flatten()
    extractor = Pretrained(architecture="radimagenet_resnet50", sha256="", input=Input(size=(9, 8), slices=3), network=network)
    volume = image_of(10, 12, 14)
    found = extractor(volume)[0].reshape(3, -1)
    for plane, normal in zip(found, (2, 1, 0), strict=True):
        places = {14: (3, 6, 10), 12: (3, 6, 8), 10: (2, 4, 7)}[volume.shape[2 + normal]]
        slices = np.stack([np.take(volume[0], place, axis=1 + normal) for place in places])
        assert plane == pytest.approx(extractor(slices).mean(0), abs=1e-6)
    assert extractor(volume[:0]).shape == (0, 3 * 2048)


def test_a_plane_is_shown_upright():
    """The far end of both axes, which is the head or the front and the patient's right, comes above on the left."""
    extractor = Pretrained(
        architecture="radimagenet_resnet50", sha256="", input=Input(mean=(0.0,) * 3, std=(1.0,) * 3), network=nn.Flatten()
    )
    image = np.full((1, 1, 5, 4), -1, np.float32)
    image[0, 0, 4, 3], image[0, 0, 4, 2] = 1, 0
    assert extractor(image).reshape(3, 4, 5)[0, :2, :2].tolist() == [[1, 0], [0.5, 0]]


def test_one_changed_byte_is_another_extractor_with_its_own_cache(tmp_path, small):
    first = folder_of(tmp_path / "net", random_weights(tiny()), architecture="tiny")
    data = (first / "weights.safetensors").read_bytes()
    other = folder_of(tmp_path / "other", data[:-1] + bytes([data[-1] ^ 1]), architecture="tiny")
    wider = folder_of(tmp_path / "wider", data, architecture="tiny", input={"size": [80, 80]})
    cohort = make_cohort(tmp_path / "cohort", n_train=3, n_validation=0, n_holdout=0)
    loaded = [load(folder, 2) for folder in (first, other, wider)]
    assert loaded[0].sha256 == sha256_of(data) != loaded[1].sha256
    assert len({identity(each) for each in loaded}) == 3
    assert loaded[0].sha256 in identity(loaded[0])
    assert str(tmp_path) not in identity(loaded[0])
    features = [extract(each, cohort, tmp_path / "cache") for each in loaded]
    assert len(list((tmp_path / "cache").iterdir())) == 3
    assert (extract(load(first, 2), cohort) == features[0]).all()
    assert pretrained.digest_of(first) != pretrained.digest_of(other)
    assert pretrained.digest_of(first) != pretrained.digest_of(wider)


def test_a_case_has_the_same_features_alone_and_among_others(tmp_path, small):
    extractor = load(folder_of(tmp_path / "net", random_weights(tiny()), architecture="tiny"), 2)
    images = np.concatenate([image_of(20, 20), image_of(20, 20) * 0.5, image_of(20, 20) ** 2])
    assert (extractor(images[::-1]) == np.concatenate([extractor(image[None]) for image in images[::-1]])).all()
    assert extractor(images[:0]).shape == (0, 4)


class Hostile:
    def __reduce__(self):
        return os.mkdir, (self.path,)


def test_code_in_a_file_of_weights_is_refused_and_not_run(tmp_path, small):
    hostile = Hostile()
    hostile.path = str(tmp_path / "ran")
    folder = folder_of(tmp_path / "net", {"state_dict": hostile}, "weights.pth", architecture="tiny")
    with pytest.raises(Unusable, match=r"weights.pth cannot be read as a state dict of tensors .* \(UnpicklingError\)"):
        load(folder, 2)
    assert not (tmp_path / "ran").exists()


TINY = {"architecture": "tiny"}
PLANES = {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.zeros(4)}


@pytest.mark.parametrize(
    ("weights", "described", "reason"),
    [
        (PLANES, {}, "must say"),
        (PLANES, {"architecture": "resnet"}, "architecture 'resnet' is not known; known are medicalnet_resnet10"),
        (PLANES, {**TINY, "sha265": "00"}, "there is no setting 'sha265'"),
        (PLANES, {**TINY, "sha256": "00"}, "and extractor.json asks for 00"),
        (PLANES, {**TINY, "input": {"sizes": [80, 80]}}, "input may set size, mean, std, slices"),
        (PLANES, {**TINY, "input": {"size": [80]}}, "2 whole numbers of at least 75"),
        (PLANES, {**TINY, "input": {"size": 80}}, "2 whole numbers of at least 75"),
        (PLANES, {**TINY, "input": {"size": [80, 20]}}, "2 whole numbers of at least 75"),
        (PLANES, {**TINY, "input": {"mean": [0.5]}}, "3 numbers each"),
        (PLANES, {**TINY, "input": {"mean": [0, 0, 0], "std": [1, 1, 0]}}, "above 0"),
        (PLANES, {**TINY, "input": {"slices": 0}}, "at least 1"),
        (PLANES, {"architecture": "medicalnet_resnet10"}, "looks at volumes; the cases are slices"),
        ({"0.weight": PLANES["0.weight"]}, TINY, "1 are missing, such as 0.bias"),
        (PLANES | {"1.weight": torch.zeros(1)}, TINY, "1 are unknown, such as 1.weight"),
        (PLANES | {"0.weight": torch.zeros(4, 3, 3, 3, 3)}, TINY, "1 have another shape, such as 0.weight"),
        (PLANES | {"0.bias": torch.full((4,), torch.nan)}, TINY, "1 are not finite, such as 0.bias"),
        (b"nothing of the kind", TINY, r"cannot be read as safetensors \(SafetensorError\)"),
    ],
)
def test_what_cannot_be_used_says_why(tmp_path, small, weights, described, reason):
    with pytest.raises(Unusable, match=reason) as caught:
        load(folder_of(tmp_path / "net", weights, **described), 2)
    assert str(tmp_path) not in str(caught.value)


def test_a_folder_without_weights_or_with_two_files_of_them_is_refused(tmp_path, small):
    with pytest.raises(Unusable, match="there is no such folder"):
        load(tmp_path / "nowhere", 2)
    folder = folder_of(tmp_path / "net", PLANES, **TINY)
    (folder / "weights.pt").write_bytes(b"")
    with pytest.raises(Unusable, match=r"it holds weights.safetensors and weights.pt"):
        load(folder, 2)
    (folder / "weights.safetensors").unlink()
    (folder / "weights.pt").unlink()
    with pytest.raises(Unusable, match="it holds none"):
        load(folder, 2)
    (folder / "extractor.json").write_text("{")
    with pytest.raises(Unusable, match="cannot be read as JSON"):
        load(folder, 2)
    (folder / "extractor.json").unlink()
    with pytest.raises(Unusable, match=r"holds no extractor.json"):
        load(folder, 2)
