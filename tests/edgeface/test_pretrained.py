"""Published weights: tiny files of torchvision's exact key layout, written here; faults in them; no network."""

from __future__ import annotations

import re
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from edgeface.errors import ModelError
from edgeface.files import sha256_file
from edgeface.models.backbones import BUILDERS, scaled
from edgeface.models.pretrained import PUBLISHED, load_pretrained, load_published

WIDTH = 0.125
CONVOLUTIONS = {"vgg16": (2, 2, 3, 3, 3), "vgg19": (2, 2, 4, 4, 4)}


class TorchvisionVgg(nn.Module):
    """torchvision's vgg*_bn, narrow: `features` counts convolution, batch-norm, ReLU and pooling alike."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, base in zip(CONVOLUTIONS[backbone], (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                outputs = scaled(base, WIDTH)
                layers += [nn.Conv2d(channels, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]
                channels = outputs
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Linear(channels, 8), nn.ReLU(), nn.Dropout(), nn.Linear(8, 10))

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.features(images)
        return maps.mean((2, 3))


def shaken(module: nn.Module) -> nn.Module:
    """Statistics and biases that a conversion must not lose."""
    generator = torch.Generator().manual_seed(1)
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            assert m.running_mean is not None
            assert m.running_var is not None
            m.running_mean.normal_(0.0, 0.3, generator=generator)
            m.running_var.uniform_(0.5, 2.0, generator=generator)
            m.weight.data.uniform_(0.8, 1.6, generator=generator)
            m.bias.data.normal_(0.0, 0.3, generator=generator)
        elif isinstance(m, nn.Conv2d):
            # Large enough that the picture, and not the shifts alone, decides what comes out behind 16 layers.
            m.weight.data.normal_(0.0, (2.0 / m.weight[0].numel()) ** 0.5, generator=generator)
            if m.bias is not None:
                m.bias.data.normal_(0.0, 0.5, generator=generator)
    return module.eval()


def trunk_of(backbone: str) -> nn.Sequential:
    module = BUILDERS[backbone](width=WIDTH, input_px=32, head="pool").module
    assert isinstance(module, nn.Sequential)
    return module.eval()


def vgg(folder: Path, backbone: str = "vgg16") -> tuple[Path, TorchvisionVgg]:
    torch.manual_seed(0)
    published = shaken(TorchvisionVgg(backbone))
    assert isinstance(published, TorchvisionVgg)
    path = folder / f"{backbone}_bn-00000000.pth"
    torch.save(published.state_dict(), path)
    return path, published


def resnet(folder: Path) -> tuple[Path, nn.Sequential]:
    torch.manual_seed(0)
    published = trunk_of("resnet50")
    shaken(published)
    state = dict(published.state_dict())
    # The names that torchvision's file is known by; ours must be these.
    for name in ("conv1.weight", "bn1.running_var", "layer1.0.downsample.0.weight", "layer4.2.conv3.weight"):
        assert name in state
    state |= {"fc.weight": torch.zeros(10, 256), "fc.bias": torch.zeros(10)}
    path = folder / "resnet50-00000000.pth"
    torch.save(state, path)
    return path, published


@pytest.mark.parametrize("backbone", CONVOLUTIONS)
def test_a_converted_vgg_computes_what_the_published_one_computes(tmp_path: Path, backbone: str) -> None:
    path, published = vgg(tmp_path, backbone)
    trunk = load_pretrained(path, sha256_file(path), trunk=trunk_of(backbone))
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        # The bias is added before instead of behind the subtraction of the mean: one more rounding in 16 layers.
        torch.testing.assert_close(trunk(pictures), published(pictures), rtol=1e-4, atol=1e-5)
        bias = published.features[0].bias
        assert isinstance(bias, Tensor)
        bias.data += 0.01
        assert not torch.allclose(trunk(pictures), published(pictures), rtol=1e-4, atol=1e-5)  # the twin


def test_a_converted_resnet_computes_what_the_published_one_computes(tmp_path: Path) -> None:
    path, published = resnet(tmp_path)
    trunk = load_pretrained(path, sha256_file(path), trunk=trunk_of("resnet50"))
    pictures = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(trunk(pictures), published(pictures))
        assert not torch.equal(trunk_of("resnet50")(pictures), published(pictures))  # the twin


def test_an_old_file_without_batch_counters_is_read(tmp_path: Path) -> None:
    path, published = resnet(tmp_path)
    state = {n: t for n, t in torch.load(path, weights_only=True).items() if not n.endswith("num_batches_tracked")}
    torch.save(state, path)
    trunk = load_pretrained(path, sha256_file(path), trunk=trunk_of("resnet50"))
    assert torch.equal(trunk.state_dict()["bn1.running_mean"], published.state_dict()["bn1.running_mean"])


def test_the_weights_are_kept_as_safetensors_and_read_without_the_original(tmp_path: Path) -> None:
    path, published = resnet(tmp_path)
    digest = sha256_file(path)
    load_pretrained(path, digest[:8], trunk=trunk_of("resnet50"))
    path.unlink()
    assert [file.suffix for file in tmp_path.iterdir()] == [".safetensors"]
    again = load_pretrained(path, digest[:8], trunk=trunk_of("resnet50"))
    assert all(torch.equal(t, published.state_dict()[n]) for n, t in again.state_dict().items())
    with pytest.raises(ModelError, match="not here"):
        load_pretrained(path, "f" * 8, trunk=trunk_of("resnet50"))


def test_without_the_file_the_error_names_the_path_to_put_it_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EDGEFACE_CACHE", str(tmp_path))
    expected = tmp_path / "pretrained" / "vgg16_bn-6c64b313.pth"
    with pytest.raises(ModelError) as caught:
        load_published("vgg16")
    assert caught.value.do.endswith(f"put it at {expected}")
    assert "downloads nothing" in caught.value.found


def test_a_backbone_without_published_weights_is_refused() -> None:
    with pytest.raises(ModelError, match="no published ImageNet weights for 'edge_s'"):
        load_published("edge_s")


def test_the_digest_in_a_published_name_is_the_one_that_is_checked() -> None:
    assert all(published.sha256 in published.file for published in PUBLISHED.values())


def torchvision_url(enumeration: str) -> str:
    """Address of the IMAGENET1K_V1 weights in torchvision's own source, which is read and not imported."""
    found = find_spec("torchvision")
    if found is None or found.origin is None:
        pytest.skip("torchvision is not installed: its table of published weights cannot be read")
    sources = Path(found.origin).parent.joinpath("models")
    text = "".join((sources / name).read_text(encoding="utf-8") for name in ("vgg.py", "resnet.py"))
    of_class = text.partition(f"class {enumeration}(WeightsEnum):")[2]
    of_version = of_class.partition("IMAGENET1K_V1 = Weights(")[2]
    match = re.search(r'url="([^"]+)"', of_version)
    assert match is not None, f"torchvision names no file for {enumeration}"
    return match[1]


@pytest.mark.parametrize(
    ("backbone", "enumeration"),
    [("vgg16", "VGG16_BN_Weights"), ("vgg19", "VGG19_BN_Weights"), ("resnet50", "ResNet50_Weights")],
)
def test_the_published_file_is_the_one_in_torchvisions_own_table(backbone: str, enumeration: str) -> None:
    assert torchvision_url(enumeration).rpartition("/")[2] == PUBLISHED[backbone].file
    assert torchvision_url("VGG16_Weights").rpartition("/")[2] != PUBLISHED["vgg16"].file  # the twin: no batch-norm


def test_every_backbone_with_published_weights_is_compared_with_torchvision() -> None:
    assert set(PUBLISHED) == {"vgg16", "vgg19", "resnet50"}


def _another_digest(path: Path) -> str:
    return "0" * 64


def _short_digest(path: Path) -> str:
    return sha256_file(path)[:7]


def _pickled_code(path: Path) -> str:
    torch.save({"features.0.weight": trunk_of("vgg16")}, path)
    return sha256_file(path)


def _torn(path: Path) -> str:
    path.write_bytes(path.read_bytes()[:1000])
    return sha256_file(path)


def _without_batch_norm(path: Path) -> str:
    state = {n: t for n, t in torch.load(path, weights_only=True).items() if ".1." not in n}
    torch.save(state, path)
    return sha256_file(path)


def _wider(path: Path) -> str:
    state = torch.load(path, weights_only=True)
    state["features.0.weight"] = torch.zeros(9, 3, 3, 3)
    torch.save(state, path)
    return sha256_file(path)


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        (_another_digest, "sha256"),
        (_short_digest, "first eight"),
        (_pickled_code, "not a file of weights"),
        (_torn, "not a file of weights"),
        (_without_batch_norm, "_bn"),
        (_wider, "conv1_1.conv.weight"),
    ],
)
def test_a_wrong_file_is_refused_and_nothing_is_kept(tmp_path: Path, fault: Callable[[Path], str], found: str) -> None:
    path, _ = vgg(tmp_path)
    digest = fault(path)
    with pytest.raises(ModelError, match=found):
        load_pretrained(path, digest, trunk=trunk_of("vgg16"))
    assert [file.name for file in tmp_path.iterdir()] == [path.name]
